"""Functions that read a damaged journal file: each row that SQLite can still read."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from cached_session.journal.recovery import row_check
from cached_session.journal.recovery.report import Losses
from cached_session.journal.sqlite.db_errors import is_transient
from cached_session.journal.tables.sessions import session_ids
from cached_session.journal.tables.states import ACKED, BY_DOT, SENT

__all__ = [
    "OperationRow",
    "decode_or_keep",
    "raise_if_transient",
    "read_row",
    "read_rows",
    "read_session_ids",
    "read_unsent",
    "scan_operations",
]

MAX_PROBES = 1_000_000
"""Maximum number of row numbers that are tried one by one after a damaged page."""
TRIES = 2
"""The number of attempts to read a row. SQLite reports a page as malformed even if the disk failed
to read the page only once, so a row counts as lost only after a second attempt."""
NUMBERS = 8
"""The number of rows before a damaged row whose numbers are compared with those behind it."""
DEFAULT_HIGHEST = 10_000
"""The highest row number that is tried if the highest row number of the file cannot be read."""
DOT = ("session", "writer", "counter")
"""The columns that identify an operation."""
NO_COLUMN = object()
"""Value of a cell of a column that the file's format does not have."""


@dataclass(frozen=True)
class OperationRow:
    """A row of the `ops` table, with the state of the operation. The cells of a damaged row can
    have any type.

    A column with a default does not exist in every format.
    """

    seq: Any
    session: Any
    writer: Any
    counter: Any
    kind: Any
    stamp: Any
    said_ms: Any
    count: Any
    live: Any
    private: Any
    digest: Any
    body: Any
    state: Any = NO_COLUMN
    error: Any = None
    turn_stamp: Any = NO_COLUMN
    turn_writer: Any = NO_COLUMN
    turn_counter: Any = NO_COLUMN
    branch: Any = NO_COLUMN
    key_id: Any = NO_COLUMN
    version: Any = NO_COLUMN
    has_items: bool = False
    """True if the file has a table of items: its format is older."""

    @property
    def has_turn(self) -> bool:
        """False if the file has format 1 or 2. The operations of such a file have no turn, and have
        wire version 1."""
        return self.turn_stamp is not NO_COLUMN

    @property
    def place(self) -> tuple[Any, ...]:
        """The values of the columns `PLACE`."""
        turn = (self.turn_stamp, self.turn_writer, self.turn_counter)
        return (*turn, self.stamp, self.writer, self.counter)


