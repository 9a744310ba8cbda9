"""The rows that compaction deletes, and those that it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cached_session.history.frontier import Frontier
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation, encode_clear
from cached_session.history.parts import split
from cached_session.history.session_ref import SessionRef
from cached_session.journal import compaction
from cached_session.journal.journal import Journal
from cached_session.journal.tables import entry_rows, inbox, outbox, writes

SESSION = "talk"
KEY = session_key(SESSION)
ME = writes.Author("m" * 24, 1000, 1000)
PEER = "p" * 24


@pytest.fixture
def journal() -> Iterator[Journal]:
    here = Journal(":memory:", threaded=False)
    here.open_blocking()
    yield here
    here.close_blocking()


def say(journal: Journal, *texts: str) -> None:
    encoded = [(f'"{text}"', 0) for text in texts]
    journal.write_blocking(lambda c: writes.append(c, ME, SESSION, encoded, private=False))


def clear(journal: Journal) -> None:
    journal.write_blocking(lambda c: writes.clear(c, ME, SESSION))


def sync(journal: Journal) -> None:
    """Acknowledge every operation, and record that the server has deleted removed items."""
    ack(journal, send(journal))
    forget(journal)


def send(journal: Journal) -> list[int]:
    limits = {"after": 0, "upto": 1 << 40, "most_ops": 100, "most_bytes": 1 << 20}
    return journal.write_blocking(lambda c: outbox.take(c, SESSION, **limits))


def ack(journal: Journal, seqs: list[int]) -> None:
    journal.write_blocking(lambda c: outbox.acknowledge(c, seqs))


def forget(journal: Journal) -> None:
    due = journal.read_blocking(lambda c: outbox.forgets_due(c, SESSION, 100))
    journal.write_blocking(lambda c: outbox.delete_forgets(c, SESSION, due))


def prune(journal: Journal, most: int = 100) -> int:
    return journal.write_blocking(lambda c: compaction.prune(c, most))


def kinds(journal: Journal) -> list[str]:
    rows = journal.read_blocking(
        lambda c: c.execute("SELECT kind FROM ops ORDER BY seq").fetchall()
    )
    return [kind for (kind,) in rows]


def shown(journal: Journal) -> list[object]:
    return [e.item for e in journal.read_blocking(lambda c: entry_rows.entries(c, SESSION, None))]


def receive(journal: Journal, op: Operation) -> inbox.PageResult:
    parts = split(op, op.digest(KEY), KEY)
    return journal.write_blocking(
        lambda c: inbox.apply_page(c, SessionRef.of(SESSION), parts, [], 0)
    )


def test_visible_and_undeleted_items_stay(journal: Journal) -> None:
    """A row stays until the server has acknowledged its removal and deleted its memories."""
    say(journal, "a")
    ack(journal, send(journal))
    assert prune(journal) == 0
    clear(journal)
    assert prune(journal) == 0
    ack(journal, send(journal))
    assert prune(journal) == 0
    forget(journal)
    assert prune(journal) == 1
    assert kinds(journal) == ["clear"]


def test_an_unanswered_append_stays(journal: Journal) -> None:
    """A removed append whose answer is missing has to be acknowledged first."""
    say(journal, "a")
    send(journal)
    clear(journal)
    assert prune(journal) == 0


def test_popped_items_keep_their_operation(journal: Journal) -> None:
    """No clear covers them: if one came again, only its row would show that it is popped."""
    say(journal, "a")
    journal.write_blocking(lambda c: writes.pop(c, ME, SESSION))
    ack(journal, send(journal))
    forget(journal)
    assert prune(journal) == 0


def test_a_pruned_operation_that_comes_again_stays_hidden(journal: Journal) -> None:
    """A server that is restored from a backup lists it once more, and the clear covers it."""
    old = Operation(Dot(PEER, 1), Kind.APPEND, 7, 0, ('"old"',))
    covered = Frontier.of([old.dot])
    wipe = Operation(Dot(PEER, 2), Kind.CLEAR, 7, 0, (encode_clear(covered),))
    receive(journal, old)
    receive(journal, wipe)
    assert prune(journal) == 1
    receive(journal, old)
    assert shown(journal) == []
    assert prune(journal) == 0, "its number would be used again"
    receive(journal, Operation(Dot(PEER, 3), Kind.APPEND, 8, 0, ('"new"',)))
    assert prune(journal) == 1


def test_a_pruned_operation_that_comes_again_does_not_continue_a_run(journal: Journal) -> None:
    """A listing shows an own operation again after another device's: the next own append sorts
    after both."""
    say(journal, "a")
    (own,) = journal.read_blocking(lambda c: outbox.load(c, "counter = 1", ()))
    clear(journal)
    sync(journal)
    assert prune(journal) == 1
    receive(journal, Operation(Dot(PEER, 1), Kind.APPEND, 1 << 50, 0, ('"news"',)))
    receive(journal, own.op)
    say(journal, "answer")
    assert shown(journal) == ["news", "answer"]


def test_a_pruned_operation_that_comes_again_does_not_end_a_run(journal: Journal) -> None:
    """It is not new: the appends before and after it stay one run."""
    say(journal, "a")
    (own,) = journal.read_blocking(lambda c: outbox.load(c, "counter = 1", ()))
    clear(journal)
    sync(journal)
    say(journal, "b")
    assert prune(journal) == 1
    receive(journal, own.op)
    say(journal, "c")
    entries = journal.read_blocking(lambda c: entry_rows.entries(c, SESSION, None))
    assert [e.item for e in entries] == ["b", "c"]
    assert entries[0].run == entries[1].run


def test_counters_continue_after_pruned_operations(journal: Journal) -> None:
    """A dot is never used twice, because the frontier includes pruned rows."""
    say(journal, "a")
    clear(journal)
    sync(journal)
    assert prune(journal) == 1
    say(journal, "b")
    entries = journal.read_blocking(lambda c: entry_rows.entries(c, SESSION, None))
    assert [(e.item, e.counter) for e in entries] == [("b", 3)]


def test_pruning_is_limited(journal: Journal) -> None:
    """A background transaction is short, however much there is to prune."""
    for _ in range(5):
        say(journal, "a")
    clear(journal)
    sync(journal)
    assert [prune(journal, 2) for _ in range(4)] == [2, 2, 1, 0]
