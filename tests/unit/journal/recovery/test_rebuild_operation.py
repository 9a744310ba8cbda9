"""Operations that are rebuilt from rows with damaged cells."""

from __future__ import annotations

import sqlite3

import pytest

from cached_session.history.clock import stamp_ms
from cached_session.history.ids import session_key
from cached_session.history.ops import GONE, Dot, Kind, Mark, TurnKey
from cached_session.history.turns import TurnChoice
from cached_session.journal.recovery.read_damaged import decode_or_keep, scan_operations
from cached_session.journal.recovery.rebuild_operation import RebuiltOperation, rebuild_operation
from cached_session.journal.recovery.report import Losses
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import writes
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from tests.journal_rows import change_payloads
from tests.unit.journal.recovery.recovery_support import (
    SESSION,
    WRITER,
    acknowledge,
    add,
    author,
    change_cells,
)


def rebuilt(conn: sqlite3.Connection, losses: Losses | None = None) -> RebuiltOperation:
    """Return the last operation of a journal."""
    conn.text_factory = decode_or_keep
    losses = Losses() if losses is None else losses
    (*_, row) = scan_operations(conn, losses)
    found = rebuild_operation(conn, row, session_key(SESSION), losses)
    assert found is not None
    return found


def test_an_intact_row_is_returned_as_it_was_written(old: sqlite3.Connection) -> None:
    """All fields are those of the row."""
    add(old, "a", "b")
    (digest, stamp) = old.execute("SELECT digest, stamp FROM ops").fetchone()
    found = rebuilt(old)
    assert found.operation.dot == Dot(WRITER, 1)
    assert (found.operation.kind, found.operation.stamp) == (Kind.APPEND, stamp)
    assert found.operation.payloads == ('"a"', '"b"')
    assert (found.operation.said_ms, found.operation.private) == (1000, False)
    assert (found.state, found.digest, found.error, found.lost) == (PENDING, digest, None, [])
    assert found.is_exact


def test_pops_and_clears_have_their_payload(old: sqlite3.Connection) -> None:
    """It is in the row itself."""
    add(old, "a", "b")
    writes.pop(old, author(), SESSION)
    pop = rebuilt(old)
    writes.clear(old, author(), SESSION)
    clear = rebuilt(old)
    assert [pop.operation.kind, clear.operation.kind] == [Kind.POP, Kind.CLEAR]
    bodies = [body for (body,) in old.execute("SELECT body FROM ops ORDER BY seq")]
    assert [*pop.operation.payloads, *clear.operation.payloads] == bodies[1:]


@pytest.mark.parametrize("value", ["NULL", "'x'", "1.5"])
def test_a_damaged_time_is_taken_from_the_stamp(old: sqlite3.Connection, value: str) -> None:
    """The time is for people, and the stamp begins with a time."""
    add(old, "a")
    change_cells(old, "ops", f"said_ms = {value}")
    operation = rebuilt(old).operation
    assert operation.said_ms == stamp_ms(operation.stamp)


@pytest.mark.parametrize(
    ("value", "state"),
    [(str(ACKED), ACKED), (str(PARKED), PARKED), ("9", SENT), ("NULL", SENT), ("'x'", SENT)],
)
def test_a_damaged_state_means_that_it_is_sent_again(
    old: sqlite3.Connection, value: str, state: int
) -> None:
    """It has no effect to send an operation twice."""
    add(old, "a")
    if state == ACKED:
        acknowledge(old)
    else:
        change_cells(old, "waiting", f"state = {value}")
    assert rebuilt(old).state == state


@pytest.mark.parametrize("value", ["NULL", "''", "7", "x'00'", "CAST(x'ff80' AS TEXT)"])
def test_a_damaged_digest_is_left_out(old: sqlite3.Connection, value: str) -> None:
    """Nothing shows that the other cells are intact."""
    add(old, "a", "b")
    change_cells(old, "ops", f"digest = {value}")
    found = rebuilt(old)
    assert (found.operation.payloads, found.digest, found.lost) == (('"a"', '"b"'), None, [])
    assert not found.is_exact


def test_a_digest_of_other_content_is_left_out(old: sqlite3.Connection) -> None:
    """A payload with another letter is damaged too. The digest of an operation with a removed item
    cannot be checked."""
    add(old, "a", "b")
    change_payloads(old, lambda _, text: text.replace(b"a", b"x"))
    found = rebuilt(old)
    assert (found.operation.payloads, found.digest, found.lost) == (('"x"', '"b"'), None, [])
    assert not found.is_exact
    writes.pop(old, author(), SESSION)
    old.execute("DELETE FROM ops WHERE kind = 'pop'")
    assert rebuilt(old).is_exact


def test_an_operation_with_lost_items_is_not_exact(old: sqlite3.Connection) -> None:
    """The indexes of the lost items are known if the body has all its separators."""
    add(old, "a", "b")
    change_payloads(old, lambda at, text: b"{" if at == 1 else text)
    found = rebuilt(old)
    assert (found.operation.payloads, found.lost, found.is_exact) == (('"a"', GONE), [1], False)
    old.execute("UPDATE ops SET body = 'x'")
    found = rebuilt(old)
    assert (found.operation.payloads, found.lost) == ((GONE, GONE), [0, 1])


