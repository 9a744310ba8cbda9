"""What must be true, whatever the schedule: told by the calls that were made, not by the code's own
bookkeeping.

Every item has a *key*, ``<add>.<index>``, that stands in its text. The oracle records for each add
what its writer saw, for each removal what it took away, and for each journal file (a *lineage*,
through restarts and copies) what it has shown, returned and removed.
"""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cached_session.history.ops import Dot, Kind, Operation, decode_pop
from cached_session.journal.tables.states import PENDING
from tests.property.reference_model import visible

__all__ = [
    "Add",
    "Broken",
    "Lineage",
    "Oracle",
    "Removal",
    "held_by",
    "last_dot",
    "names_of",
    "unsent_of",
]

Key = str
Name = tuple[str, Dot]
"""An operation, among those of all sessions."""


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Add:
    """An `add_items` that returned."""

    number: int
    session: str
    keys: tuple[Key, ...]
    dot: Dot
    seen: frozenset[Key]
    """What its writer could read just before."""
    run: tuple[int, int, int]
    """(opening, operations its journal had applied, wall clock): see `Oracle.check_runs`."""


@dataclass
class Removal:
    """A pop or clear that returned."""

    session: str
    dot: Dot
    keys: frozenset[Key]
    is_pop: bool = False


@dataclass
class Lineage:
    """What one journal file has been through, by session."""

    seen: dict[str, set[Key]] = field(default_factory=dict)
    gone: dict[str, set[Key]] = field(default_factory=dict)
    """What was removed here: it never comes back."""
    dropped: dict[str, set[Key]] = field(default_factory=dict)
    """What was parked and given up."""
    returned: set[Key] = field(default_factory=set)
    """What `pop_item` gave away."""

    def copy(self) -> Lineage:
        return copy.deepcopy(self)


