from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from cached_session import Change, Entry
from cached_session.journal.tables import change_cursor, outbox, parked_operations, writes
from cached_session.journal.tables.change_cursor import ChangeCursor
from cached_session.journal.tables.entry_rows import position_of
from cached_session.journal.tables.writes import Author
from tests.hypothesis_profiles import examples
from tests.property.histories import SESSION
from tests.property.replicas import Replica
from tests.property.test_property_exchange import JOURNALS, Exchange, names, which

SMALL = 1
"""Entries of one change in these tests, so that most steps leave further changes."""


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change_cursor, "MOST", SMALL)
        yield


class Follower:
    """A client that shows a session by applying its changes, and nothing else."""

    def __init__(self, replica: Replica, writer: str, start: ChangeCursor) -> None:
        self.replica, self.writer, self.view = replica, writer, start
        self.shown: list[Entry] = []
        self.pending = start.pending
        self.operations: int | None = 0

    def step(self) -> list[Change]:
        """Read one change, at a time that the follower chooses."""
        self.view, changes = self.replica.journal.read_blocking(
            lambda conn: change_cursor.advance(conn, SESSION, self.view, 0, self.writer)
        )
        for change in changes:
            self.carry_out(change)
        return changes

    def carry_out(self, change: Change) -> None:
        assert change.entries or change.kind == "synced"
        assert len(change.entries) <= SMALL or change.kind != "appended"
        assert [e.rank for e in change.entries] == sorted({e.rank for e in change.entries})
        if change.kind == "removed":
            for entry in reversed(change.entries):
                gone = self.shown.pop(entry.rank)
                assert entry.item is None
                assert (entry.run, entry.counter, entry.index) == (
                    gone.run,
                    gone.counter,
                    gone.index,
                )
        elif change.kind == "appended":
            for entry in change.entries:
                self.shown.insert(entry.rank, entry)
        else:
            for entry in change.entries:
                old = self.shown[entry.rank]
                assert replace(entry, rank=old.rank) == replace(old, sync_state=entry.sync_state)
                self.shown[entry.rank] = entry
        self.pending = change.pending
        if self.operations is not None:
            self.operations += change.operations

    def catch_up(self) -> None:
        """Read changes until there are none."""
        while self.step() or self.view.is_behind:
            pass


def followed_entries(entries: list[Entry]) -> list[Entry]:
    """Return entries as far as changes describe them: ranks are positions in the list, and the
    state `sent` is not reported."""
    waits = {"sent": "pending"}
    return [
        replace(entry, rank=rank, sync_state=waits.get(entry.sync_state, entry.sync_state))
        for rank, entry in enumerate(entries)
    ]


