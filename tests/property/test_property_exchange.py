from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cached_session.errors import JournalError
from cached_session.history.ops import Dot, Kind, Mark, Operation, decode_clear
from cached_session.history.parts import Part, part_count
from cached_session.history.session_ref import SessionRef
from cached_session.journal import compaction
from cached_session.journal.tables import audit_state, gaps, outbox, writes
from cached_session.journal.tables.audit_plan import ServerListing
from cached_session.remote.ids import READABLE_VERSIONS, memory_id
from cached_session.remote.wire import decode, memories_of
from tests.hypothesis_profiles import examples
from tests.journal_rows import ITEMS
from tests.property.histories import (
    CLOCKS,
    GAP_MS,
    KEY,
    SESSION,
    Writer,
    complete,
    names,
    payload,
)
from tests.property.reference_model import visible
from tests.property.replicas import Replica
from tests.property.turn_choices import APPENDS, assert_is_last_of_turn, choose_turn

JOURNALS = 3
which = st.integers(0, JOURNALS - 1)


class Exchange(RuleBasedStateMachine):
    """Three journals, a device of wire version 1, and a server that stores, lists and deletes
    memories. Requests are interrupted, repeated and answered out of order."""

    ways_to_append = APPENDS

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [Replica() for _ in range(JOURNALS)]
        self.own: list[list[Operation]] = [[] for _ in range(JOURNALS)]
        self.arrived: list[list[Part]] = [[] for _ in range(JOURNALS)]
        self.ops: dict[Dot, Operation] = {}
        self.server: dict[str, dict] = {}
        self.ever: dict[str, dict] = {}
        """Earlier states of the server."""
        self.ticks = 0
        self.old = Writer(names(JOURNALS + 1)[-1], "true", version=1)

    def teardown(self) -> None:
        try:
            self._settle()
        finally:
            for replica in self.replicas:
                replica.close()

    # -- calls of a journal's owner --------------------------------------------------------------

    def _author(self, who: int, opening: int, clock: str) -> writes.Author:
        self.ticks += 1
        name = f"{names(JOURNALS)[who]}{'pq'[opening]}"
        return writes.Author(name, CLOCKS[clock](self.ticks), GAP_MS)

    def _wrote(self, who: int) -> None:
        op = self.replicas[who].newest().op
        if op.dot not in self.ops:
            before = complete(self.arrived[who], self.own[who], self.ops)
            assert_is_last_of_turn(op, before)
            self.ops[op.dot] = op
            self.own[who].append(op)

    @rule(
        who=which,
        opening=st.integers(0, 1),
        clock=st.sampled_from(sorted(CLOCKS)),
        count=st.integers(1, 3),
        size=st.integers(0, 5),
        how=st.integers(0, 11),
    )
    def append(self, who: int, opening: int, clock: str, count: int, size: int, how: int) -> None:
        """Append a batch that opens a turn or joins one, also one of another journal."""
        author = self._author(who, opening, clock)
        applied = complete(self.arrived[who], self.own[who], self.ops)
        way = self.ways_to_append[how % len(self.ways_to_append)]
        choice, turn, items = choose_turn(way, size, applied)
        texts = [payload(Dot(author.writer, self.ticks), i, size) for i in range(count)]
        self.replicas[who].append(author, texts + items, choice=choice)
        assert self.replicas[who].newest().op.turn == turn
        self._wrote(who)

    @rule(who=which, opening=st.integers(0, 1), clock=st.sampled_from(sorted(CLOCKS)))
    def mark(self, who: int, opening: int, clock: str) -> None:
        author = self._author(who, opening, clock)
        self.replicas[who].mark(author, Mark("title", str(self.ticks % 2), self.ticks))
        self._wrote(who)

    @rule(size=st.integers(0, 5), learns=st.booleans())
    def old_device_appends(self, size: int, learns: bool) -> None:
        """Append on a device of wire version 1, which reads only operations of version 1."""
        if learns:
            self.old.learn(self.ops.values())
        text = payload(Dot(self.old.name, self.old.counter + 1), 0, size)
        op = self.old.write(Kind.APPEND, (text,))
        self.ops[op.dot] = op
        for memory in memories_of(op, op.digest(KEY), SESSION):
            self.server[memory["id"]] = self.ever[memory["id"]] = memory

    @rule(
        who=which,
        opening=st.integers(0, 1),
        clock=st.sampled_from(sorted(CLOCKS)),
        fails=st.sampled_from(["first", "last"]),
    )
    def append_rolled_back(self, who: int, opening: int, clock: str, fails: str) -> None:
        """Begin an append and roll it back."""
        with pytest.raises(JournalError):
            self.replicas[who].append(self._author(who, opening, clock), ['"lost"'], fails)

    @rule(who=which, opening=st.integers(0, 1), clock=st.sampled_from(sorted(CLOCKS)))
    def pop(self, who: int, opening: int, clock: str) -> None:
        author = self._author(who, opening, clock)
        if self.replicas[who].pop(author) is not None:
            self._wrote(who)

    @rule(who=which, opening=st.integers(0, 1), clock=st.sampled_from(sorted(CLOCKS)))
    def clear(self, who: int, opening: int, clock: str) -> None:
        author = self._author(who, opening, clock)
        if self.replicas[who].entries(1):
            self.replicas[who].journal.write_blocking(
                lambda conn: writes.clear(conn, author, SESSION)
            )
            self._wrote(who)

    @rule(
        who=which,
        opening=st.integers(0, 1),
        clock=st.sampled_from(sorted(CLOCKS)),
        at=st.integers(0, 9),
    )
    def remove(self, who: int, opening: int, clock: str, at: int) -> None:
        """Remove an item at any position."""
        author = self._author(who, opening, clock)
        entries = self.replicas[who].entries()
        if entries:
            entry = entries[at % len(entries)]
            place = (Dot(entry.writer, entry.counter), entry.index)
            self.replicas[who].journal.write_blocking(
                lambda conn: writes.remove(conn, author, SESSION, [place])
            )
            self._wrote(who)

    # -- steps of its replicator -----------------------------------------------------------------

    @rule(who=which, most=st.integers(1, 5), cut=st.integers(0, 6), answered=st.booleans())
    def push(self, who: int, most: int, cut: int, answered: bool) -> None:
        """Send pending operations. The request may be interrupted, and its answer lost."""
        write = self.replicas[who].journal.write_blocking
        limits = {"after": 0, "upto": 1 << 40, "most_ops": most, "most_bytes": 1 << 20}
        seqs = write(lambda conn: outbox.take(conn, SESSION, **limits))
        taken = [
            out
            for seq in seqs
            for out in write(lambda conn, seq=seq: outbox.load(conn, "seq = ?", (seq,)))
        ]
        memories = [m for out in taken for m in memories_of(out.op, out.digest, SESSION)]
        if not answered:
            memories = memories[:cut]
        for memory in memories:
            self.server.setdefault(memory["id"], memory)
            self.ever[memory["id"]] = memory
        if answered:
            write(lambda conn: outbox.acknowledge(conn, [out.seq for out in taken]))

    @rule(who=which)
    def forget(self, who: int) -> None:
        """Delete removed items on the server once that is allowed."""
        write = self.replicas[who].journal.write_blocking
        due = write(lambda conn: outbox.forgets_due(conn, SESSION, 100))
        for item in due:
            for part in range(item.parts):
                for version in READABLE_VERSIONS:
                    identity = memory_id(KEY, item.dot, item.index, part, version)
                    self.server.pop(identity, None)
        write(lambda conn: outbox.delete_forgets(conn, SESSION, due) if due else None)

    @rule(who=which, most=st.integers(1, 5))
    def prune(self, who: int, most: int) -> None:
        """Prune operations that are not needed any more."""
        self.replicas[who].journal.write_blocking(lambda conn: compaction.prune(conn, most))

    @rule(
        who=which,
        seed=st.integers(0, 1 << 20),
        share=st.sampled_from([0.2, 0.6, 1.0]),
        lags=st.booleans(),
    )
    def pull(self, who: int, seed: int, share: float, lags: bool) -> None:
        """Pull some of the server's memories in any order, or from a lagging replica that still
        lists deleted ones."""
        chance = random.Random(seed)
        held = self.ever if lags else self.server
        listed = [m for m in held.values() if chance.random() < share]
        chance.shuffle(listed)
        self._deliver(who, listed)

    @rule(who=which)
    def refresh_gaps(self, who: int) -> None:
        """Update the list of missing operations."""
        write = self.replicas[who].journal.write_blocking
        count = write(lambda conn: gaps.refresh_gaps(conn, SessionRef.of(SESSION), self.ticks))
        assert count == len(self.replicas[who].rows("SELECT * FROM holes"))

    def _deliver(self, who: int, memories: list[dict]) -> None:
        parts = [decode(memory, KEY) for memory in memories]
        result = self.replicas[who].apply(parts)
        assert (result.damaged, result.conflicts) == (0, 0)
        self.arrived[who] += parts

    # -- invariants ------------------------------------------------------------------------------

    @invariant()
    def every_journal_shows_what_it_has(self) -> None:
        for who, replica in enumerate(self.replicas):
            # Parts of operations that a clear covers may have been discarded, and are not counted.
            known = complete(self.arrived[who], self.own[who], self.ops)
            replica.check(known, frontier=False, pruned=True)

    def _settle(self) -> None:
        """Check that all journals are equal and miss nothing once everything is sent and listed."""
        for who in range(JOURNALS):
            self.push(who, 10_000, 0, answered=True)
            assert self.replicas[who].rows("SELECT * FROM waiting") == []
        for who in range(JOURNALS):
            self._deliver(who, list(self.server.values()))
            # Once more: items that were hidden behind pops of the same page.
            self._deliver(who, list(self.server.values()))
            self.refresh_gaps(who)
            assert self.replicas[who].rows("SELECT * FROM parts") == []
        expected = [list(row) for row in visible(self.ops.values())]
        covers = [decode_clear(op.payloads[0]) for op in self.ops.values() if op.kind is Kind.CLEAR]
        for replica in self.replicas:
            shown = replica.rows(
                f"SELECT writer, counter, idx, payload FROM {ITEMS} ORDER BY turn_stamp, "
                "turn_writer, turn_counter, stamp, writer, counter, idx"
            )
            assert [[Dot(*row[:2]), *row[2:]] for row in shown] == expected
            frontier = replica.frontier()
            missing = [dot for dot in self.ops if dot not in frontier]
            assert all(any(dot in cover for cover in covers) for dot in missing)
            assert replica.rows("SELECT * FROM holes") == []
        self._audit()

    def _audit(self) -> None:
        """Audit a complete server: nothing is sent again, and no deleted memory is shown
        anywhere."""
        listing = ServerListing(KEY)
        listing.add([decode(memory, KEY) for memory in self.server.values()], [])
        shown = {(dot, index) for dot, index, _ in visible(self.ops.values())}
        for replica in self.replicas:
            plan = replica.journal.write_blocking(
                lambda c: audit_state.plan_audit(c, SessionRef.of(SESSION), listing)
            )
            assert plan.resend == []
            for item in plan.forget:
                assert (item.dot, item.index) not in shown
                assert item.parts == part_count(self.ops[item.dot].payloads[item.index])


Exchange.TestCase.settings = examples(60, stateful_step_count=30)


class TestExchange(Exchange.TestCase):
    """Journals that exchange operations agree with the reference after every step."""
