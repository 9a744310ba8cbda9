"""The invariants of every run, checked against the calls that were made, and not against the code's
own bookkeeping.

Every item has a *key*, ``<add>.<index>``, in its text. For each add the oracle records what its
writer saw, for each removal the removed items, and for each journal file (a *lineage*, through
restarts and copies) what it has shown, returned and removed.
"""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cached_session.history.ops import Dot, Kind, Operation, TurnKey, decode_pop
from cached_session.journal.tables.marks import read_marks
from cached_session.journal.tables.sessions import session_row
from cached_session.journal.tables.states import PENDING
from tests.journal_rows import items_of
from tests.property.reference_model import marks, visible

__all__ = [
    "Add",
    "InvariantViolated",
    "Lineage",
    "Oracle",
    "Removal",
    "held_by",
    "last_dot",
    "names_of",
    "turn_of",
    "unsent_of",
]

Key = str
Name = tuple[str, Dot]
"""An operation, with its session."""


class InvariantViolated(AssertionError):
    """An invariant does not hold."""


@dataclass
class Add:
    """An `add_items` that returned."""

    number: int
    session: str
    keys: tuple[Key, ...]
    dot: Dot
    seen: frozenset[Key]
    """The keys that its writer could read just before."""
    run: tuple[int, int, int]
    """(opening, operations its journal had applied, wall clock): see `Oracle.check_runs`."""
    turn: TurnKey
    """The turn that the append has opened or joined."""

    @property
    def is_head(self) -> bool:
        return (self.turn.writer, self.turn.counter) == self.dot


@dataclass
class Removal:
    """A pop or clear that returned."""

    session: str
    dot: Dot
    keys: frozenset[Key]
    is_pop: bool = False


@dataclass
class Lineage:
    """The history of one journal file, by session."""

    seen: dict[str, set[Key]] = field(default_factory=dict)
    gone: dict[str, set[Key]] = field(default_factory=dict)
    """Keys removed here, which must never come back."""
    dropped: dict[str, set[Key]] = field(default_factory=dict)
    """Keys that were parked and dropped."""
    returned: set[Key] = field(default_factory=set)
    """Keys that `pop_item` returned."""

    def copy(self) -> Lineage:
        return copy.deepcopy(self)


