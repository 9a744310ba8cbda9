"""Loops and recursive queries over rows with a damaged cell: each of them ends."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cached_session.errors import InvalidArgument
from cached_session.history.frontier import Frontier
from cached_session.history.ops import Dot, ItemRef, Kind, Operation, encode_clear, encode_pop
from cached_session.history.session_ref import SessionRef
from cached_session.journal.recovery import read_damaged
from cached_session.journal.recovery.report import Losses
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.sqlite.db_errors import FOREIGN_ERRORS
from cached_session.journal.tables import item_rows, outbox, schema, search_index, writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.outbox import Forget
from cached_session.journal.tables.states import ACKED
from cached_session.moving import sqlite as agents_database
from cached_session.replication import audit
from tests.journal_rows import set_states, spoil

pytestmark = pytest.mark.timeout(10)

S = "talk"
STEPS_MOST = 1_000_000
"""Steps of SQLite that no query here takes: one that does is taken to have no end."""
SPOILED = ["'5'", "'x'", "''", "x'0035'", "1.5", "9e999", "-9e999"]
SPOILED += ["0", "-1", str(1 << 62), str((1 << 63) - 1), str(-(1 << 63)), "CAST(x'80ff' AS TEXT)"]


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    """The tables of a journal, over a connection that interrupts a query without end."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        left = STEPS_MOST // 1000

        def step() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        conn.set_progress_handler(step, 1000)
        yield conn
        assert left >= 0, "a query was interrupted"


def damage(conn: sqlite3.Connection, table: str, change: str) -> None:
    """Change rows of a table as if its columns accepted any value."""
    (sql,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    for said in (re.sub(r" (TEXT|INTEGER)(?! PRIMARY KEY)| NOT NULL", "", sql), sql):
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (said, table))
        conn.execute("PRAGMA writable_schema = RESET")
        if said is not sql:
            spoil(conn, f"UPDATE {table} SET {change}")


def author() -> writes.Author:
    return writes.Author("mewriter", 1, 600_000)


def add(conn: sqlite3.Connection, *words: str, session: str = S) -> None:
    writes.append(conn, author(), session, encode_items(list(words)), private=False)


def op(counter: int, kind: Kind, payload: str, writer: str = "other000") -> Operation:
    return Operation(Dot(writer, counter), kind, 1 << 20, 1, (payload,))


# -- the recursive query -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "value"),
    [(table, value) for table in ("waiting", "forgets") for value in SPOILED],
)
def test_a_damaged_session_number_does_not_make_pending_sessions_endless(
    conn: sqlite3.Connection, table: str, value: str
) -> None:
    """`pending_sessions` ends, and finds the sessions whose rows are sound."""
    for session in ("a", "b", "c"):
        add(conn, "word", session=session)
    if table == "forgets":
        set_states(conn, ACKED)
        for number in (1, 2, 3):
            conn.execute("INSERT INTO forgets VALUES (?, 'w', 1, 0, 1, '', 0)", (number,))
    damage(conn, table, f"session = {value} WHERE session = 2")
    assert {"a", "c"} <= set(outbox.pending_sessions(conn))


def test_the_search_for_unsent_work_steps_through_the_indexes(conn: sqlite3.Connection) -> None:
    """Each step is a search in an index: the history and the outbox are not scanned."""
    plan = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {outbox.WAITING}")]
    assert "SEARCH waiting USING PRIMARY KEY (session>?)" in plan
    assert "SEARCH forgets USING PRIMARY KEY (session>?)" in plan
    assert not [step for step in plan if re.match("SCAN (ops|waiting|forgets|sessions)", step)]


# -- slices of a history -------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["'12'", "x'12'", "1.5"])
@pytest.mark.parametrize("column", ["stamp", "counter", "turn_counter", "writer"])
def test_a_damaged_position_does_not_make_a_read_start_over(
    conn: sqlite3.Connection, column: str, value: str
) -> None:
    """A history in slices of one item ends, with all readable items or with an error that starts
    the search for damage."""
    for number in range(6):
        add(conn, str(number))
    damage(conn, "ops", f"{column} = {value} WHERE seq = 3")
    with suppress(ValueError):
        assert len(list(islice(item_rows.slices(conn, 1, 1, 1 << 20), 100))) <= 6