class Oracle:
    """The truth about one run."""

    def __init__(self) -> None:
        self.items: dict[Key, Any] = {}
        self.adds: dict[Name, Add] = {}
        self.add_of: dict[Key, Add] = {}
        self.removals: dict[Name, Removal] = {}
        self.removed: dict[str, set[Key]] = {}
        """Keys that some recorded removal names."""
        self.claimed: dict[Key, str] = {}
        """Who got an item by a confirmed pop."""
        self.claimers: set[str] = set()
        """Writers that have got something so."""
        self.unresolved = 0
        """Confirmed pops without an answer: each may pop one item that nobody gets."""
        self.discarded: set[Name] = set()
        """Operations that a restored backup did not have."""
        self.dropped: set[Name] = set()
        """Parked operations that were given up somewhere. Where the server holds one all the same,
        or a copy of the journal, it stays."""
        self.needs_audit = False
        """Whether something happened that only an audit can heal."""
        self.healed = False
        """Whether an audit stored something again: a replica that lags may have shown it what was
        there before a removal."""
        self.doubled = False
        """Whether a journal was copied or restored."""
        self.shared: set[Name] = set()
        """Operations of which a copy of a journal believed that they had never been sent: another
        copy may have sent them since."""
        self.checks = 0

    # -- what calls did --------------------------------------------------------------------------

    def added(
        self, lineage: Lineage, add: Add, before: Sequence[Key], after: Sequence[Key]
    ) -> None:
        self.adds[add.session, add.dot] = add
        for key in add.keys:
            self.add_of[key] = add
        if list(after) != [*before, *add.keys]:
            raise Broken(f"add {add.number} is not at the end of its own journal: {after[-6:]}")
        lineage.seen.setdefault(add.session, set()).update(add.keys)

    def removal(self, lineage: Lineage, removal: Removal) -> None:
        self.removals[removal.session, removal.dot] = removal
        self.removed.setdefault(removal.session, set()).update(removal.keys)
        lineage.gone.setdefault(removal.session, set()).update(removal.keys)
        if removal.is_pop:
            again = removal.keys & lineage.returned
            if again:
                raise Broken(f"{sorted(again)} was popped twice from one journal")
            lineage.returned |= removal.keys

    def drop(self, lineage: Lineage, session: str, dot: Dot) -> None:
        """A parked append was given up."""
        self.dropped.add((session, dot))
        keys = set(self.adds[session, dot].keys)
        lineage.seen.setdefault(session, set()).difference_update(keys)
        lineage.dropped.setdefault(session, set()).update(keys)

    # -- what a journal shows --------------------------------------------------------------------

    def keys_of(self, conn: sqlite3.Connection, session: str) -> list[Key]:
        """What a journal shows, from its rows."""
        rows = conn.execute(
            "SELECT i.writer, i.counter, i.idx FROM items i JOIN sessions s ON s.id = i.session "
            "WHERE s.session_id = ? ORDER BY i.stamp, i.writer, i.counter, i.idx",
            (session,),
        )
        return [self.key(session, Dot(writer, counter), index) for writer, counter, index in rows]

    def key(self, session: str, dot: Dot, index: int) -> Key:
        """The item at a place.

        Raises:
            Broken: nobody put one there.
        """
        add = self.adds.get((session, dot))
        if add is None or index >= len(add.keys):
            raise Broken(f"item {index} of {dot}, which nobody added")
        return add.keys[index]

    def check_items(self, items: Sequence[Any]) -> list[Key]:
        """The keys of items as a caller got them; their content is what was added."""
        keys = []
        for item in items:
            key = str(item.get("content", "")).split(" ", 1)[0] if isinstance(item, dict) else ""
            if self.items.get(key) != item:
                raise Broken(f"an item was changed on the way: {item!r:.200}")
            keys.append(key)
        return keys

    def check_view(
        self, lineage: Lineage, conn: sqlite3.Connection, session: str, keys: Sequence[Key]
    ) -> None:
        """A whole history as one journal shows it, at any moment."""
        self.checks += 1
        position = {key: place for place, key in enumerate(keys)}
        if len(position) != len(keys):
            raise Broken("an item is shown twice")
        gone = lineage.gone.setdefault(session, set())
        back = gone & position.keys()
        if back:
            raise Broken(f"removed here, and back again: {sorted(back)}")
        settled = self.settled(conn, session)
        removed = self.removed.get(session, set()) | settled
        seen = lineage.seen.setdefault(session, set())
        lost = seen - removed - position.keys()
        if lost:
            raise Broken(f"shown before, removed by nobody, and gone: {sorted(lost)}")
        seen |= position.keys()
        adds = {self.add_of[key].dot: self.add_of[key] for key in keys}
        for add in adds.values():
            self._check_batch(add, position, removed)
            first = min(position[key] for key in add.keys if key in position)
            late = [key for key in add.seen if position.get(key, -1) > first]
            if late:
                raise Broken(f"add {add.number} stands before what its writer had seen: {late}")
        self.check_journal(conn, session)

    def _check_batch(self, add: Add, position: dict[Key, int], removed: set[Key]) -> None:
        places = [position[key] for key in add.keys if key in position]
        missing = [key for key in add.keys if key not in position and key not in removed]
        if missing:
            raise Broken(f"batch {add.number} is shown without {missing}")
        if places != list(range(places[0], places[0] + len(places))):
            raise Broken(f"batch {add.number} is not contiguous: {places}")

    def settled(self, conn: sqlite3.Connection, session: str) -> set[Key]:
        """Items that a journal's replicator popped when it settled a claim without an answer."""
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
        """The rows that a journal keeps equal what the reference makes of its operations."""
        rows = conn.execute(
            "SELECT o.writer, o.counter, o.kind, o.stamp, o.count, o.body, o.live FROM ops o "
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
            )
            for writer, counter, kind, stamp, count, body, _ in rows
        ]
        wanted = [(dot, index) for dot, index, _ in visible(ops)]
        found = [
            (Dot(writer, counter), index)
            for writer, counter, index in conn.execute(
                "SELECT i.writer, i.counter, i.idx FROM items i "
                "JOIN sessions s ON s.id = i.session WHERE s.session_id = ? "
                "ORDER BY i.stamp, i.writer, i.counter, i.idx",
                (session,),
            )
        ]
        if wanted != found:
            raise Broken(f"the journal is not what the reference makes of it: {wanted} {found}")
        row = conn.execute("SELECT items FROM sessions WHERE session_id = ?", (session,)).fetchone()
        if row and row[0] != len(found):
            raise Broken(f"the journal counts {row[0]} items and has {len(found)}")
        if sum(live for *_, live in rows) != len(found):
            raise Broken("the operations count other visible items than there are")

    # -- once the faults have stopped ------------------------------------------------------------

    def expected(
        self, session: str, applied: set[Name], held: set[Name], settled: set[Key]
    ) -> set[Key]:
        """What every replica must show in the end. ``applied``: the operations that live journals
        hold or have let go of; what a restored backup took away need not be among them.
        ``held``: those that they hold; what was given up need not be among those."""

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
        """What a device wrote while apart stands together."""
        position = {key: place for place, key in enumerate(keys)}
        last: dict[int, Add] = {}
        for next_ in self.adds.values():
            if next_.session != session:
                continue
            one = last.get(next_.run[0], next_)
            last[next_.run[0]] = next_
            follows = next_.run[1] == one.run[1] + 1 and next_.run[2] - one.run[2] <= gap_ms
            here = [position[key] for key in one.keys if key in position]
            there = [position[key] for key in next_.keys if key in position]
            if follows and here and there and there[0] != here[-1] + 1:
                between = keys[here[-1] + 1 : there[0]]
                raise Broken(f"{between} stands within a run, {one.keys} and {next_.keys}")


def last_dot(conn: sqlite3.Connection, session: str) -> Dot:
    """The operation that a journal applied last."""
    writer, counter = conn.execute(
        "SELECT o.writer, o.counter FROM ops o JOIN sessions s ON s.id = o.session "
        "WHERE s.session_id = ? ORDER BY o.seq DESC LIMIT 1",
        (session,),
    ).fetchone()
    return Dot(writer, counter)


def unsent_of(conn: sqlite3.Connection) -> set[Name]:
    """The operations of which a journal believes that only it has them."""
    rows = conn.execute(
        "SELECT s.session_id, o.writer, o.counter FROM ops o JOIN sessions s ON s.id = o.session "
        f"WHERE o.state = {PENDING}"
    )
    return {(session, Dot(writer, counter)) for session, writer, counter in rows}


def held_by(conn: sqlite3.Connection) -> set[Name]:
    """The operations that a journal holds."""
    rows = conn.execute(
        "SELECT s.session_id, o.writer, o.counter FROM ops o JOIN sessions s ON s.id = o.session"
    )
    return {(session, Dot(writer, counter)) for session, writer, counter in rows}


def names_of(conn: sqlite3.Connection) -> set[Name]:
    """The operations that a journal holds, or has let go of because a clear covers them.

    What is covered counts as held, although a restored backup may have taken it from everybody: the
    row of a pop may have been let go of so (`compaction.prune`), and what it popped must not be
    expected again. Nor is an append expected that is covered: the call of the clear that covers it
    has recorded its items as removed, unless that clear had never seen them, which is a bug.
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
