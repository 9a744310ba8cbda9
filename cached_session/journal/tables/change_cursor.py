"""Change cursors: the state of a session that a follower shows, and the changes after that state.

A cursor stores the position of each item, but not the items. A step compares the cursor with one
snapshot of the journal. The step finds newly applied operations, and the items that they pop, by
`seq`. If the resulting number of items differs from the session's, for example after a clear, the
step compares all positions.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cached_session.history.clock import stamp_ms
from cached_session.history.ops import decode_pop
from cached_session.history.order import Position
from cached_session.journal.tables import entry_rows, item_rows
from cached_session.journal.tables.dots import find_operation
from cached_session.journal.tables.outbox import newest
from cached_session.journal.tables.payloads import visible_indexes
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import (
    ACKED,
    ORDERED,
    PARKED,
    PLACE,
    SHOWN,
    Place,
    sync_state,
)
from cached_session.models import Change, Entry

__all__ = ["ChangeCursor", "advance"]

MOST = 256
"""Maximum number of entries, and of operations, that one step reports."""
UNKNOWN = -1
OF_OPERATION = "w.session = o.session AND w.writer = o.writer AND w.counter = o.counter"

Dot = tuple[str, int]


@dataclass(frozen=True)
class ChangeCursor:
    """The state of a session that a follower shows. A cursor is immutable: a step returns a new
    cursor."""

    positions: Sequence[Position] | None
    """The positions of the items that the follower shows, in order. None if the follower shows all
    items up to the operation `upto`."""
    file: int = UNKNOWN
    """The number of the file (`TailCache.file`) to which `revision` and `upto` belong."""
    revision: int = UNKNOWN
    upto: int | None = None
    """The `seq` of the last operation that the cursor includes; None if it is unknown."""
    unsent: Mapping[Dot, bool] | None = None
    """The operations that the server has not acknowledged, each with True if it is parked. None if
    no step has read them yet."""
    pending: int | None = None
    """The number of pending operations in the last report; None if there was no report."""
    coming: Sequence[Position] = ()
    """The positions of added items that are not reported yet."""
    is_behind: bool = field(default=False, kw_only=True)
    """True if the last step has left changes for the next step."""

    @classmethod
    def since(cls, file: int, upto: int | None) -> ChangeCursor:
        """Return the cursor of a follower that shows all items up to the operation with the `seq`
        ``upto``."""
        return cls(None, file, upto=upto)

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> ChangeCursor:
        """Return the cursor of a follower that shows these entries."""
        positions, unsent = set[Position](), dict[Dot, bool]()
        for entry in entries:
            positions.add(entry_rows.position_of(entry))
            if entry.sync_state != "acked":
                unsent[entry.writer, entry.counter] = entry.sync_state == "parked"
        return cls(sorted(positions), unsent=unsent, pending=_pending(unsent))


def advance(
    conn: sqlite3.Connection, session_id: str, view: ChangeCursor, file: int, writer: str
) -> tuple[ChangeCursor, list[Change]]:
    """Run one step: return the new cursor, and the changes since the old cursor, in order.

    ``writer`` is the writer id of this process. Its operations that were both written and
    acknowledged since the last step are reported as acknowledged, although no step has read them as
    pending.
    """
    with item_rows.snapshot(conn):
        return _Step(conn, session_id, file, writer).taken(view)


class _Step:
    """Reads one snapshot of the journal and collects the changes since the cursor."""

    def __init__(self, conn: sqlite3.Connection, session_id: str, file: int, writer: str) -> None:
        row = session_row(conn, session_id)
        self.conn, self.file, self.writer = conn, file, writer
        self.session, self.count, self.revision = (row[0], row[1], row[4]) if row else (0, 0, 0)
        self.reader = entry_rows.EntryReader(conn, self.session)
        self.last = newest(conn)
        self.unsent: dict[int, tuple[Dot, bool]] = {
            seq: ((name, counter), state == PARKED)
            for seq, name, counter, state in conn.execute(
                "SELECT seq, writer, counter, state FROM waiting WHERE session = ?",
                (self.session,),
            )
        }
        self.pending = _pending(dict(self.unsent.values()))
        self.acked = 0
        self.changes: list[Change] = []

    def taken(self, view: ChangeCursor) -> tuple[ChangeCursor, list[Change]]:
        if not view.coming and not self._is_of(view):
            view = self._compared(view)
        view = self._synced(self._shown(view))
        return replace(view, is_behind=view.is_behind or not self._is_of(view)), self.changes

    def _is_of(self, view: ChangeCursor) -> bool:
        return (view.file, view.revision) == (self.file, self.revision) and not view.coming

    # -- items -----------------------------------------------------------------------------------

    def _compared(self, view: ChangeCursor) -> ChangeCursor:
        """Report removed items; put the positions of added items into `coming` for `_shown`."""
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
                self._report("removed", self._gone((rank, shown[rank]) for rank in gone))
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
        """Report up to `MOST` added items, except unreadable items and items that are already
        removed."""
        if not view.coming:
            return view
        positions, entries = list(view.positions or ()), list[Entry]()
        for position in view.coming[:MOST]:
            rank = bisect_left(positions, position)
            found = self.reader.at(position, rank)
            if found:
                positions.insert(rank, position)
                entries += found
        if entries:
            self._report("appended", entries)
        return replace(view, positions=positions, coming=view.coming[MOST:])

    def _all(self) -> list[Position]:
        return self._positions(f"{SHOWN} ORDER BY {ORDERED}", self.session)

    def _applied_after(self, seq: int | None) -> list[Position]:
        after = f"seq > ? AND session = ? AND branch = '' AND +live > 0 ORDER BY {PLACE}"
        return self._positions(after, seq, self.session)

    def _positions(self, where: str, *key: int | None) -> list[Position]:
        """Return the positions of the visible items of these operations."""
        rows = self.conn.execute(
            f"SELECT {PLACE}, count, live, CASE WHEN live < count THEN CAST(body AS BLOB) END "
            f"FROM ops WHERE {where}",
            key,
        )
        return [
            (*place, index)
            for *place, count, live, body in rows
            for index in visible_indexes(body, count, live)
        ]

    def _popped_after(self, seq: int | None, shown: Sequence[Position]) -> list[int]:
        """Return the ranks of shown items that operations applied after ``seq`` have popped."""
        ranks = set()
        for (body,) in self.conn.execute(
            "SELECT body FROM ops WHERE seq > ? AND session = ? AND kind = 'pop'",
            (seq, self.session),
        ).fetchall():
            ref = decode_pop(body)
            op = find_operation(self.conn, self.session, ref.dot)
            if op is not None:
                position = (*op.place, ref.index)
                rank = bisect_left(shown, position)
                if shown[rank : rank + 1] == [position]:
                    ranks.add(rank)
        return sorted(ranks)

    def _gone(self, ranked: Iterable[tuple[int, Position]]) -> list[Entry]:
        entries = []
        for rank, position in ranked:
            turn, (stamp, writer, counter, index) = position[:3], position[3:]
            op = find_operation(self.conn, self.session, (writer, counter))
            state, said_ms = (op.state, op.said_ms) if op else (ACKED, stamp_ms(stamp))
            entries.append(
                Entry(
                    rank=rank,
                    item=None,
                    stamp=stamp,
                    run=entry_rows.run_of(stamp, writer),
                    turn=entry_rows.turn_of(*turn),
                    writer=writer,
                    counter=counter,
                    index=index,
                    sync_state=sync_state(state),
                    said_at=said_ms / 1000,
                )
            )
        return entries

    # -- unsent operations -----------------------------------------------------------------------

    def _acked_unseen(self, view: ChangeCursor) -> int:
        (count,) = self.conn.execute(
            "SELECT count(*) FROM ops o WHERE seq > ? AND session = ? AND writer = ? "
            f"AND NOT EXISTS (SELECT 1 FROM waiting w WHERE {OF_OPERATION})",
            (view.upto, self.session, self.writer),
        ).fetchone()
        return int(count)

    def _synced(self, view: ChangeCursor) -> ChangeCursor:
        """Report operations that were acknowledged, parked, or queued again."""
        # Skip operations after `upto`: the cursor does not include their items yet. The step that
        # reports these items also reads the state of their operations.
        upto = view.upto or 0
        now = dict(waits for seq, waits in self.unsent.items() if seq <= upto)
        before = now if view.unsent is None else view.unsent
        moved = [dot for dot, parked in before.items() if now.get(dot) is not parked]
        positions: list[Position] = []
        for dot in moved[:MOST]:
            op = find_operation(self.conn, self.session, dot)
            if dot not in now:
                # An operation without a row was dropped, or was acknowledged long ago and deleted.
                self.acked += op is not None and op.state == ACKED
            if op:
                positions += _places_of(view, op.place)
        entries = self._entries(view, sorted(positions))
        reported = view.pending if view.pending is not None and not self.changes else self.pending
        if self.acked or entries or reported != self.pending:
            self._report("synced", entries)
        left = {dot: before[dot] for dot in moved[MOST:]}
        return replace(view, unsent={**now, **left}, pending=self.pending, is_behind=bool(left))

    def _entries(self, view: ChangeCursor, positions: Iterable[Position]) -> list[Entry]:
        shown, entries = view.positions or (), list[Entry]()
        for position in positions:
            entries += self.reader.at(position, bisect_left(shown, position))
        return entries

    def _report(self, kind: Literal["appended", "removed", "synced"], entries: list[Entry]) -> None:
        operations = self.acked if kind == "synced" else 0
        self.changes.append(Change(kind, tuple(entries), operations, self.pending))


def _places_of(view: ChangeCursor, place: Place) -> Sequence[Position]:
    """Return the positions of the shown items of an operation."""
    shown = view.positions or ()
    *before, counter = place
    first = bisect_left(shown, (*before, counter, 0))
    return shown[first : bisect_left(shown, (*before, counter + 1, 0), first)]


def _pending(unsent: Mapping[Dot, bool]) -> int:
    return sum(not parked for parked in unsent.values())