class Oracle:
    """The recorded facts of one run."""

    def __init__(self) -> None:
        self.items: dict[Key, Any] = {}
        self.adds: dict[Name, Add] = {}
        self.add_of: dict[Key, Add] = {}
        self.removals: dict[Name, Removal] = {}
        self.removed: dict[str, set[Key]] = {}
        """Keys that a recorded removal covers."""
        self.claimed: dict[Key, str] = {}
        """The device that got an item by a confirmed pop."""
        self.claimers: set[str] = set()
        """Writers that have got an item by a confirmed pop."""
        self.unresolved = 0
        """Number of confirmed pops without an answer. Each may pop one item that no device gets."""
        self.discarded: set[Name] = set()
        """Operations that a restored backup did not have."""
        self.dropped: set[Name] = set()
        """Parked operations that were dropped on a device. An operation stays where the server, or
        a copy of the journal, holds it nevertheless."""
        self.needs_audit = False
        """Whether a fault occurred that only an audit can repair."""
        self.healed = False
        """Whether an audit stored something again. A replica that lags may have shown the audit a
        state from before a removal."""
        self.doubled = False
        """Whether a journal was copied or restored."""
        self.shared: set[Name] = set()
        """Operations that a copy of a journal took for never sent. Another copy may have sent them
        since."""
        self.checks = 0

    # -- calls -----------------------------------------------------------------------------------

    def added(
        self, lineage: Lineage, add: Add, before: Sequence[Key], after: Sequence[Key]
    ) -> None:
        self.adds[add.session, add.dot] = add
        for key in add.keys:
            self.add_of[key] = add
        self._check_place(add, before, after)
        lineage.seen.setdefault(add.session, set()).update(add.keys)

    def _check_place(self, add: Add, before: Sequence[Key], after: Sequence[Key]) -> None:
        """Check that an append is at the end of its turn, and a new turn at the end of all."""
        turn = [key for key in before if self.add_of[key].turn == add.turn]
        end = len(before) if add.is_head or not turn else before.index(turn[-1]) + 1
        if not add.is_head and not turn:
            # Every other item of the turn was removed, so its place among the others is unknown.
            end = after.index(add.keys[0])
        if list(after) != [*before[:end], *add.keys, *before[end:]]:
            raise InvariantViolated(
                f"add {add.number} is not at the end of its turn {add.turn}: {after[-9:]}"
            )

    def removal(self, lineage: Lineage, removal: Removal) -> None:
        self.removals[removal.session, removal.dot] = removal
        self.removed.setdefault(removal.session, set()).update(removal.keys)
        lineage.gone.setdefault(removal.session, set()).update(removal.keys)
        if removal.is_pop:
            again = removal.keys & lineage.returned
            if again:
                raise InvariantViolated(f"{sorted(again)} was popped twice from one journal")
            lineage.returned |= removal.keys

    def drop(self, lineage: Lineage, session: str, dot: Dot) -> None:
        """Record that a parked append was dropped."""
        self.dropped.add((session, dot))
        keys = set(self.adds[session, dot].keys)
        lineage.seen.setdefault(session, set()).difference_update(keys)
        lineage.dropped.setdefault(session, set()).update(keys)

    # -- contents of a journal -------------------------------------------------------------------

    def keys_of(self, conn: sqlite3.Connection, session: str) -> list[Key]:
        """Return the keys that a journal shows, from its rows."""
        rows = items_of(conn, session)
        return [self.key(session, Dot(*dot), index) for *dot, index, _ in rows]

    def key(self, session: str, dot: Dot, index: int) -> Key:
        """Return the key of the item at a position.

        Raises:
            InvariantViolated: no call added an item there.
        """
        add = self.adds.get((session, dot))
        if add is None or index >= len(add.keys):
            raise InvariantViolated(f"item {index} of {dot}, which nobody added")
        return add.keys[index]

    def check_items(self, items: Sequence[Any]) -> list[Key]:
        """Return the keys of items as a caller got them, and check their content."""
        keys = []
        for item in items:
            key = str(item.get("content", "")).split(" ", 1)[0] if isinstance(item, dict) else ""
            if self.items.get(key) != item:
                raise InvariantViolated(f"an item was changed on the way: {item!r:.200}")
            keys.append(key)
        return keys

    def check_view(
        self, lineage: Lineage, conn: sqlite3.Connection, session: str, keys: Sequence[Key]
    ) -> None:
        """Check a complete history as one journal shows it, at any time."""
        self.checks += 1
        position = {key: place for place, key in enumerate(keys)}
        if len(position) != len(keys):
            raise InvariantViolated("an item is shown twice")
        gone = lineage.gone.setdefault(session, set())
        back = gone & position.keys()
        if back:
            raise InvariantViolated(f"removed here, and back again: {sorted(back)}")
        settled = self.claims_resolved(conn, session)
        removed = self.removed.get(session, set()) | settled
        seen = lineage.seen.setdefault(session, set())
        lost = seen - removed - position.keys()
        if lost:
            raise InvariantViolated(f"shown before, removed by nobody, and gone: {sorted(lost)}")
        seen |= position.keys()
        adds = {self.add_of[key].dot: self.add_of[key] for key in keys}
        for add in adds.values():
            self._check_batch(add, position, removed)
            first = min(position[key] for key in add.keys if key in position)
            # A late part of a turn is before later turns that its writer had seen.
            late = [
                key
                for key in add.seen
                if position.get(key, -1) > first
                and (add.is_head or self.add_of[key].turn == add.turn)
            ]
            if late:
                raise InvariantViolated(
                    f"add {add.number} stands before what its writer had seen: {late}"
                )
        self._check_turns(keys)
        self.check_journal(conn, session)

    def _check_turns(self, keys: Sequence[Key]) -> None:
        """Check that the items of each turn are contiguous, and that the head is the first."""
        ended, current, before = set[TurnKey](), None, ""
        for key in keys:
            add = self.add_of[key]
            if add.turn != current:
                if add.turn in ended:
                    raise InvariantViolated(f"turn {add.turn} is not contiguous at {key}")
                ended.add(add.turn)
                current = add.turn
            elif add.is_head and self.add_of[before] is not add:
                raise InvariantViolated(f"the head of turn {add.turn} is not the first: {key}")
            before = key

    def _check_batch(self, add: Add, position: dict[Key, int], removed: set[Key]) -> None:
        places = [position[key] for key in add.keys if key in position]
        missing = [key for key in add.keys if key not in position and key not in removed]
        if missing:
            raise InvariantViolated(f"batch {add.number} is shown without {missing}")
        if places != list(range(places[0], places[0] + len(places))):
            raise InvariantViolated(f"batch {add.number} is not contiguous: {places}")

    def claims_resolved(self, conn: sqlite3.Connection, session: str) -> set[Key]:
        """Record the items that a journal's replicator popped when it resolved a claim without an
        answer."""
        rows = conn.execute(
            "SELECT o.writer, o.counter, o.body FROM ops o "
            "JOIN sessions s ON s.id = o.session WHERE s.session_id = ? AND o.kind = 'pop'",
            (session,),
        )
        refs = [
            decode_pop(body) for *dot, body in rows if (session, Dot(*dot)) not in self.removals
        ]
        return {self.key(session, ref.dot, ref.index) for ref in refs}

    def check_journal(self, conn: sqlite3.Connection, session: str) -> None:
        """Check the rows of a journal against the result of the reference model for its
        operations."""
        rows = conn.execute(
            "SELECT o.writer, o.counter, o.kind, o.stamp, o.count, o.body, o.turn_stamp, "
            "o.turn_writer, o.turn_counter, o.live FROM ops o "
            "JOIN sessions s ON s.id = o.session WHERE s.session_id = ?",
            (session,),
        ).fetchall()
        ops = [
            Operation(
                Dot(writer, counter),
                Kind(kind),
                stamp,
                0,
                ("x",) * count if kind == "append" else (body,),
                turn=TurnKey(*turn),
            )
            for writer, counter, kind, stamp, count, body, *turn, _ in rows
        ]
        wanted = [(dot, index) for dot, index, _ in visible(ops)]
        found = [(Dot(*dot), index) for *dot, index, _ in items_of(conn, session)]
        if wanted != found:
            raise InvariantViolated(
                f"the journal is not what the reference makes of it: {wanted} {found}"
            )
        self._check_marks(conn, session, ops)
        row = session_row(conn, session)
        if row and row[1] != len(found):
            raise InvariantViolated(f"the journal counts {row[1]} items and has {len(found)}")
        if sum(live for *_, live in rows) != len(found):
            raise InvariantViolated("the operations count other visible items than there are")

    def _check_marks(
        self, conn: sqlite3.Connection, session: str, ops: Sequence[Operation]
    ) -> None:
        wanted = {name: dot for name, (dot, _) in marks(ops).items()}
        found = {(row.mark.type, row.mark.key): row.dot for row in read_marks(conn, session)}
        if wanted != found:
            raise InvariantViolated(f"the marks are not those of the reference: {wanted} {found}")

    # -- after the faults ------------------------------------------------------------------------

    def expected(
        self, session: str, applied: set[Name], held: set[Name], settled: set[Key]
    ) -> set[Key]:
        """Return the keys that every replica must show in the end.

        ``applied``: the operations that journals in use hold or have pruned. Operations lost by a
        restored backup need not be among them. ``held``: the operations that they hold. Dropped
        ones need not be among those.
        """

        def counts(dot: Dot) -> bool:
            name = (session, dot)
            if name in self.dropped and name not in held:
                return False
            return name not in self.discarded or name in applied

        keys = {
            key
            for add in self.adds.values()
            if add.session == session and counts(add.dot)
            for key in add.keys
        }
        for removal in self.removals.values():
            if removal.session == session and counts(removal.dot):
                keys -= removal.keys
        return keys - settled

    def check_runs(self, session: str, keys: Sequence[Key], gap_ms: int) -> None:
        """Check that the items which a device wrote while it was separate are contiguous."""
        position = {key: place for place, key in enumerate(keys)}
        ends = {self.add_of[key].turn: place for place, key in enumerate(keys)}
        last: dict[int, Add] = {}
        for next_ in self.adds.values():
            # A later part of a turn is where its turn is.
            if next_.session != session or not next_.is_head:
                continue
            one = last.get(next_.run[0], next_)
            last[next_.run[0]] = next_
            follows = next_.run[1] == one.run[1] + 1 and next_.run[2] - one.run[2] <= gap_ms
            here = [position[key] for key in one.keys if key in position]
            there = [position[key] for key in next_.keys if key in position]
            end = ends.get(one.turn, 0) + 1
            if follows and here and there and one is not next_ and there[0] != end:
                between = keys[end : there[0]]
                raise InvariantViolated(
                    f"{between} stands within a run, {one.keys} and {next_.keys}"
                )


