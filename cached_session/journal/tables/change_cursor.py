"""What a follower has been told of a session, and how that differs from what the session shows now.

A view knows the position of each item and no item. One step compares it with one snapshot of the
journal: what was applied since, and what pops have taken away, is found by its `seq`. Where the
number of items does not add up then, after a clear for one, all positions are looked at.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from cached_session.history.clock import stamp_ms
from cached_session.history.ops import decode_pop
from cached_session.journal.tables import item_rows
from cached_session.journal.tables.item_rows import Position
from cached_session.journal.tables.outbox import newest
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import ACKED, PARKED, sync_state
from cached_session.models import Change, Entry

__all__ = ["ChangeCursor", "advance"]

MOST = 256
"""Entries told of in one change, and operations looked up for it, if they are more than one."""
UNKNOWN = -1

Dot = tuple[str, int]


@dataclass(frozen=True)
class ChangeCursor:
    """What a follower shows. Never changed: a step makes a new one."""

    positions: Sequence[Position] | None
    """Of the items that are shown, in order; None: of whatever was there at `upto`."""
    file: int = UNKNOWN
    """The number of the file (`TailCache.file`) to which `revision` and `upto` belong."""
    revision: int = UNKNOWN
    upto: int | None = None
    """The `seq` of the last operation that was looked at."""
    unsent: Mapping[Dot, bool] | None = None
    """Operations that the server has not acknowledged; whether each is parked."""
    pending: int | None = None
    """What the follower was told last of how many wait."""
    coming: Sequence[Position] = ()
    """Where items stand that are to be told of next."""
    is_behind: bool = field(default=False, kw_only=True)
    """Whether there was more to tell than one step tells."""

    @classmethod
    def since(cls, file: int, upto: int | None) -> ChangeCursor:
        """Of a follower who knows what there was at a point in time, whatever that is."""
        return cls(None, file, upto=upto)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> ChangeCursor:
        """Of a follower who shows these entries."""
        positions, unsent = set[Position](), dict[Dot, bool]()
        for entry in entries:
            positions.add((entry.stamp, entry.writer, entry.counter, entry.index))
            if entry.sync_state != "acked":
                unsent[entry.writer, entry.counter] = entry.sync_state == "parked"
        return cls(sorted(positions), unsent=unsent, pending=_pending(unsent))


def advance(
    conn: sqlite3.Connection, session_id: str, view: ChangeCursor, file: int, writer: str
) -> tuple[ChangeCursor, list[Change]]:
    """The view after one step towards what the session shows now, and the changes that lead there,
    to be carried out in this order. ``writer``: who writes here; what it wrote and the server
    acknowledged since the last step counts as acknowledged, though it was never seen waiting."""
    with item_rows.snapshot(conn):
        return _Step(conn, session_id, file, writer).taken(view)


class _Op(NamedTuple):
    state: int
    said_ms: int
    stamp: int


class _Step:
    """One snapshot, and what a view is told of it."""

    def __init__(self, conn: sqlite3.Connection, session_id: str, file: int, writer: str) -> None:
        row = session_row(conn, session_id)
        self.conn, self.file, self.writer = conn, file, writer
        self.session, self.count, self.revision = (row[0], row[1], row[4]) if row else (0, 0, 0)
        self.last = newest(conn)
        self.unsent: dict[int, tuple[Dot, bool]] = {
            seq: ((name, counter), state == PARKED)
            for seq, name, counter, state in conn.execute(
                "SELECT seq, writer, counter, state FROM ops WHERE session = ? AND state <> 2",
                (self.session,),
            )
        }
        self.pending = _pending(dict(self.unsent.values()))
        self.acked = 0
        self.changes: list[Change] = []

    def taken(self, view: ChangeCursor) -> tuple[ChangeCursor, list[Change]]:
        if not view.coming and not self._is_of(view):
            view = self._compared(view)
        view = self._settled(self._shown(view))
        return replace(view, is_behind=view.is_behind or not self._is_of(view)), self.changes

    def _is_of(self, view: ChangeCursor) -> bool:
        return (view.file, view.revision) == (self.file, self.revision) and not view.coming

    # -- items -----------------------------------------------------------------------------------

    def _compared(self, view: ChangeCursor) -> ChangeCursor:
        """What has gone is told; what has come is noted, to be told a part at a time."""
        same_file = view.file == self.file and view.upto is not None
        coming = self._applied_after(view.upto) if same_file else []
        shown = view.positions
        if shown is None:
            fresh = set(coming)
            shown = [position for position in self._all() if position not in fresh]
        else:
            gone = self._popped_after(view.upto, shown) if same_file else []
            if not same_file or len(shown) + len(coming) - len(gone) != self.count:
                everything = self._all()
                there, known = set(everything), set(shown)
                coming = [position for position in everything if position not in known]
                gone = [rank for rank, position in enumerate(shown) if position not in there]
            if gone:
                self._tell("removed", self._gone((rank, shown[rank]) for rank in gone))
                shown = list(shown)
                for rank in reversed(gone):
                    del shown[rank]
        if same_file:
            self.acked += self._acked_unseen(view)
        return replace(
            view,
            positions=shown,
            file=self.file,
            revision=self.revision,
            upto=self.last,
            coming=coming,
        )

    def _shown(self, view: ChangeCursor) -> ChangeCursor:
        """Some of what has come is told: not what nobody can read, nor what has gone again."""
        if not view.coming:
            return view
        positions, entries = list(view.positions or ()), list[Entry]()
        for position in view.coming[:MOST]:
            rank = bisect_left(positions, position)
            found = item_rows.entry_at(self.conn, self.session, position, rank)
            if found:
                positions.insert(rank, position)
                entries += found
        if entries:
            self._tell("appended", entries)
        return replace(view, positions=positions, coming=view.coming[MOST:])

    def _all(self) -> list[Position]:
        return self.conn.execute(
            "SELECT stamp, writer, counter, idx FROM items WHERE session = ? "
            "ORDER BY session, stamp, writer, counter, idx",
            (self.session,),
        ).fetchall()

    def _applied_after(self, seq: int | None) -> list[Position]:
        return self.conn.execute(
            "SELECT i.stamp, i.writer, i.counter, i.idx FROM ops o CROSS JOIN items i "
            "ON i.session = o.session AND i.stamp = o.stamp AND i.writer = o.writer "
            "AND i.counter = o.counter WHERE o.seq > ? AND o.session = ? ORDER BY 1, 2, 3, 4",
            (seq, self.session),
        ).fetchall()

    def _popped_after(self, seq: int | None, shown: Sequence[Position]) -> list[int]:
        """The ranks of what the pops applied since name, as far as it is shown."""
        ranks = set()
        for (body,) in self.conn.execute(
            "SELECT body FROM ops WHERE seq > ? AND session = ? AND kind = 'pop'",
            (seq, self.session),
        ).fetchall():
            ref = decode_pop(body)
            op = self._op(ref.dot)
            if op is not None:
                position = (op.stamp, *ref.dot, ref.index)
                rank = bisect_left(shown, position)
                if shown[rank : rank + 1] == [position]:
                    ranks.add(rank)
        return sorted(ranks)

    def _gone(self, ranked: Iterable[tuple[int, Position]]) -> list[Entry]:
        entries = []
        for rank, (stamp, writer, counter, index) in ranked:
            op = self._op((writer, counter)) or _Op(ACKED, stamp_ms(stamp), stamp)
            entries.append(
                Entry(
                    rank=rank,
                    item=None,
                    stamp=stamp,
                    run=item_rows.run_of(stamp, writer),
                    writer=writer,
                    counter=counter,
                    index=index,
                    sync_state=sync_state(op.state),
                    said_at=op.said_ms / 1000,
                )
            )
        return entries

    # -- what waits for the server ---------------------------------------------------------------

    def _acked_unseen(self, view: ChangeCursor) -> int:
        (count,) = self.conn.execute(
            "SELECT count(*) FROM ops WHERE seq > ? AND session = ? AND writer = ? AND state = 2",
            (view.upto, self.session, self.writer),
        ).fetchone()
        return int(count)

    def _settled(self, view: ChangeCursor) -> ChangeCursor:
        """What the server has acknowledged, or refuses, or is to be sent again."""
        # Of what was looked at only: what comes after it is found with its items.
        upto = view.upto or 0
        now = dict(waits for seq, waits in self.unsent.items() if seq <= upto)
        before = now if view.unsent is None else view.unsent
        moved = [dot for dot, parked in before.items() if now.get(dot) is not parked]
        positions: list[Position] = []
        for dot in moved[:MOST]:
            row = self._op(dot)
            if dot not in now:
                # Without a row: given up; or acknowledged long ago, and not needed any more.
                self.acked += row is not None and row.state == ACKED
            if row:
                positions += _places_of(view, dot, row.stamp)
        entries = self._entries(view, sorted(positions))
        told = view.pending if view.pending is not None and not self.changes else self.pending
        if self.acked or entries or told != self.pending:
            self._tell("synced", entries)
        left = {dot: before[dot] for dot in moved[MOST:]}
        return replace(view, unsent={**now, **left}, pending=self.pending, is_behind=bool(left))

    def _entries(self, view: ChangeCursor, positions: Iterable[Position]) -> list[Entry]:
        shown, entries = view.positions or (), list[Entry]()
        for position in positions:
            rank = bisect_left(shown, position)
            entries += item_rows.entry_at(self.conn, self.session, position, rank)
        return entries

    def _op(self, dot: Dot) -> _Op | None:
        row = self.conn.execute(
            "SELECT state, said_ms, stamp FROM ops "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (self.session, *dot),
        ).fetchone()
        return None if row is None else _Op(*row)

    def _tell(self, kind: Literal["appended", "removed", "synced"], entries: list[Entry]) -> None:
        operations = self.acked if kind == "synced" else 0
        self.changes.append(Change(kind, tuple(entries), operations, self.pending))


def _places_of(view: ChangeCursor, dot: Dot, stamp: int) -> Sequence[Position]:
    """Where the items of an operation stand that are shown."""
    writer, counter = dot
    shown = view.positions or ()
    first = bisect_left(shown, (stamp, writer, counter, 0))
    return shown[first : bisect_left(shown, (stamp, writer, counter + 1, 0), first)]


def _pending(unsent: Mapping[Dot, bool]) -> int:
    return sum(not parked for parked in unsent.values())