def test_unordered_items_do_not_make_a_read_start_over(tmp_path: Path) -> None:
    """A damaged stamp leads back to the beginning, and the read ends."""
    stamps = [0x5152_5354_5500 + number for number in range(1, 7)]
    path = tmp_path / "j.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        schema.prepare(conn, str(path))
        tx = SessionTransaction.create(conn, S, 1)
        for at, stamp in enumerate(stamps, 1):
            tx.apply(Operation(Dot("w", at), Kind.APPEND, stamp, 1, ("1",)))
        tx.finish()
    _overwrite(path, "place", stamps[3], stamps[0] - 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert len(list(islice(item_rows.slices(conn, 1, 2, 1 << 20), 100))) < len(stamps)


def _overwrite(path: Path, name: str, number: int, other: int) -> None:
    """Replace a number of six bytes on the first page of a table or index by another."""
    with closing(sqlite3.connect(path)) as conn:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (root,) = conn.execute(sql, (name,)).fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    data = path.read_bytes()
    page = data[(root - 1) * size : root * size]
    was, now = number.to_bytes(6, "big"), other.to_bytes(6, "big")
    assert was in page
    path.write_bytes(data[: (root - 1) * size] + page.replace(was, now) + data[root * size :])


# -- the frontier --------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["above", "cleared"])
@pytest.mark.parametrize("first", SPOILED)
def test_a_damaged_range_does_not_make_the_frontier_endless(
    conn: sqlite3.Connection, table: str, first: str
) -> None:
    """A range that begins below 1 would never close the prefix: applying an operation ends."""
    covered = Frontier.of([("other000", 1), ("other000", 2), ("other000", 5)])
    tx = SessionTransaction.create(conn, S, 1)
    tx.apply(op(1, Kind.CLEAR, encode_clear(covered), "third000"))
    tx.apply(op(4, Kind.APPEND, '"four"'))
    tx.finish()
    highest = f"SELECT max(first) FROM {table} WHERE writer = 'other000'"
    damage(conn, table, f"first = {first} WHERE first = ({highest})")
    for call in (_apply_next, _clear, _look_for_gaps):
        with suppress(*FOREIGN_ERRORS):
            call(conn)


def _apply_next(conn: sqlite3.Connection) -> None:
    tx = SessionTransaction.create(conn, S, 1)
    tx.apply(op(7, Kind.POP, encode_pop(ItemRef(Dot("other000", 6), 0, 1))))
    tx.finish()


def _clear(conn: sqlite3.Connection) -> None:
    writes.clear(conn, author(), S)


def _look_for_gaps(conn: sqlite3.Connection) -> None:
    tx = SessionTransaction.begin(conn, S)
    assert tx is not None
    assert len(tx.missing(200)) < 1000


@pytest.mark.parametrize("bounds", [(0, 3), (3, 2), (1, 1 << 60), (1, 1e300), ("1", 3), (1, None)])
def test_an_impossible_range_is_refused(conn: sqlite3.Connection, bounds: tuple[Any, Any]) -> None:
    """It raises an error that starts the search for damage, before a loop runs over it."""
    add(conn, "word")
    conn.execute("INSERT INTO settled VALUES (1, 'mewriter', 1, 1)")
    first, last = (f"'{bound}'" if isinstance(bound, str) else bound for bound in bounds)
    damage(conn, "settled", f"first = {first}, last = {'NULL' if last is None else last}")
    with pytest.raises(ValueError, match="is not valid"):
        writes.clear(conn, author(), S)


# -- the outbox ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [0, -1, -(1 << 63), (1 << 62) + 1])
def test_an_operation_with_a_damaged_number_is_taken(conn: sqlite3.Connection, seq: int) -> None:
    """An operation that counts as unsent is also sent: otherwise its session would be pushed
    without end."""
    add(conn, "word")
    spoil(conn, "UPDATE ops SET seq = ?", (seq,))
    spoil(conn, "UPDATE waiting SET seq = ?", (seq,))
    assert outbox.has_unsent(conn, S)
    last = (1 << 63) - 1
    assert outbox.take(conn, S, after=None, upto=last, most_ops=9, most_bytes=999) == [seq]


def test_rows_that_their_key_does_not_find_are_not_requested_again(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that a scan shows and its key does not find starts the search for damage, and one that
    another process has deleted does not."""
    add(conn, "word")
    conn.execute("INSERT INTO forgets VALUES (1, 'w', 1, 0, 1, '', 0)")
    (due,) = outbox.forgets_due(conn, S, 9)
    stuck = Forget(Dot("w", 2), 0, 1)
    monkeypatch.setattr(outbox, "forgets_due", lambda *_: [stuck])
    with pytest.raises(ValueError, match="cannot be found"):
        outbox.delete_forgets(conn, S, [due, stuck])
    monkeypatch.undo()
    outbox.delete_forgets(conn, S, [due])
    outbox.delete_forgets(conn, S, [due])


# -- others --------------------------------------------------------------------------------------


def test_an_index_that_makes_no_progress_is_not_built_endlessly(
    conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slice of the search index ends behind the one before."""

    class Disordered(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> Any:
            if sql.startswith("SELECT max(seq)"):
                return super().execute("SELECT 3, 1")
            return super().execute(sql, *args)

    with closing(sqlite3.connect(":memory:", isolation_level=None, factory=Disordered)) as other:
        schema.prepare(other, ":memory:")
        for _ in range(9):
            add(other, "word")
        with pytest.raises(ValueError, match="not in order"):
            search_index.catch_up(other, 5, 0, 2)


COLUMNS = {field.name for field in fields(read_damaged.OperationRow)} - {"has_items"}


class Damaged:
    """A journal whose rows lead back to an earlier number, and of which a page cannot be read."""

    numbers = (5, 3, 4)

    def execute(self, sql: str, key: tuple[int, ...] = ()) -> Any:
        if "sqlite_sequence" in sql:
            return Rows([(9,)])
        if "DESC" in sql:
            return Rows([])
        if "seq = ?" in sql:
            return Rows([_row(key[0])] if key[0] in self.numbers else [])
        if "pragma_table_info" in sql:
            return Rows([(name,) for name in COLUMNS])
        return self._scan(key[0])

    def _scan(self, start: int) -> Iterator[tuple[Any, ...]]:
        yield from map(_row, self.numbers[start:])
        raise sqlite3.DatabaseError("database disk image is malformed")


def _row(seq: int) -> tuple[Any, ...]:
    return (seq, *[None] * (len(COLUMNS) - 1))


class Rows(list[Any]):
    """A replacement for a cursor."""

    def fetchone(self) -> Any:
        return self[0] if self else None

    def fetchmany(self, most: int) -> Any:
        return self[:most]


def test_rows_that_lead_back_do_not_make_a_recovery_endless() -> None:
    """Every readable row is returned, and the scan ends."""
    losses = Losses()
    found = []
    for row in read_damaged.scan_operations(Damaged(), losses):  # type: ignore[arg-type]
        found.append(row.seq)
        assert len(found) < 100
    assert set(found) == set(Damaged.numbers)
    assert losses.named


async def test_an_audit_limits_an_endless_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that invents new memories is not read without end."""

    async def page(
        context: Any, session: SessionRef, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        assert offset < 100
        return [{"id": str(offset)}]

    class Options:
        page_size = 1

    class Context:
        options = Options

    monkeypatch.setattr(audit, "fetch_page", page)
    monkeypatch.setattr(audit, "MAX_PAGES", 5)
    with pytest.raises(audit.RemoteError, match="more than 5 pages"):
        await audit._list_all(Context(), SessionRef.of(S))  # type: ignore[arg-type]


def test_an_unordered_database_is_not_imported_endlessly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that ends before its beginning ends the import of an Agents SDK database."""
    path = tmp_path / "theirs.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE agent_messages (id INTEGER, session_id TEXT, message_data TEXT)")
        conn.execute(
            "CREATE TABLE message_structure (id INTEGER, session_id TEXT, branch_id TEXT, "
            "message_id INTEGER, sequence_number)"
        )
        for number in range(1, 4):
            conn.execute("INSERT INTO agent_messages VALUES (?, 's', '1')", (number,))
            conn.execute(
                "INSERT INTO message_structure VALUES (?, 's', 'main', ?, ?)",
                (number, number, number if number < 3 else "5"),
            )
    monkeypatch.setattr(agents_database, "PAGE", 1)
    with pytest.raises(InvalidArgument, match="not in order"):
        list(islice(agents_database.read_rows(path, "s", "main"), 100))
