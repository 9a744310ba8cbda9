"""Copying of a journal's operations and of what belongs to them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from cached_session.history.ops import Mark, TurnKey
from cached_session.history.turns import TurnChoice
from cached_session.journal.recovery import copy_rows
from cached_session.journal.recovery.copy_rows import WriterIds, copy_journal
from cached_session.journal.recovery.report import RecoveryReport, read_report
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import outbox, writes
from cached_session.journal.tables.calls import turn_of_calls
from cached_session.journal.tables.marks import read_marks
from cached_session.journal.tables.meta import read_meta, write_meta
from cached_session.journal.tables.payloads import SEPARATOR
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, PLACE, SENT
from tests.journal_rows import change_payloads, set_states
from tests.unit.journal.recovery.recovery_support import (
    SESSION,
    WRITER,
    acknowledge,
    add,
    author,
    change_cells,
    dots,
    items,
)

FRESH = "afresher"


def copy(old: sqlite3.Connection, new: sqlite3.Connection) -> RecoveryReport:
    report = RecoveryReport(5000, "damage", "1:2")
    return copy_journal([old], new, report, WriterIds(WRITER, FRESH))


def test_every_operation_keeps_its_dot_and_its_state(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """Appends, pops and clears of all sessions are copied, and so is the reason of parked ones."""
    add(old, "a", "b")
    acknowledge(old)
    writes.pop(old, author(), SESSION)
    add(old, "refused")
    outbox.park(old, 3, "too large")
    add(old, "c", session="half \ud83d")
    writes.clear(old, author(), "half \ud83d")
    add(old, "d", session="half \ud83d")
    report = copy(old, new)
    assert (report.operations, report.unsent, report.lost) == (6, 5, ())
    assert dots(new) == dots(old)
    assert [state for _, _, state in dots(new)][:3] == [ACKED, PENDING, PARKED]
    assert items(new) == items(old) == ['"a"', '"refused"', '"d"']
    errors = "SELECT error FROM waiting WHERE state = 3"
    assert new.execute(errors).fetchall() == [("too large",)]


def test_turns_calls_and_marks_are_copied(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Calls and marks come from the operations, so the tables with them may be lost. The mark that
    is last in order counts, and operations keep their turns and digests."""
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    writes.append(old, author(), SESSION, encode_items([call]), private=False)
    for writer, value in (("amarker0", 1), ("zmarker0", 2), ("amarker0", 3)):
        writes.write_mark(old, author(writer), SESSION, Mark("title", "", value))
        acknowledge(old)
    turn = turn_of_calls(old, 1, ["c"])
    answer = encode_items([{"type": "function_call_output", "call_id": "c", "output": "found"}])
    choice = TurnChoice(answers=("c",))
    writes.append(old, author(), SESSION, answer, private=False, choice=choice)
    old.execute("DELETE FROM calls")
    old.execute("DELETE FROM marks")
    assert copy(old, new).lost == ()
    placed = f"SELECT {PLACE}, kind, version, digest FROM ops ORDER BY seq"
    assert new.execute(placed).fetchall() == old.execute(placed).fetchall()
    assert turn_of_calls(new, 1, ["c"]) == turn
    newest = max(row[3:6] for row in old.execute(placed) if row[6] == "mark")
    (found,) = read_marks(new, SESSION, "title", None)
    assert (found.stamp, *found.dot) == newest
    # A second copy of the same operations changes no mark.
    copy(old, new)
    assert read_marks(new, SESSION, None, None) == [found]


@pytest.mark.parametrize("state", [PENDING, PARKED, SENT, ACKED])
def test_a_damaged_operation_is_written_again_only_if_it_was_never_sent(
    old: sqlite3.Connection, new: sqlite3.Connection, state: int
) -> None:
    """The items get a dot of the fresh writer id. Under the old dot, other replicas may have the
    intact operation. The server may have an operation that was sent, so that one is left to it."""
    add(old, "head")
    (place,) = old.execute("SELECT turn_stamp, turn_writer, turn_counter FROM ops").fetchall()
    choice = TurnChoice(block=TurnKey(*place))
    batch = encode_items(["a", "b"])
    writes.append(old, author(), SESSION, batch, private=False, choice=choice)
    set_states(old, state)
    change_cells(old, "ops", "turn_counter = NULL WHERE counter = 2")
    report = copy(old, new)
    if state in (PENDING, PARKED):
        assert (report.operations, report.lost) == (2, ())
        assert items(new) == ['"head"', '"a"', '"b"']
        assert dots(new) == [(WRITER, 1, state), (FRESH, 1, PENDING)]
        assert "operations written again: 1" in report.why
        # Another process that copies the same file does not write the items twice.
        copy(old, new)
    else:
        what = (
            f"the content of operation {WRITER}:2 in session '{SESSION}', unless the server has it"
        )
        assert (report.operations, report.lost) == (1, (what,) if state == SENT else ())
        assert items(new) == ['"head"']
    assert len(dots(new)) == report.operations


