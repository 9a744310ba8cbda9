"""The frontier of a clear, and what it leaves to be searched for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cached_session.history.frontier import Frontier
from cached_session.history.ids import session_key
from cached_session.history.ops import (
    Dot,
    ItemRef,
    Kind,
    Mark,
    Operation,
    decode_clear,
    encode_clear,
    encode_mark,
    encode_pop,
)
from cached_session.history.parts import split
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.tables import inbox, outbox, writes
from cached_session.journal.tables.gaps import due_gaps, refresh_gaps
from cached_session.journal.tables.sessions import session_row

SESSION = "talk"
REF = SessionRef.of(SESSION)
KEY = session_key(SESSION)
A, P, X, Y = (letter * 24 for letter in "apxy")


made: list[Journal] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while made:
        made.pop().close_blocking()


def journal() -> Journal:
    made.append(Journal(":memory:", threaded=False))
    made[-1].open_blocking()
    return made[-1]


def append(writer: str, counter: int, stamp: int) -> Operation:
    return Operation(Dot(writer, counter), Kind.APPEND, stamp, 0, (f'"{writer[0]}{counter}"',))


def receive(here: Journal, *ops: Operation) -> None:
    parts = [part for op in ops for part in split(op, op.digest(KEY), KEY)]
    here.write_blocking(lambda conn: inbox.apply_page(conn, REF, parts, [], 0))


def clear(here: Journal, writer: str) -> Operation:
    author = writes.Author(writer, 1000, 1000)
    here.write_blocking(lambda conn: writes.clear(conn, author, SESSION))
    return here.read_blocking(
        lambda conn: outbox.load(conn, "seq = (SELECT max(seq) FROM ops)", ())
    )[0].op


def items(here: Journal) -> int:
    row = here.read_blocking(lambda conn: session_row(conn, SESSION))
    return row[1] if row else 0


def gaps(here: Journal) -> set[tuple[str, int]]:
    def look(conn: object) -> set[tuple[str, int]]:
        refresh_gaps(conn, REF, 0)  # type: ignore[arg-type]
        due = due_gaps(conn, REF, 0, 100)  # type: ignore[arg-type]
        return {tuple(gap.dot) for gap in due}  # type: ignore[misc]

    return here.write_blocking(look)


def test_a_clear_shows_that_an_earlier_clear_is_missing() -> None:
    """A clear omits what an acknowledged one covers, so that a replica with the later one alone
    searches for the earlier."""
    first = append(A, 1, 10)
    earlier = Operation(Dot(X, 1), Kind.CLEAR, 20, 0, (encode_clear(Frontier.of([(A, 1)])),))
    between = append(X, 2, 20)
    writer = journal()
    receive(writer, first, earlier, between)
    later = clear(writer, Y)
    assert decode_clear(later.payloads[0]) == Frontier.of([(X, 2)])

    reader = journal()
    receive(reader, first, later)
    assert items(reader) == 1
    assert gaps(reader) == {(X, 1)}
    receive(reader, earlier)
    assert items(reader) == 0
    assert gaps(reader) == set()


def test_a_clear_shows_that_an_earlier_mark_is_missing() -> None:
    """A clear does not name marks, so that a replica with the clear alone searches for a mark that
    is older."""
    mark = Operation(Dot(X, 1), Kind.MARK, 10, 0, (encode_mark(Mark("title", "", "a")),))
    after = append(X, 2, 10)
    writer = journal()
    receive(writer, mark, after)
    later = clear(writer, Y)
    assert decode_clear(later.payloads[0]) == Frontier.of([(X, 2)])

    reader = journal()
    receive(reader, later)
    assert gaps(reader) == {(X, 1)}
    receive(reader, mark)
    assert gaps(reader) == set()


def test_a_clear_does_not_cover_a_pop_of_an_unseen_item() -> None:
    """A pop that arrived before its item is still needed after a clear that has not seen the
    item."""
    target = append(A, 1, 10)
    popped = Operation(Dot(P, 1), Kind.POP, 20, 0, (encode_pop(ItemRef(target.dot, 0, 2)),))
    after = append(P, 2, 20)
    writer = journal()
    receive(writer, popped, after)
    later = clear(writer, Y)
    assert decode_clear(later.payloads[0]) == Frontier.of([(P, 2)])


def test_a_clear_names_only_new_operations() -> None:
    """It omits what an acknowledged clear has named, so that its size depends on what is new."""
    here = journal()
    for round_ in range(3):
        receive(here, append(A, round_ + 1, 10 + round_))
        made = clear(here, Y)
        assert decode_clear(made.payloads[0]).encode() == {A: [[round_ + 1, round_ + 1]]}
        seqs = here.read_blocking(lambda conn: [out.seq for out in outbox.load(conn, "1", ())])
        here.write_blocking(lambda conn, seqs=seqs: outbox.acknowledge(conn, seqs))


def test_a_pop_shows_that_its_append_exists() -> None:
    """An append of which only a pop has arrived is searched for, unless all of its items are
    popped."""
    here = journal()
    receive(here, Operation(Dot(P, 1), Kind.POP, 20, 0, (encode_pop(ItemRef(Dot(A, 2), 0, 2)),)))
    assert gaps(here) == {(A, 1), (A, 2)}
    receive(here, Operation(Dot(P, 2), Kind.POP, 20, 0, (encode_pop(ItemRef(Dot(A, 2), 1, 2)),)))
    assert gaps(here) == {(A, 1)}


def test_an_item_removed_elsewhere_before_its_acknowledgement_is_deleted() -> None:
    """An append that is sent again after another device has removed it does not stay on the
    server."""
    here = journal()
    author = writes.Author(A, 1000, 1000)
    here.write_blocking(
        lambda conn: writes.append(conn, author, SESSION, [('"mine"', 0)], private=False)
    )
    receive(
        here,
        Operation(Dot(P, 1), Kind.POP, 1 << 40, 0, (encode_pop(ItemRef(Dot(A, 1), 0, 1)),)),
    )
    assert items(here) == 0
    due = lambda: here.read_blocking(lambda conn: outbox.forgets_due(conn, SESSION, 9))  # noqa: E731
    assert due() == []
    here.write_blocking(lambda conn: outbox.acknowledge(conn, [1]))
    assert due() == [outbox.Forget(Dot(A, 1), 0, 1)]