@pytest.mark.parametrize(
    ("value", "private"), [("0", False), ("1", True), ("NULL", True), ("'x'", True)]
)
def test_a_damaged_mark_counts_as_private(
    old: sqlite3.Connection, value: str, private: bool
) -> None:
    """Text that may be private is not sent to the server's index."""
    add(old, "a")
    change_cells(old, "ops", f"private = {value}")
    assert rebuilt(old).operation.private is private


def test_an_error_that_is_not_a_text_is_left_out(old: sqlite3.Connection) -> None:
    """The reason of a parked operation is for people."""
    add(old, "a")
    old.execute("UPDATE waiting SET error = 'too large'")
    assert rebuilt(old).error == "too large"
    change_cells(old, "waiting", "error = x'00'")
    assert rebuilt(old).error is None


def add_to_turn(conn: sqlite3.Connection, *words: str) -> TurnKey:
    """Append a batch to the turn of an earlier append."""
    add(conn, "head")
    (key,) = conn.execute("SELECT turn_stamp, turn_writer, turn_counter FROM ops").fetchall()
    turn = TurnKey(*key)
    batch = encode_items(list(words))
    choice = TurnChoice(block=turn)
    writes.append(conn, author(), SESSION, batch, private=False, choice=choice)
    return turn


def test_the_place_of_an_operation_is_kept(old: sqlite3.Connection) -> None:
    """Turn, branch, key and version are those of the row. The digest covers them."""
    turn = add_to_turn(old, "a")
    assert (rebuilt(old).operation.turn, rebuilt(old).is_exact) == (turn, True)
    old.execute("UPDATE ops SET branch = 'b', key_id = 'k'")
    found = rebuilt(old)
    assert (found.operation.turn, found.operation.branch, found.operation.key_id) == (
        turn,
        "b",
        "k",
    )
    assert (found.operation.version, found.is_exact) == (2, False)


@pytest.mark.parametrize(
    "change",
    [
        "turn_stamp = NULL",
        "turn_stamp = 'x'",
        "turn_stamp = stamp + 1",
        "turn_writer = NULL",
        "turn_writer = 'nobody'",
        "turn_counter = 0",
        "turn_counter = counter",
        "branch = 'a|b'",
        "branch = NULL",
        "key_id = x'00'",
        "version = NULL",
        "version = 7",
    ],
)
def test_an_operation_with_a_damaged_place_is_not_exact(
    old: sqlite3.Connection, change: str
) -> None:
    """All its items are found."""
    add_to_turn(old, "a", "b")
    change_cells(old, "ops", f"{change} WHERE counter = 2")
    found = rebuilt(old)
    assert found.operation.payloads == ('"a"', '"b"')
    assert (found.lost, found.digest, found.is_exact) == ([], None, False)


@pytest.mark.parametrize("change", ["turn_stamp = NULL", "turn_counter = 9", "branch = 7"])
def test_a_damaged_turn_does_not_matter_to_version_1(old: sqlite3.Connection, change: str) -> None:
    """Such an operation is always the head of its own turn, so its digest stays valid."""
    add(old, "a")
    change_cells(old, "ops", f"version = 1, {change}")
    operation = rebuilt(old).operation
    assert (operation.version, operation.turn) == (1, None)
    digest = operation.digest(session_key(SESSION))
    change_cells(old, "ops", f"digest = '{digest}'")
    assert (rebuilt(old).digest, rebuilt(old).is_exact) == (digest, True)


def test_a_mark_has_its_payload(old: sqlite3.Connection) -> None:
    """A damaged one is a loss. An encrypted one may have any text."""
    writes.write_mark(old, author(), SESSION, Mark("title", "", "a title"))
    found = rebuilt(old)
    assert found.operation.kind is Kind.MARK
    assert found.operation.payloads == ('{"type":"title","key":"","value":"a title"}',)
    old.execute("UPDATE ops SET body = '{}', key_id = 'k'")
    assert rebuilt(old).operation.payloads == ("{}",)
    change_cells(old, "ops", "key_id = '', body = x'00'")
    losses = Losses()
    (row,) = scan_operations(old, losses)
    assert rebuild_operation(old, row, session_key(SESSION), losses) is None
    assert len(losses.named) == 1


@pytest.mark.parametrize(
    "change",
    ["writer = 7", "counter = 0", "stamp = NULL", "count = 1 << 40", "kind = 'x'", "kind = NULL"],
)
def test_an_operation_that_cannot_be_identified_is_a_loss(
    old: sqlite3.Connection, change: str
) -> None:
    """The loss names what is in its row."""
    add(old, "a")
    change_cells(old, "ops", change)
    losses = Losses()
    (row,) = scan_operations(old, losses)
    assert rebuild_operation(old, row, session_key(SESSION), losses) is None
    (loss,) = losses.named
    assert loss.startswith(f"operation {row.writer}:{row.counter}: ")


@pytest.mark.parametrize("call", [writes.pop, writes.clear])
def test_a_removal_without_a_valid_payload_is_a_loss(old: sqlite3.Connection, call: object) -> None:
    """Nothing is removed on behalf of damage."""
    add(old, "a")
    call(old, author(), SESSION)  # type: ignore[operator]
    old.execute("UPDATE ops SET body = '{' WHERE kind <> 'append'")
    losses = Losses()
    (*_, row) = scan_operations(old, losses)
    assert rebuild_operation(old, row, session_key(SESSION), losses) is None
    assert len(losses.named) == 1