def test_a_second_copy_changes_nothing(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Operations that the new journal has are not counted, and their payloads are not read."""
    add(old, "a", "b")
    copy(old, new)
    old.execute("UPDATE ops SET live = 0, body = NULL")
    report = copy(old, new)
    assert (report.operations, report.unsent, report.lost) == (0, 0, ())
    assert items(new) == ['"a"', '"b"']


def test_the_new_journal_holds_the_report(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """The old writer id is retired, because its next counter is not known."""
    add(old, "a")
    report = copy(old, new)
    meta = read_meta(new)
    assert read_report(meta) == report
    assert f"retired:{WRITER}" in meta


@pytest.mark.promise(number=9)
def test_no_removal_is_recorded_for_lost_items(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """The items that can be read are written again, and the report names the others."""
    add(old, "a", "b", "c")
    change_payloads(old, lambda at, text: text if at == 1 else b"{")
    report = copy(old, new)
    assert items(new) == ['"b"']
    assert new.execute("SELECT kind, writer, counter FROM ops").fetchall() == [("append", FRESH, 1)]
    assert new.execute("SELECT count(*) FROM popped").fetchone() == (0,)
    assert report.lost == (
        f"item 0 of operation {WRITER}:1 in session '{SESSION}'",
        f"item 2 of operation {WRITER}:1 in session '{SESSION}'",
    )


def test_an_acknowledged_batch_with_lost_items_is_left_to_the_server(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """It is not a loss, and nothing is popped."""
    add(old, "a", "b")
    acknowledge(old)
    add(old, "c")
    change_payloads(old, lambda _, text: b"{" if text == b'"a"' else text)
    report = copy(old, new)
    assert (report.operations, report.lost) == (1, ())
    assert dots(new) == [(WRITER, 2, PENDING)]


def test_an_intact_operation_of_a_further_source_counts(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """An open connection may have pages in its cache that are damaged in the file."""
    add(old, "a")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as intact:
        old.backup(intact)
        change_cells(old, "ops", "digest = NULL")
        report = RecoveryReport(5000, "damage", "1:2")
        report = copy_journal([old, intact], new, report, WriterIds(WRITER, FRESH))
    assert (report.operations, report.lost, report.why) == (1, (), "damage")
    assert dots(new) == [(WRITER, 1, PENDING)]


def test_operations_of_an_unknown_session_are_lost(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """The report names each."""
    add(old, "a")
    add(old, "b", session="other")
    old.execute("DELETE FROM sessions WHERE session_id = 'other'")
    report = copy(old, new)
    assert items(new) == ['"a"']
    assert report.lost == (f"operation {WRITER}:1 of a session whose id cannot be read",)


def test_the_effect_is_written_in_several_steps(
    old: sqlite3.Connection, new: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a copy does not grow with the number of operations."""
    monkeypatch.setattr(copy_rows, "OPERATIONS_A_FLUSH", 2)
    for number in range(5):
        add(old, str(number))
        add(old, str(number), session="other")
    copy(old, new)
    assert dots(new) == dots(old)
    assert items(new) == items(old)


def test_claims_and_memories_to_delete_are_copied(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """The server does not have them. Rows with damaged cells are left out."""
    add(new, "of another session", session="first")
    add(old, "a", "b")
    old.execute(f"INSERT INTO claims VALUES (1, '{WRITER}', 1, 1, 'claimer', 7, 1)")
    forgets = f"INSERT INTO forgets VALUES (1, '{WRITER}', 1, 0, ?, '{WRITER}', 1)"
    old.execute(forgets, (1,))
    old.execute("PRAGMA ignore_check_constraints = ON")
    old.execute(forgets.replace("1, 0, ?", "2, 0, ?"), (0,))
    report = copy(old, new)
    assert new.execute("SELECT * FROM claims").fetchall() == [(2, WRITER, 1, 1, "claimer", 7, 1)]
    assert new.execute("SELECT * FROM forgets").fetchall() == [(2, WRITER, 1, 0, 1, WRITER, 1)]
    assert report.lost == ("a row of table forgets",)


def test_the_server_and_the_marks_of_imports_are_copied(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """Other meta rows are about the old file. A mark of the new journal is not replaced."""
    marks = {"import:1:a": "3:ab", "import:1:b": "4:ab"}
    write_meta(old, server="https://a", last_ack_ms="1000", **marks)
    write_meta(new, server="https://b", **{"import:1:a": "5:ab"})
    copy(old, new)
    found = dict(new.execute("SELECT key, value FROM meta").fetchall())
    assert found["server"] == "https://a"
    assert (found["import:1:a"], found["import:1:b"]) == ("5:ab", "4:ab")
    assert "last_ack_ms" not in found


def test_a_damaged_mark_of_an_import_is_a_loss(
    old: sqlite3.Connection, new: sqlite3.Connection
) -> None:
    """Without it, the same source may be imported twice."""
    write_meta(old, **{"import:1:a": "nothing"})
    report = copy(old, new)
    assert report.lost == ("the meta row 'import:1:a'",)
    assert read_report(read_meta(new)) == report


def test_an_error_leaves_the_new_journal_unchanged(
    old: sqlite3.Connection, new: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is one transaction, and the text factory of the old connection is restored."""
    add(old, "a")

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(copy_rows, "write_report", fail)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        copy(old, new)
    assert items(new) == []
    assert not new.in_transaction
    assert old.text_factory is str


def test_an_open_transaction_stays_open(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """The caller decides when it is committed."""
    add(old, "a")
    new.execute("BEGIN IMMEDIATE")
    copy(old, new)
    assert new.in_transaction
    new.execute("ROLLBACK")
    assert items(new) == []


def test_a_removed_item_stays_removed(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Its payload is no longer in the old journal."""
    add(old, "a", "b")
    writes.pop(old, author(), SESSION)
    copy(old, new)
    assert items(new) == ['"a"']
    assert new.execute("SELECT body FROM ops WHERE kind = 'append'").fetchall() == [
        (f'"a"{SEPARATOR}',)
    ]
