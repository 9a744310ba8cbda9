"""The effect of operations on the journal: the same code for a local write and a pulled page.

It equals ``tests/property/reference_model.py`` after every single operation, whatever order
operations arrive in; a late one costs the same as one at the end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cached_session.history.frontier import Frontier
from cached_session.history.ids import session_key
from cached_session.history.ops import GONE, Dot, ItemRef, Kind, Operation, decode_clear, decode_pop
from cached_session.history.ranges import Ranges
from cached_session.journal.sqlite.codec import codec_of
from cached_session.journal.sqlite.tracked_connection import count_history_change
from cached_session.journal.tables import search_index
from cached_session.journal.tables.row_bounds import check_range
from cached_session.journal.tables.sessions import stored_id
from cached_session.journal.tables.states import ACKED, AGAIN, PENDING, SENT

__all__ = ["SessionTransaction"]

RARE = ("above", "cleared", "popped", "holes", "parts")
"""Tables in which most sessions have no row: those need no look-ups."""
BEGIN = (
    "SELECT id, stamp, last_writer, revision, "
    + ", ".join(f"EXISTS (SELECT 1 FROM {table} WHERE session = s.id)" for table in RARE)
    + " FROM sessions s WHERE session_id = ?"
)


@dataclass
class _Known:
    """What the journal knows of one writer in one session."""

    applied: Ranges
    """What is here, and what nobody need ever send."""
    cleared: Ranges
    run_stamp: int
    last_ms: int
    changed: bool = False
    cleared_changed: bool = False


class _Place(NamedTuple):
    """Where an operation stands in the journal."""

    seq: int | None
    """None where its items are here and it is not: a journal that was damaged."""
    stamp: int
    state: int
    error: str | None


@dataclass
class Applied:
    """What became of the operations handed to one transaction."""

    new: int = 0
    known: int = 0
    conflicts: int = 0
    items: int = 0
    """Change in the number of visible items."""


@dataclass
class SessionTransaction:
    """One session inside one transaction; `finish` writes back what was gathered.

    Make one a transaction and throw it away: it caches what the transaction has read. A write may
    hand it on to the next one, which goes on from there (`writes.LastWrite`).
    """

    conn: sqlite3.Connection
    session: int
    key: str
    stamp: int
    last_writer: str
    revision: int
    """Of the session: before this transaction, and after it once it is finished."""
    applied: Applied = field(default_factory=Applied)
    author: str = ""
    """The writer of ours that is known not to be retired."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _ops: list[tuple[object, ...]] = field(default_factory=list)
    _items: list[tuple[object, ...]] = field(default_factory=list)
    _any: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def begin(cls, conn: sqlite3.Connection, session_id: str) -> SessionTransaction | None:
        """The transaction of a session; None if the journal does not know it."""
        row = conn.execute(BEGIN, (stored_id(session_id),)).fetchone()
        if row is None:
            return None
        session, stamp, last_writer, revision, *has = row
        there = dict(zip(RARE, has, strict=True))
        return cls(conn, session, session_key(session_id), stamp, last_writer, revision, _any=there)

    @classmethod
    def create(cls, conn: sqlite3.Connection, session_id: str, now_ms: int) -> SessionTransaction:
        """The transaction of a session, which the journal knows from now on."""
        known = cls.begin(conn, session_id)
        if known is not None:
            return known
        row = conn.execute(
            "INSERT INTO sessions (session_id, created_ms) VALUES (?, ?)",
            (stored_id(session_id), now_ms),
        )
        # No session is ever deleted: no table has any row of this number yet.
        none = dict.fromkeys((*RARE, "frontier"), False)
        return cls(conn, row.lastrowid or 0, session_key(session_id), 0, "", 0, _any=none)

    # -- what is known ---------------------------------------------------------------------------

    def writer(self, writer: str) -> _Known:
        """What is known of a writer, read once."""
        known = self._known.get(writer)
        if known is None:
            key = (self.session, writer)
            row = None
            if self._any.get("frontier", True):
                row = self.conn.execute(
                    "SELECT upto, run_stamp, last_ms FROM frontier "
                    "WHERE session = ? AND writer = ?",
                    key,
                ).fetchone()
            upto, run_stamp, last_ms = row or (0, 0, 0)
            if upto:
                check_range(1, upto)
            applied = Ranges([(1, upto)] if upto else [])
            for first, last in self._ranges("above", key):
                applied.add(first, last)
            cleared = Ranges(self._ranges("cleared", key))
            known = _Known(applied, cleared, run_stamp, last_ms)
            self._known[writer] = known
        return known

    def has(self, table: str) -> bool:
        """Whether a table has any row of this session: most never do, and need no look-ups."""
        if table not in self._any:
            found = self.conn.execute(
                f"SELECT 1 FROM {table} WHERE session = ? LIMIT 1", (self.session,)
            ).fetchone()
            self._any[table] = found is not None
        return self._any[table]

    def mark(self, table: str) -> None:
        """This transaction has put a row of this session into a table."""
        self._any[table] = True

    def _ranges(self, table: str, key: tuple[int, str]) -> list[tuple[int, int]]:
        if not self.has(table):
            return []
        found: list[tuple[int, int]] = self.conn.execute(
            f"SELECT first, last FROM {table} WHERE session = ? AND writer = ?", key
        ).fetchall()
        for first, last in found:
            check_range(first, last)
        return found

    def frontier(self) -> Frontier:
        """Everything applied to this session."""
        self.flush()
        frontier = Frontier()
        for writer, last in self.conn.execute(
            "SELECT writer, upto FROM frontier WHERE session = ? AND upto > 0", (self.session,)
        ):
            check_range(1, last)
            frontier.add(writer, 1, last)
        for writer, first, last in self.conn.execute(
            "SELECT writer, first, last FROM above WHERE session = ?", (self.session,)
        ):
            check_range(first, last)
            frontier.add(writer, first, last)
        return frontier

    # -- applying --------------------------------------------------------------------------------

    def apply(
        self,
        op: Operation,
        *,
        state: int = ACKED,
        codecs: Sequence[int] | None = None,
        digest: str | None = None,
        own: bool = False,
    ) -> bool:
        """Apply one whole operation; False if its dot was known already.

        A dot seen again with other content changes nothing and is counted: the first seen stays.

        Raises:
            ValueError: its payload makes no sense; nothing was changed.
        """
        writer, counter = op.dot
        known = self.writer(writer)
        digest = digest or op.digest(self.key)
        is_known = counter in known.applied
        if is_known and self.seen(op.dot, digest):
            return False
        live = self._effect(op, known, codecs, state, own)
        self._ops.append(
            (
                self.session,
                writer,
                counter,
                op.kind.value,
                op.stamp,
                op.said_ms,
                len(op.payloads),
                live,
                sum(map(len, op.payloads)),
                op.private,
                digest,
                state,
                None if op.kind is Kind.APPEND else op.payloads[0],
            )
        )
        self._advance(writer, counter)
        if self.has("holes"):
            self.conn.execute(
                "DELETE FROM holes WHERE session = ? AND writer = ? AND counter = ?",
                (self.session, writer, counter),
            )
        if self.has("parts"):
            self.conn.execute(
                "DELETE FROM parts WHERE session = ? AND writer = ? AND counter = ?",
                (self.session, writer, counter),
            )
        self.stamp = max(self.stamp, op.stamp)
        if own or not is_known:
            # What was let go of and comes once more is no news, and ends and continues no run.
            self.last_writer = writer
        self.applied.new += 1
        return True

    def seen(self, dot: Dot, digest: str) -> bool:
        """Whether an operation of the frontier is here: the frontier also passes over dots that
        nobody need ever send, and one of those may still come."""
        self.flush()
        row = self.conn.execute(
            "SELECT digest FROM ops WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        ).fetchone()
        if row is None:
            return False
        if row[0] != digest:
            # Counted once, however often the page that shows it is pulled.
            self.applied.conflicts += self.conn.execute(
                "UPDATE ops SET conflicted = 1 WHERE session = ? AND writer = ? AND counter = ? "
                "AND NOT conflicted",
                (self.session, *dot),
            ).rowcount
        else:
            self.applied.known += 1
        return True

    def _advance(self, writer: str, counter: int | None = None) -> None:
        """Take a dot into the frontier and close the prefix over all that is not missing: dots
        that are here, that a clear covers, or of which every item has been popped."""
        known = self.writer(writer)
        known.changed = True
        if counter is not None:
            known.applied.add(counter)
        while True:
            following = known.applied.contiguous_end() + 1
            if following in known.cleared:
                known.applied.add(following, known.cleared.end_of(following))
            elif self.wholly_popped(writer, following):
                known.applied.add(following)
            else:
                break
            if known.applied.contiguous_end() < following:
                # Without this check a range that begins at 0 would keep the loop here for ever.
                raise ValueError(f"the ranges of writer {writer!r:.80} make no sense")

    def popped(self, dot: Dot) -> frozenset[int]:
        """Which items of an operation applied pops name."""
        if not self.has("popped"):
            return frozenset()
        rows = self.conn.execute(
            "SELECT idx FROM popped WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        )
        return frozenset(index for (index,) in rows)

    def popped_count(self, dot: Dot) -> int:
        """How many items an operation has, as its pops tell; 0 without any."""
        (count,) = self.conn.execute(
            "SELECT coalesce(max(count), 0) FROM popped "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        ).fetchone()
        return int(count)

    def wholly_popped(self, writer: str, counter: int) -> bool:
        """Whether applied pops name every item of an operation that is not here."""
        if not self.has("popped"):
            return False
        popped, count = self.conn.execute(
            "SELECT count(*), max(count) FROM popped "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, writer, counter),
        ).fetchone()
        return bool(popped and popped >= count)

    def _effect(
        self, op: Operation, known: _Known, codecs: Sequence[int] | None, state: int, own: bool
    ) -> int:
        if op.kind is Kind.APPEND:
            return self._append(op, known, codecs)
        self.flush()
        if op.kind is Kind.POP:
            self._pop(decode_pop(op.payloads[0]), op.dot if own else None)
        else:
            covered = decode_clear(op.payloads[0])
            self._clear(covered, op.dot if own else None)
            if state == ACKED:
                self.settle(covered)
        return 0

    def _append(self, op: Operation, known: _Known, codecs: Sequence[int] | None) -> int:
        writer, counter = op.dot
        if codecs is None:
            codecs = [codec_of(payload) if payload else 0 for payload in op.payloads]
        hidden = set(self.popped(op.dot))
        if hidden:
            self.conn.execute(
                "DELETE FROM popped WHERE session = ? AND writer = ? AND counter = ?",
                (self.session, *op.dot),
            )
        if counter in known.cleared:
            hidden = set(range(len(op.payloads)))
        hidden |= {index for index, payload in enumerate(op.payloads) if payload == GONE}
        shown = [
            (self.session, op.stamp, writer, counter, index, payload, codec)
            for index, (payload, codec) in enumerate(zip(op.payloads, codecs, strict=True))
            if index not in hidden
        ]
        live = len(shown)
        if live:
            self._items += shown
        self.applied.items += live
        return live

    def _pop(self, ref: ItemRef, by: Dot | None) -> None:
        place = self._place(ref.dot)
        if place is not None:
            self._remove(place, ref.dot, ref.index, by)
            return
        self.conn.execute(
            "INSERT OR IGNORE INTO popped VALUES (?, ?, ?, ?, ?)",
            (self.session, *ref.dot, ref.index, ref.count),
        )
        self.mark("popped")
        self._advance(ref.dot.writer)

    def _clear(self, covered: Frontier, by: Dot | None) -> None:
        for writer in covered.writers():
            known = self.writer(writer)
            known.cleared_changed = True
            for first, last in covered.ranges(writer):
                known.cleared.add(first, last)
            self._advance(writer)
        # What is visible is walked through, not all that ever was.
        shown = self.conn.execute(
            "SELECT stamp, writer, counter FROM items WHERE session = ? "
            "GROUP BY session, stamp, writer, counter",
            (self.session,),
        ).fetchall()
        for stamp, writer, counter in shown:
            if (writer, counter) in covered:
                dot = Dot(writer, counter)
                self._remove(self._place(dot) or _Place(None, stamp, ACKED, None), dot, None, by)

    def settle(self, covered: Frontier) -> None:
        """The server has acknowledged that these are cleared."""
        for writer in covered.writers():
            key = (self.session, writer)
            settled = Ranges(self._ranges("settled", key))
            for first, last in covered.ranges(writer):
                settled.add(first, last)
            self._replace("settled", key, settled)

    def unsettled(self) -> Frontier:
        """What a clear written now names: everything applied that no clear names which the server
        has acknowledged. Its size is that of the gaps since the last acknowledged clear.

        Two kinds of dots are left out, because to name a dot says that nobody need ever look for
        it: those of clears, which cover what this one leaves out as settled; and those of pops
        whose target is not here, which this clear does not make needless.
        """
        found = self.frontier()
        settled: dict[str, Ranges] = {}
        for writer, first, last in self.conn.execute(
            "SELECT writer, first, last FROM settled WHERE session = ?", (self.session,)
        ):
            check_range(first, last)
            settled.setdefault(writer, Ranges()).add(first, last)
        for writer, ranges in settled.items():
            found.subtract(writer, ranges)
        for writer, counter in self._still_needed():
            found.subtract(writer, Ranges([(counter, counter)]))
        return found

    def _still_needed(self) -> list[tuple[str, int]]:
        needed: list[tuple[str, int]] = []
        # The index `removals` knows them: their number is that of pops and clears, not of words.
        for writer, counter, kind, body in self.conn.execute(
            "SELECT writer, counter, kind, body FROM ops WHERE session = ? AND kind <> 'append'",
            (self.session,),
        ):
            if kind == Kind.CLEAR.value or self._place(decode_pop(body).dot) is None:
                needed.append((writer, counter))
        return needed

    def missing(self, most: int) -> set[tuple[str, int]]:
        """Dots that are known to exist and are not here: below one that is here, that a clear names
        or that a pop names. At most so many of each writer. What a clear covers, or of which all
        has been popped, is not missing."""
        self.flush()
        known: dict[str, Ranges] = {}
        for table in ("above", "cleared"):
            for writer, first, last in self.conn.execute(
                f"SELECT writer, first, last FROM {table} WHERE session = ?", (self.session,)
            ):
                check_range(first, last)
                known.setdefault(writer, Ranges()).add(first, last)
        named: dict[str, Ranges] = {}
        for writer, counter in self.conn.execute(
            "SELECT DISTINCT writer, counter FROM popped WHERE session = ?",
            (self.session,),
        ):
            known.setdefault(writer, Ranges())
            named.setdefault(writer, Ranges()).add(counter)
        found: set[tuple[str, int]] = set()
        for writer, ranges in known.items():
            for first, last in self.writer(writer).applied:
                ranges.add(first, last)
            candidates = ranges.gaps(most)
            for first, last in named.get(writer, ()):
                # Named by pops: missing themselves, and all below them.
                candidates += range(max(first, last - most), last + 1)
                ranges.add(first, last)
                candidates += ranges.gaps(most)
            found.update(
                (writer, counter)
                for counter in candidates
                if counter not in self.writer(writer).applied
                and counter not in self.writer(writer).cleared
                and not self.wholly_popped(writer, counter)
            )
        return found

    def withdraw(self, dot: Dot) -> None:
        """Take the items of an operation that never reached the server out of the history."""
        self.flush()
        place = self._place(dot)
        if place is not None:
            self._remove(place, dot, None, None)

    def _place(self, dot: Dot) -> _Place | None:
        """Where an operation stands that is here."""
        row = self.conn.execute(
            "SELECT seq, stamp, state, error FROM ops "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        ).fetchone()
        return None if row is None else _Place(*row)

    def _remove(self, place: _Place, dot: Dot, index: int | None, by: Dot | None) -> None:
        """Take the visible items of an operation away, or one of them; ``by`` is the own operation
        that does so, after whose ack the server is asked to forget them."""
        where = "session = ? AND stamp = ? AND writer = ? AND counter = ?"
        key: tuple[object, ...] = (self.session, place.stamp, *dot)
        if index is not None:
            where, key = f"{where} AND idx = ?", (*key, index)
        if by is None and (place.state in (PENDING, SENT) or place.error == AGAIN):
            # Somebody else has removed what this journal is still to send, sends again after an
            # answer that was lost, or has sent again before it heard of that: it would be on the
            # server for good.
            by = Dot("", 0)
        if by is not None:
            self.conn.execute(
                "INSERT OR IGNORE INTO forgets SELECT session, writer, counter, idx, "
                f"part_count(CAST(payload AS BLOB)), ?, ? FROM items WHERE {where}",
                (*by, *key),
            )
        indexed = self._document(place, dot)
        gone = self.conn.execute(f"DELETE FROM items WHERE {where}", key).rowcount
        if gone:
            if indexed is not None:
                search_index.remove(self.conn, [indexed])
                left = self._document(place, dot)
                search_index.add(self.conn, [left] if left is not None else [])
            self.conn.execute(
                "UPDATE ops SET live = live - ? WHERE session = ? AND writer = ? AND counter = ?",
                (gone, self.session, *dot),
            )
            self.applied.items -= gone

    def _document(self, place: _Place, dot: Dot) -> tuple[int, str] | None:
        """An operation as the index has it; None if it has nothing of it."""
        reached = search_index.reach(self.conn)
        if reached is None or place.seq is None or place.seq > reached:
            return None
        payloads = self.conn.execute(
            "SELECT CAST(payload AS BLOB) FROM items "
            "WHERE session = ? AND stamp = ? AND writer = ? AND counter = ? ORDER BY idx",
            (self.session, place.stamp, *dot),
        ).fetchall()
        if not payloads:
            return None
        texts = [payload.decode(errors="replace") for (payload,) in payloads]
        return place.seq, search_index.document(self.session, texts)

    # -- writing back ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the gathered rows, so that what follows in this transaction sees them."""
        if self._ops:
            self.conn.executemany(
                "INSERT INTO ops (session, writer, counter, kind, stamp, said_ms, count, live, "
                "bytes, private, digest, state, body) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                self._ops,
            )
            self._ops.clear()
        if self._items:
            self.conn.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)", self._items)
            self._items.clear()
        for writer, known in self._known.items():
            if known.changed:
                self._write_applied(writer, known)
            if known.cleared_changed:
                self._replace("cleared", (self.session, writer), known.cleared)
            known.changed = known.cleared_changed = False

    def _write_applied(self, writer: str, known: _Known) -> None:
        key, upto = (self.session, writer), known.applied.contiguous_end()
        self.conn.execute(
            "INSERT INTO frontier VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "upto = excluded.upto, run_stamp = excluded.run_stamp, last_ms = excluded.last_ms",
            (*key, upto, known.run_stamp, known.last_ms),
        )
        self.mark("frontier")
        if self.has("above") or len(known.applied) > bool(upto):
            self._replace("above", key, [pair for pair in known.applied if pair[0] > 1])

    def _replace(self, table: str, key: tuple[int, str], ranges: Iterable[tuple[int, int]]) -> None:
        self.mark(table)
        self.conn.execute(f"DELETE FROM {table} WHERE session = ? AND writer = ?", key)
        self.conn.executemany(
            f"INSERT INTO {table} VALUES (?, ?, ?, ?)", [(*key, *pair) for pair in ranges]
        )

    def finish(self) -> Applied:
        """Write everything back; what became of the operations. Searching them comes later
        (journal/tables/search_index.py)."""
        self.flush()
        count_history_change(self.conn)
        self.revision += 1
        applied, self.applied = self.applied, Applied()
        self.conn.execute(
            "UPDATE sessions SET stamp = ?, last_writer = ?, items = items + ?, "
            "revision = revision + 1, conflicts = conflicts + ? WHERE id = ?",
            (self.stamp, self.last_writer, applied.items, applied.conflicts, self.session),
        )
        return applied