class Followed(Exchange):
    """The journals of `Exchange`, each followed by a client that reads changes at times. The server
    also refuses operations, which are retried or dropped."""

    ways_to_append = ("append", "join", "call")
    """Without answers: a dropped call stays in `own`, so the turn of an answer is not known."""

    def __init__(self) -> None:
        super().__init__()
        starts = [ChangeCursor.of(()), ChangeCursor.since(0, 0), ChangeCursor.since(0, 0)]
        self.dropped = [0] * JOURNALS
        self.followers = [
            Follower(replica, f"{names(JOURNALS)[who]}p", starts[who])
            for who, replica in enumerate(self.replicas)
        ]

    def _settle(self) -> None:
        for who in range(JOURNALS):
            self._check(who)

    def every_journal_shows_what_it_has(self) -> None:
        """Skip this check here: dropped operations are on no replica any more."""

    @rule(who=which)
    def park(self, who: int) -> None:
        """Let the server refuse the oldest pending operation."""
        write = self.replicas[who].journal.write_blocking
        limits = {"after": 0, "upto": 1 << 40, "most_ops": 1, "most_bytes": 1 << 20}
        for seq in write(lambda conn: outbox.take(conn, SESSION, **limits)):
            write(lambda conn, seq=seq: outbox.park(conn, seq, "refused"))

    @rule(who=which)
    def retry(self, who: int) -> None:
        """Retry every parked operation."""
        self.replicas[who].journal.write_blocking(
            lambda conn: parked_operations.retry_parked(conn, SESSION, None)
        )

    @rule(who=which)
    def drop(self, who: int) -> None:
        """Drop every parked operation, as far as allowed."""
        write = self.replicas[who].journal.write_blocking
        dots = [one.dot for one in write(lambda conn: parked_operations.parked(conn, SESSION))]
        self.dropped[who] += write(lambda conn: parked_operations.drop_parked(conn, SESSION, dots))

    @rule(who=which)
    def look(self, who: int) -> None:
        """Read one change, which may be partial."""
        self.followers[who].step()

    @rule(who=which)
    def catch_up(self, who: int) -> None:
        """Read changes until there are none."""
        self._check(who)

    @precondition(lambda self: self.ticks % 5 == 0)
    @rule(who=which, at=st.integers(0, 20))
    def start_again(self, who: int, at: int) -> None:
        """Start a new follower with an older state: the last one's list, or a part of it."""
        old = self.followers[who]
        new = Follower(old.replica, old.writer, ChangeCursor.of(old.shown[at:]))
        new.operations = None
        new.shown = [replace(entry, rank=rank) for rank, entry in enumerate(old.shown[at:])]
        self.followers[who] = new

    def _check(self, who: int) -> None:
        follower = self.followers[who]
        follower.catch_up()
        assert followed_entries(follower.shown) == followed_entries(follower.replica.entries())
        waits = follower.replica.row("SELECT count(*) FROM waiting WHERE state IN (0, 1)")[0]
        # A follower without any change yet does not know the pending operations either.
        assert follower.pending in (None, waits)
        if follower.operations is None:
            return
        unsent = follower.replica.row("SELECT count(*) FROM waiting")[0]
        acked = len(self.own[who]) - self.dropped[who] - unsent
        # Operations of another process may have been acknowledged before the follower's next read.
        sure = follower.replica.row("SELECT count(*) FROM acked WHERE writer = ?", follower.writer)[
            0
        ]
        assert (sure if who else 0) <= follower.operations <= acked

    @invariant()
    def what_is_shown_is_what_the_view_says(self) -> None:
        for follower in self.followers:
            places = [position_of(entry) for entry in follower.shown]
            assert places == list(follower.view.positions or ())


Followed.TestCase.settings = examples(50, stateful_step_count=40)


class TestFollowed(Followed.TestCase):
    """A client that applies the changes shows the same as `entries`, at any time and after any
    delay: removals last to first, appends first to last, each at its rank."""


@pytest.fixture
def follower() -> Iterator[Follower]:
    """Return a follower of an empty session."""
    with closing(Replica()) as replica:
        yield Follower(replica, "aaaawriter", ChangeCursor.since(0, 0))


def add(follower: Follower, count: int = 1) -> None:
    """Add one operation with that many items."""
    author = Author(follower.writer, 1_700_000_000_000, 600_000)
    encoded = [('{"is":0}', 0)] * count
    follower.replica.journal.write_blocking(
        lambda conn: writes.append(conn, author, SESSION, encoded, private=False)
    )


def answer(follower: Follower) -> None:
    """Let the server acknowledge everything pending."""
    write = follower.replica.journal.write_blocking
    limits = {"after": 0, "upto": 1 << 40, "most_ops": 100, "most_bytes": 1 << 20}
    seqs = write(lambda conn: outbox.take(conn, SESSION, **limits))
    write(lambda conn: outbox.acknowledge(conn, seqs))


def test_many_acknowledgements_are_reported_in_parts(follower: Follower) -> None:
    """Each operation is reported once, until all entries are acknowledged."""
    for _ in range(5):
        add(follower, 2)
    follower.catch_up()
    answer(follower)
    follower.catch_up()
    assert follower.operations == 5
    assert {entry.sync_state for entry in follower.shown} == {"acked"}


def test_an_append_during_a_late_step_is_reported_once(follower: Follower) -> None:
    """An append and its acknowledgement are reported once, although a step between them reports
    older changes."""
    add(follower, 3)
    follower.step()
    assert follower.view.is_behind
    add(follower)
    follower.step()
    answer(follower)
    follower.catch_up()
    assert follower.operations == 2
    assert follower.pending == 0


def test_an_operation_dropped_unseen_is_not_reported_as_acknowledged(follower: Follower) -> None:
    """An operation that is refused and dropped between two reads is reported as removed, and
    nothing else."""
    add(follower)
    follower.catch_up()
    write = follower.replica.journal.write_blocking
    write(lambda conn: outbox.park(conn, 1, "refused"))
    (one,) = write(lambda conn: parked_operations.parked(conn, SESSION))
    assert write(lambda conn: parked_operations.drop_parked(conn, SESSION, [one.dot])) == 1
    follower.catch_up()
    assert (follower.shown, follower.operations, follower.pending) == ([], 0, 0)