class _States:
    """The states of the operations of a file that has them in the tables `waiting` and `acked`.

    States are found by the dots of operations: the number of a damaged row may be that of another
    operation.
    """

    def __init__(self, conn: sqlite3.Connection, losses: Losses) -> None:
        self._conn = conn
        sql = f"SELECT {', '.join(DOT)}, state, error FROM waiting"
        self._waiting = {
            tuple(dot): (state, error)
            for *dot, state, error in read_rows(conn, sql, "waiting", losses)
        }

    def of(self, dot: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the state of an operation, and its error.

        The operation counts as sent if its state cannot be read: sending it again has no effect.
        """
        known = self._waiting.get(dot)
        if known is not None:
            return known
        try:
            is_acked = read_row(self._conn, f"SELECT 1 FROM acked WHERE {BY_DOT}", dot)
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
            is_acked = None
        return (ACKED if is_acked else SENT, None)


class _Operations:
    """The operations of a file, with the columns that the file's format has."""

    def __init__(self, conn: sqlite3.Connection, losses: Losses) -> None:
        self.conn = conn
        try:
            found = {name for (name,) in conn.execute("SELECT name FROM pragma_table_info('ops')")}
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
            found = set()
        of_row = {field.name for field in fields(OperationRow)} - {"seq", "has_items"}
        self._has_items = "state" in found
        required = {field.name for field in fields(OperationRow) if field.default is MISSING}
        self.names = sorted(of_row & (found or required))
        # NOT INDEXED: read the table itself. An index may be damaged while the table is not.
        self.sql = f"SELECT seq, {', '.join(self.names)} FROM ops NOT INDEXED"
        self._states = None if self._has_items else _States(conn, losses)

    def row(self, cells: tuple[Any, ...]) -> OperationRow:
        """Return the operation of a row of `sql`."""
        seq, *values = cells
        named = dict(zip(self.names, values, strict=True), seq=seq, has_items=self._has_items)
        if self._states is not None:
            dot = tuple(named[name] for name in DOT)
            named["state"], named["error"] = self._states.of(dot)
        return OperationRow(**named)


def decode_or_keep(cell: bytes) -> str | bytes:
    """Return a text cell as a string, or as bytes if it is not valid UTF-8. A connection with this
    text factory can read the other cells of such a row."""
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell


def read_rows(
    conn: sqlite3.Connection, sql: str, table: str, losses: Losses, key: tuple[Any, ...] = ()
) -> list[tuple[Any, ...]]:
    """Return the rows of a query up to the first damage. Add a loss if there is damage."""
    most: list[tuple[Any, ...]] = []
    for _ in range(TRIES):
        found: list[tuple[Any, ...]] = []
        try:
            for row in conn.execute(sql, key):
                found.append(row)  # noqa: PERF402 - keeps the rows before the damage
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
            most = max(most, found, key=len)
        else:
            return found
    losses.add(f"rows of table {table}")
    return most


def read_session_ids(conn: sqlite3.Connection, losses: Losses) -> dict[int, str]:
    """Return the session ids by row number. If the table is damaged, also read its unique index,
    which has both columns."""
    of_table = Losses()
    rows = read_rows(conn, "SELECT session_id, id FROM sessions NOT INDEXED", "sessions", of_table)
    if of_table.named:
        index = "sessions INDEXED BY sqlite_autoindex_sessions_1"
        rows += read_rows(conn, f"SELECT session_id, id FROM {index}", "sessions", losses)
    found: dict[int, str] = {}
    for session_id, number in rows:
        if row_check.is_session_id(session_id):
            found[number] = next(session_ids([(session_id,)]))
        else:
            losses.add(f"the id of the session with row number {number}")
    return found


def scan_operations(conn: sqlite3.Connection, losses: Losses) -> Iterator[OperationRow]:
    """Yield the rows of operations: in the order of writing up to a damaged row, then latest first
    from the end of the table, and then the rows between two damaged rows by their numbers."""
    operations, highest = _Operations(conn, losses), _highest_number(conn)
    numbers = yield from _scan_forwards(conn, operations)
    if numbers:
        end = yield from _scan_backwards(conn, operations, numbers[-1])
        below = highest + 1 if end is None else end
        first = max(number for number in (0, *numbers) if number < below) + 1
        yield from _probe(conn, operations, first, end, highest, losses)


def _scan_forwards(
    conn: sqlite3.Connection, operations: _Operations
) -> Generator[OperationRow, None, Sequence[int]]:
    """Yield rows in the order of writing. Return the numbers of the last rows before the damage; an
    empty sequence if there is no damage."""
    count = failures = 0
    # The numbers of the last rows may themselves be wrong, and higher than all others.
    numbers = deque([0], maxlen=NUMBERS)
    while failures < TRIES:
        start = count
        try:
            # A wrong number would mislead a search for the next number, so the scan is resumed by
            # the number of rows.
            sql = f"{operations.sql} ORDER BY seq LIMIT -1 OFFSET ?"
            for row in conn.execute(sql, (count,)):
                yield operations.row(row)
                count += 1
                numbers.append(row[0])
            return ()
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
        failures = 1 if count > start else failures + 1
    return numbers


def _scan_backwards(
    conn: sqlite3.Connection, operations: _Operations, known: int
) -> Generator[OperationRow, None, int | None]:
    """Yield the rows at the end of the table, latest first, up to a damaged row or the row
    ``known``. Return the lowest number of these rows; None if there is no such row."""
    end = None
    for row in _rows_from_end(conn, operations.sql):
        if row[0] == known:
            break
        yield operations.row(row)
        end = row[0] if end is None else min(end, row[0])
    return end


def _rows_from_end(conn: sqlite3.Connection, operations: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of operations up to the last damage, latest first."""
    sql, count = f"{operations} ORDER BY seq DESC", 0
    try:
        for row in conn.execute(sql):
            yield row
            count += 1
    except sqlite3.DatabaseError as error:
        raise_if_transient(error)
    else:
        return
    try:
        # A cursor does not return the last row before the damage.
        yield from conn.execute(f"{sql} LIMIT 1 OFFSET ?", (count,)).fetchmany(1)
    except sqlite3.DatabaseError as error:
        raise_if_transient(error)


def read_unsent(conn: sqlite3.Connection) -> list[tuple[int, int, str, int]]:
    """Return the (`seq`, session, writer, counter) of each unsent operation in the table
    `waiting`; an empty list for a file of an older format."""
    sql = "SELECT seq, session, writer, counter FROM waiting ORDER BY seq"
    return [
        row
        for row in read_rows(conn, sql, "waiting", Losses())
        if tuple(map(type, row)) == (int, int, str, int)
    ]


def _highest_number(conn: sqlite3.Connection) -> int:
    for sql in (
        "SELECT seq FROM sqlite_sequence WHERE name = 'ops'",
        "SELECT max(seq) FROM (SELECT seq FROM waiting UNION ALL SELECT seq FROM acked)",
        "SELECT max(seq) FROM ops NOT INDEXED",
    ):
        try:
            row = conn.execute(sql).fetchone()
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
            continue
        if row and isinstance(row[0], int):
            return row[0]
    return DEFAULT_HIGHEST


def _probe(
    conn: sqlite3.Connection,
    operations: _Operations,
    first: int,
    end: int | None,
    highest: int,
    losses: Losses,
) -> Iterator[OperationRow]:
    """Yield the operations that can be read among the row numbers from ``first`` on, up to but not
    including ``end`` (None: up to the highest number). Add a loss for each range between them."""
    lost = first
    for seq in range(first, min(highest + 1 if end is None else end, first + MAX_PROBES)):
        try:
            row = read_row(conn, f"{operations.sql} WHERE seq = ?", (seq,))
        except sqlite3.DatabaseError as error:
            raise_if_transient(error)
            continue
        if row is not None:
            if lost < seq:
                losses.add(f"operations in rows {lost} to {seq - 1}")
            lost = seq + 1
            yield operations.row(row)
    if end is None:
        losses.add(f"operations from row {lost} on")
    elif lost < end:
        losses.add(f"operations in rows {lost} to {end - 1}")


def read_row(conn: sqlite3.Connection, sql: str, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return one row, or None if the query finds no row.

    Raises:
        sqlite3.DatabaseError: two attempts to read the row failed.
    """
    try:
        row: tuple[Any, ...] | None = conn.execute(sql, key).fetchone()
    except sqlite3.DatabaseError as error:
        raise_if_transient(error)
        row = conn.execute(sql, key).fetchone()
    return row


def raise_if_transient(error: sqlite3.DatabaseError) -> None:
    """Raise an error that is not damage. A recovery then stops and leaves the file in place."""
    if is_transient(error):
        raise error
