"""The frontier of a session: the operations that are applied, cleared, popped or missing.

Tables: `frontier` and `above` (applied), `cleared` and `settled` (covered by clears), `popped`
(items that pops name and that have not arrived).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from cached_session.history.frontier import Frontier
from cached_session.history.ops import Dot, Kind, decode_pop
from cached_session.history.ranges import Ranges
from cached_session.journal.tables.dots import find_state
from cached_session.journal.tables.row_bounds import check_range

__all__ = ["FrontierTables", "KnownWriter"]


@dataclass
class KnownWriter:
    """The state of one writer in one session."""

    applied: Ranges
    """The counters of applied operations, and of operations that no replica needs any more."""
    cleared: Ranges
    """The counters of operations that applied clears cover."""
    run_stamp: int
    """The stamp of the writer's current run."""
    last_ms: int
    """The time of the writer's last operation, in Unix milliseconds."""
    behind: bool = False
    """True if the row of the writer says that appends may be unfolded (tables/unfolded.py)."""
    unfolded: int = 0
    """The number of unfolded appends."""
    stored_run: int = 0
    """The stamp of the run in the row of the writer."""
    changed: bool = False
    cleared_changed: bool = False


class FrontierTables:
    """The frontier of one session inside one transaction.

    An instance caches the rows that it has read. `flush` writes the changed rows.
    """

    def __init__(
        self, conn: sqlite3.Connection, session: int, has_rows: dict[str, bool] | None = None
    ) -> None:
        """Use a connection and the session's row number. ``has_rows`` contains known results of
        `has`."""
        self.conn = conn
        self.session = session
        self._has_rows = {} if has_rows is None else has_rows
        self._known: dict[str, KnownWriter] = {}

    def has(self, table: str) -> bool:
        """Return whether a table has a row of this session. Most tables have no such row, so this
        check saves further queries."""
        if table not in self._has_rows:
            found = self.conn.execute(
                f"SELECT 1 FROM {table} WHERE session = ? LIMIT 1", (self.session,)
            ).fetchone()
            self._has_rows[table] = found is not None
        return self._has_rows[table]

    def mark(self, table: str) -> None:
        """Record that this transaction has inserted a row of this session into a table."""
        self._has_rows[table] = True

    def writer(self, writer: str) -> KnownWriter:
        """Return the state of a writer. The state is read from the tables once, and cached."""
        known = self._known.get(writer)
        if known is None:
            key = (self.session, writer)
            row = None
            if self._has_rows.get("frontier", True):
                row = self.conn.execute(
                    "SELECT upto, run_stamp, last_ms, behind FROM frontier "
                    "WHERE session = ? AND writer = ?",
                    key,
                ).fetchone()
            upto, run_stamp, last_ms, behind = row or (0, 0, 0, 0)
            if upto:
                check_range(1, upto)
            applied = Ranges([(1, upto)] if upto else [])
            for first, last in self._ranges("above", key):
                applied.add(first, last)
            cleared = Ranges(self._ranges("cleared", key))
            known = KnownWriter(
                applied, cleared, run_stamp, last_ms, bool(behind), stored_run=run_stamp
            )
            self._known[writer] = known
        return known

    def _ranges(self, table: str, key: tuple[int, str]) -> list[tuple[int, int]]:
        if not self.has(table):
            return []
        found: list[tuple[int, int]] = self.conn.execute(
            f"SELECT first, last FROM {table} WHERE session = ? AND writer = ?", key
        ).fetchall()
        for first, last in found:
            check_range(first, last)
        return found

    def _ranges_by_writer(self, table: str) -> list[tuple[str, int, int]]:
        found: list[tuple[str, int, int]] = self.conn.execute(
            f"SELECT writer, first, last FROM {table} WHERE session = ?", (self.session,)
        ).fetchall()
        for _, first, last in found:
            check_range(first, last)
        return found

    # -- applied operations ----------------------------------------------------------------------

    def frontier(self) -> Frontier:
        """Return the operations that are applied to this session."""
        self.flush()
        frontier = Frontier()
        for writer, last in self.conn.execute(
            "SELECT writer, upto FROM frontier WHERE session = ? AND upto > 0", (self.session,)
        ):
            check_range(1, last)
            frontier.add(writer, 1, last)
        for writer, first, last in self._ranges_by_writer("above"):
            frontier.add(writer, first, last)
        return frontier

    def advance(self, writer: str, counter: int | None = None) -> None:
        """Add an operation to the frontier; extend the prefix up to the first missing operation.

        An operation is not missing if it is applied, if a clear covers it, or if all its items have
        been popped.
        """
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
                # Without this check, a range that begins at 0 would make this loop endless.
                raise ValueError(f"the ranges of writer {writer!r:.80} are not valid")

    def missing(self, most: int) -> set[tuple[str, int]]:
        """Return missing operations. ``most`` limits their number for each writer.

        An operation is known to exist if a higher counter of its writer is applied, or if a clear
        or a pop names it. An operation that a clear covers, or whose items have all been popped, is
        not missing.
        """
        self.flush()
        known: dict[str, Ranges] = {}
        for table in ("above", "cleared"):
            for writer, first, last in self._ranges_by_writer(table):
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
                # An operation that a pop names exists, and so does each operation with a lower
                # counter.
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

    # -- popped items ----------------------------------------------------------------------------

    def popped(self, dot: Dot) -> frozenset[int]:
        """Return the indexes of the items that applied pops name in an operation that has not
        arrived."""
        if not self.has("popped"):
            return frozenset()
        rows = self.conn.execute(
            "SELECT idx FROM popped WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        )
        return frozenset(index for (index,) in rows)

    def popped_count(self, dot: Dot) -> int:
        """Return the number of items of an operation, as pops state it; 0 if no pop names an
        item."""
        (count,) = self.conn.execute(
            "SELECT coalesce(max(count), 0) FROM popped "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        ).fetchone()
        return int(count)

    def wholly_popped(self, writer: str, counter: int) -> bool:
        """Return whether applied pops name every item of an operation that has not arrived."""
        if not self.has("popped"):
            return False
        popped, count = self.conn.execute(
            "SELECT count(*), max(count) FROM popped "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, writer, counter),
        ).fetchone()
        return bool(popped and popped >= count)

    # -- cleared operations ----------------------------------------------------------------------

    def acknowledge_clear(self, covered: Frontier) -> None:
        """Record that the server has acknowledged a clear that covers these operations."""
        for writer in covered.writers():
            key = (self.session, writer)
            settled = Ranges(self._ranges("settled", key))
            for first, last in covered.ranges(writer):
                settled.add(first, last)
            self._replace("settled", key, settled)

    def clear_frontier(self) -> Frontier:
        """Return the frontier for a new clear: the applied operations that the clear covers.

        Replicas do not search for an operation that a clear covers. Four kinds are left out:
        operations that acknowledged clears already cover, so that the frontier stays small; earlier
        clears, because replicas still need each clear to know what it covers; marks, which a clear
        does not remove; and pops of items that have not arrived, because this clear does not remove
        those items.
        """
        found = self.frontier()
        settled: dict[str, Ranges] = {}
        for writer, first, last in self._ranges_by_writer("settled"):
            settled.setdefault(writer, Ranges()).add(first, last)
        for writer, ranges in settled.items():
            found.subtract(writer, ranges)
        for writer, counter in self._still_needed():
            found.subtract(writer, Ranges([(counter, counter)]))
        return found

    def _still_needed(self) -> list[tuple[str, int]]:
        needed: list[tuple[str, int]] = []
        # The index `removals` contains these rows, so the cost grows with the number of pops,
        # clears and marks.
        for writer, counter, kind, body in self.conn.execute(
            "SELECT writer, counter, kind, body FROM ops WHERE session = ? AND kind <> 'append'",
            (self.session,),
        ):
            if kind in (Kind.CLEAR.value, Kind.MARK.value) or not self._is_here(
                decode_pop(body).dot
            ):
                needed.append((writer, counter))
        return needed

    def _is_here(self, dot: Dot) -> bool:
        return find_state(self.conn, self.session, dot) is not None

    # -- writing back ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the changed rows, so that later queries in this transaction read them."""
        for writer, known in self._known.items():
            if known.changed:
                self._write_applied(writer, known)
            if known.cleared_changed:
                self._replace("cleared", (self.session, writer), known.cleared)
            known.changed = known.cleared_changed = False

    def _write_applied(self, writer: str, known: KnownWriter) -> None:
        key, upto = (self.session, writer), known.applied.contiguous_end()
        self.conn.execute(
            "INSERT INTO frontier VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "upto = excluded.upto, run_stamp = excluded.run_stamp, last_ms = excluded.last_ms, "
            "behind = excluded.behind",
            (*key, upto, known.run_stamp, known.last_ms, known.behind),
        )
        known.unfolded, known.stored_run = 0, known.run_stamp
        self.mark("frontier")
        if self.has("above") or len(known.applied) > bool(upto):
            self._replace("above", key, [pair for pair in known.applied if pair[0] > 1])

    def _replace(self, table: str, key: tuple[int, str], ranges: Iterable[tuple[int, int]]) -> None:
        self.mark(table)
        self.conn.execute(f"DELETE FROM {table} WHERE session = ? AND writer = ?", key)
        self.conn.executemany(
            f"INSERT INTO {table} VALUES (?, ?, ?, ?)", [(*key, *pair) for pair in ranges]
        )