def last_dot(conn: sqlite3.Connection, session: str) -> Dot:
    """Return the operation that a journal applied last."""
    writer, counter = conn.execute(
        "SELECT o.writer, o.counter FROM ops o JOIN sessions s ON s.id = o.session "
        "WHERE s.session_id = ? ORDER BY o.seq DESC LIMIT 1",
        (session,),
    ).fetchone()
    return Dot(writer, counter)


def turn_of(conn: sqlite3.Connection, session: str, dot: Dot) -> TurnKey:
    """Return the turn of an operation."""
    row = conn.execute(
        "SELECT o.turn_stamp, o.turn_writer, o.turn_counter FROM ops o JOIN sessions s "
        "ON s.id = o.session WHERE s.session_id = ? AND o.writer = ? AND o.counter = ?",
        (session, *dot),
    ).fetchone()
    return TurnKey(*row)


def unsent_of(conn: sqlite3.Connection) -> set[Name]:
    """Return the operations that a journal takes for never sent."""
    rows = conn.execute(
        "SELECT s.session_id, w.writer, w.counter FROM waiting w "
        f"JOIN sessions s ON s.id = w.session WHERE w.state = {PENDING}"
    )
    return {(session, Dot(writer, counter)) for session, writer, counter in rows}


def held_by(conn: sqlite3.Connection) -> set[Name]:
    """Return the operations that a journal holds."""
    rows = conn.execute(
        "SELECT s.session_id, o.writer, o.counter FROM ops o JOIN sessions s ON s.id = o.session"
    )
    return {(session, Dot(writer, counter)) for session, writer, counter in rows}


def names_of(conn: sqlite3.Connection) -> set[Name]:
    """Return the operations that a journal holds, or has pruned because a clear covers them.

    A covered operation counts as held, although a restored backup may have lost it everywhere: the
    row of a pop may have been pruned (`compaction.prune`), and the popped item must not be expected
    again. A covered append is not expected either: the call of the clear that covers it has
    recorded its items as removed, unless that clear had never seen them, which is a bug.
    """
    rows = conn.execute(
        "SELECT s.session_id, o.writer, o.counter, o.counter FROM ops o "
        "JOIN sessions s ON s.id = o.session UNION ALL "
        "SELECT s.session_id, c.writer, c.first, c.last FROM cleared c "
        "JOIN sessions s ON s.id = c.session"
    )
    return {
        (session, Dot(writer, counter))
        for session, writer, first, last in rows
        for counter in range(first, last + 1)
    }
