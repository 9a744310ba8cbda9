"""Reading of rows around damaged pages and cells."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cached_session.history.ops import GONE
from cached_session.journal.recovery.read_damaged import (
    NO_COLUMN,
    OperationRow,
    decode_or_keep,
    read_rows,
    read_session_ids,
    scan_operations,
)
from cached_session.journal.recovery.read_payloads import Payloads, read_payloads
from cached_session.journal.recovery.report import Losses
from cached_session.journal.tables import outbox, writes
from cached_session.journal.tables.payloads import SEPARATOR
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from tests.golden.test_golden_journals import write_journal
from tests.journal_rows import change_payloads
from tests.unit.journal.recovery.recovery_support import (
    add,
    author,
    change_cells,
    open_journal,
    overwrite_page,
)

MALFORMED = sqlite3.DatabaseError("database disk image is malformed")
LOCKED = sqlite3.OperationalError("database is locked")


class Cursor:
    """Rows, and the error that follows them."""

    def __init__(self, rows: Iterable[tuple[Any, ...]], error: Exception | None = None) -> None:
        self._rows = iter(rows)
        self._error = error

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> tuple[Any, ...]:
        for row in self._rows:
            return row
        if self._error is not None:
            raise self._error
        raise StopIteration

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self, None)

    def fetchmany(self, most: int) -> list[tuple[Any, ...]]:
        return list(islice(self, most))


class Connection:
    """A connection whose queries a function answers."""

    def __init__(self, answer: Callable[[str, tuple[Any, ...]], Cursor]) -> None:
        self._answer = answer

    def execute(self, sql: str, key: tuple[Any, ...] = ()) -> Cursor:
        return self._answer(sql, key)


def connection(answer: Callable[[str, tuple[Any, ...]], Cursor]) -> sqlite3.Connection:
    return Connection(answer)  # type: ignore[return-value]


COLUMNS = [(field.name,) for field in fields(OperationRow) if field.name != "has_items"]


def operation(seq: int) -> tuple[Any, ...]:
    return (seq, *["cell"] * (len(COLUMNS) - 1))


def table_of(
    readable: Iterable[int], *, highest: int, damaged: Iterable[int] = ()
) -> sqlite3.Connection:
    """Return a journal with these rows, in which a scan stops at each damaged row number."""
    rows, broken = sorted(readable), set(damaged)

    def answer(sql: str, key: tuple[Any, ...]) -> Cursor:
        if "pragma_table_info" in sql:
            return Cursor(COLUMNS)
        if "sqlite_sequence" in sql:
            return Cursor([(highest,)])
        if "DESC" in sql:
            found = [seq for seq in reversed(rows) if seq > max(broken)]
            return Cursor(map(operation, found[key[0] if key else 0 :]), MALFORMED)
        if "seq = ?" in sql:
            (seq,) = key
            return Cursor(
                [operation(seq)] if seq in rows else [], MALFORMED if seq in broken else None
            )
        found = [seq for seq in rows if seq < min(broken, default=highest + 1)]
        return Cursor(map(operation, found[key[0] :]), MALFORMED if broken else None)

    return connection(answer)


def scanned(conn: sqlite3.Connection) -> tuple[list[int], list[str]]:
    losses = Losses()
    return [row.seq for row in scan_operations(conn, losses)], losses.named


def test_a_row_has_its_columns_by_name(old: sqlite3.Connection) -> None:
    """The rows come in the order of writing."""
    add(old, "a", "b")
    writes.pop(old, author(), "talk")
    append, pop = scan_operations(old, Losses())
    assert (append.seq, append.kind, append.count, append.live) == (1, "append", 2, 1)
    assert append.body.rstrip(" ") == f'"a"{SEPARATOR}'
    assert (pop.seq, pop.kind, pop.counter, pop.state) == (2, "pop", 2, PENDING)


def test_the_state_of_an_operation_is_known_from_other_tables(old: sqlite3.Connection) -> None:
    """An operation that waits has its state and error there. If the table cannot be read, an
    operation that is not known to be acknowledged counts as sent."""
    for word in "abc":
        add(old, word)
    outbox.acknowledge(old, [1])
    outbox.park(old, 2, "too large")
    found = [(row.state, row.error) for row in scan_operations(old, Losses())]
    assert found == [(ACKED, None), (PARKED, "too large"), (PENDING, None)]
    old.execute("DROP TABLE waiting")
    losses = Losses()
    found = [(row.state, row.error) for row in scan_operations(old, losses)]
    assert found == [(ACKED, None), (SENT, None), (SENT, None)]
    assert losses.named == ["rows of table waiting"]


def test_rows_behind_a_damaged_page_are_found() -> None:
    """They are read from the end of the table. The loss names the row numbers between them."""
    table = table_of([1, 2, 3, 6, 7], highest=7, damaged=[4, 5])
    assert scanned(table) == ([1, 2, 3, 7, 6], ["operations in rows 4 to 5"])


def test_several_damaged_pages_are_losses_of_their_own() -> None:
    """The scan goes on after each."""
    table = table_of([1, 3, 5], highest=5, damaged=[2, 4])
    found, losses = scanned(table)
    assert found == [1, 5, 3]
    assert losses == ["operations in rows 2 to 2", "operations in rows 4 to 4"]


def test_damage_up_to_the_end_is_one_loss() -> None:
    """The scan tries the row numbers up to the highest one, and then ends."""
    table = table_of([1, 2], highest=9, damaged=[3, 4, 5, 6, 7, 8, 9])
    assert scanned(table) == ([1, 2], ["operations from row 3 on"])


def test_a_page_that_failed_once_is_no_loss() -> None:
    """SQLite reports a failed read like damage, so the scan is repeated."""
    errors = [MALFORMED, None]

    def answer(sql: str, key: tuple[Any, ...]) -> Cursor:
        if "pragma_table_info" in sql:
            return Cursor(COLUMNS)
        if "sqlite_sequence" in sql:
            return Cursor([(3,)])
        rows = [operation(seq) for seq in range(key[0] + 1, 4)]
        error = errors.pop(0)
        return Cursor(rows[:1], error) if error else Cursor(rows)

    assert scanned(connection(answer)) == ([1, 2, 3], [])


@pytest.mark.parametrize("what", ["scan", "number", "probe"])
def test_an_error_that_is_not_damage_stops_the_scan(what: str) -> None:
    """A lock or a failing disk must not look like lost operations."""

    def answer(sql: str, key: tuple[Any, ...]) -> Cursor:
        if "pragma_table_info" in sql:
            return Cursor(COLUMNS)
        kind = "number" if "sqlite_sequence" in sql else "probe" if "seq = ?" in sql else "scan"
        if kind == what:
            return Cursor([], LOCKED)
        return Cursor([(3,)]) if kind == "number" else Cursor([], MALFORMED)

    with pytest.raises(sqlite3.OperationalError, match="locked"):
        scanned(connection(answer))


def test_rows_up_to_the_damage_are_kept() -> None:
    """The longer of two attempts counts, and the loss names the table."""
    attempts = [[(1,), (2,)], [(1,)]]
    losses = Losses()
    conn = connection(lambda sql, key: Cursor(attempts.pop(0), MALFORMED))
    assert read_rows(conn, "SELECT 1", "claims", losses) == [(1,), (2,)]
    assert losses.named == ["rows of table claims"]
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        read_rows(connection(lambda sql, key: Cursor([], LOCKED)), "SELECT 1", "claims", losses)


def test_session_ids_are_read_from_the_index_of_a_damaged_table(path: Path) -> None:
    """The unique index has all of them, so there is no loss."""
    with closing(open_journal(path)) as conn:
        for session in ("s", "t", "half \ud83d"):
            add(conn, "a", session=session)
    overwrite_page(path, "sessions")
    losses = Losses()
    with closing(sqlite3.connect(path)) as conn:
        assert read_session_ids(conn, losses) == {1: "s", 2: "t", 3: "half \ud83d"}
    assert losses.named == []


def test_a_session_id_that_is_not_valid_is_a_loss(old: sqlite3.Connection) -> None:
    """The other ids are read."""
    add(old, "a")
    old.execute("INSERT INTO sessions (session_id, created_ms) VALUES (x'ff', 1)")
    losses = Losses()
    assert read_session_ids(old, losses) == {1: "talk"}
    assert losses.named == ["the id of the session with row number 2"]


def payloads(conn: sqlite3.Connection) -> tuple[list[str], list[int]]:
    (row, *_) = scan_operations(conn, Losses())
    found = read_payloads(conn, row)
    assert found.is_placed
    return found.texts, found.lost


def test_payloads_are_read_in_their_order(old: sqlite3.Connection) -> None:
    """A removed item is not a lost one."""
    add(old, "a", "b", "c")
    assert payloads(old) == (['"a"', '"b"', '"c"'], [])
    writes.pop(old, author(), "talk")
    assert payloads(old) == (['"a"', '"b"', GONE], [])


@pytest.mark.parametrize("payload", [b"\x80\xff", b"{", b"", b"   "])
def test_a_damaged_payload_is_lost(old: sqlite3.Connection, payload: bytes) -> None:
    """The other items of the batch are kept."""
    add(old, "a", "b", "c")
    change_payloads(old, lambda at, text: payload if at == 1 else text)
    old.text_factory = decode_or_keep
    assert payloads(old) == (['"a"', GONE, '"c"'], [1])


@pytest.mark.parametrize("body", ["NULL", "'\"a\"'", "7", "CAST(x'80' AS TEXT)"])
def test_a_body_without_its_separators_is_lost(old: sqlite3.Connection, body: str) -> None:
    """Nothing tells which payload belongs to which item."""
    add(old, "a", "b")
    change_cells(old, "ops", f"body = {body}")
    old.text_factory = decode_or_keep
    assert payloads(old) == ([GONE, GONE], [0, 1])


def test_items_on_a_damaged_page_are_read_one_by_one() -> None:
    """An item that cannot be read twice is lost."""
    row = OperationRow(1, 1, "w", 1, "append", 0, 0, 3, 3, 0, "d", None, has_items=True)

    class Items(Connection):
        def execute(self, sql: str, key: tuple[Any, ...] = ()) -> Any:
            if "idx = ?" not in sql or key[-1] == 1:
                raise MALFORMED
            return Cursor([(key[-1], b"%d" % key[-1])])

    conn: Any = Items(lambda sql, key: Cursor([]))
    assert read_payloads(conn, row) == Payloads(["0", GONE, "2"], [1])


def test_a_file_of_an_old_format_has_no_turns(tmp_path: Path) -> None:
    """Its rows lack the columns, and the items are found by the stamp."""
    with closing(sqlite3.connect(write_journal(tmp_path / "old.db", 2))) as conn:
        row, *_ = scan_operations(conn, Losses())
        assert (row.turn_stamp, row.version, row.has_turn) == (NO_COLUMN, NO_COLUMN, False)
        found = read_payloads(conn, row)
    assert found == Payloads(['{"role":"user","content":"what is the weather?"}'], [])


def test_a_cell_that_is_not_utf8_stays_as_bytes() -> None:
    """The other cells of its row can be read."""
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.text_factory = decode_or_keep
        row = conn.execute("SELECT CAST(x'80ff' AS TEXT), 'b'").fetchone()
    assert row == (b"\x80\xff", "b")
