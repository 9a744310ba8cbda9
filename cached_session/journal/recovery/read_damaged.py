"""Functions that read a damaged journal file: each row that SQLite can still read."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

from cached_session.history.ops import GONE
from cached_session.journal.recovery import row_check
from cached_session.journal.recovery.report import Losses
from cached_session.journal.sqlite.db_errors import is_transient
from cached_session.journal.tables.sessions import session_ids
from cached_session.journal.tables.states import BY_DOT, BY_PLACE

__all__ = [
    "OperationRow",
    "Payloads",
    "decode_or_keep",
    "read_payloads",
    "read_rows",
    "read_session_ids",
    "scan_operations",
]

MAX_PROBES = 1_000_000
"""Maximum number of row numbers that are tried one by one after a damaged page."""
TRIES = 2
"""The number of attempts to read a row. SQLite reports a page as malformed even if the disk failed
to read the page only once, so a row counts as lost only after a second attempt."""
BY_STAMP = f"stamp = ? AND {BY_DOT}"
ITEMS = "SELECT idx, CAST(payload AS BLOB) FROM items"
DEFAULT_HIGHEST = 10_000
"""The highest row number that is tried if the highest row number of the file cannot be read."""
NO_COLUMN = object()
"""Value for a cell of a column that the file's format does not have."""


@dataclass(frozen=True)
class OperationRow:
    """A row of the `ops` table. The cells of a damaged row can have any type.

    The columns with a default do not exist in formats 1 and 2.
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
    state: Any
    body: Any
    error: Any
    turn_stamp: Any = NO_COLUMN
    turn_writer: Any = NO_COLUMN
    turn_counter: Any = NO_COLUMN
    branch: Any = NO_COLUMN
    key_id: Any = NO_COLUMN
    version: Any = NO_COLUMN

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


def _operations(conn: sqlite3.Connection) -> str:
    """Return the query for the rows of operations, with the columns that the file's format has."""
    try:
        found = {name for (name,) in conn.execute("SELECT name FROM pragma_table_info('ops')")}
    except sqlite3.DatabaseError as error:
        _raise_if_transient(error)
        found = set()
    names = [field.name for field in fields(OperationRow)]
    if found and "turn_stamp" not in found:
        names = [field.name for field in fields(OperationRow) if field.default is MISSING]
    # NOT INDEXED: read the table itself. An index may be damaged while the table is not.
    return f"SELECT {', '.join(names)} FROM ops NOT INDEXED"


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
            _raise_if_transient(error)
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
    """Yield the rows of operations in the order of writing: by a scan of the table, and after a
    damaged page by their row numbers."""
    # The number of the last row before the damage may itself be wrong, and higher than all others.
    # So the scan resumes after `before`, the number of the row before that row.
    before, last, highest = 0, 0, _highest_number(conn)
    operations = _operations(conn)
    failures: Counter[int] = Counter()
    while True:
        try:
            for row in conn.execute(f"{operations} WHERE seq > ? ORDER BY seq", (before,)):
                if row[0] == last:
                    continue
                yield OperationRow(*row)
                before, last = last if last <= highest else before, row[0]
            return
        except sqlite3.DatabaseError as error:
            _raise_if_transient(error)
        # Count the failures at each row number. If a wrong number makes the scan return to an
        # earlier row, the count of that row rises, so that the scan ends.
        failures[before] += 1
        if failures[before] < TRIES:
            continue
        found = None
        if failures[before] == TRIES:
            found = _probe(
                conn, operations, range(before + 1, min(highest, before + MAX_PROBES) + 1), last
            )
        if found is None:
            losses.add(f"operations from row {before + 1} on")
            return
        first = (last if last < found.seq else before) + 1
        if first < found.seq:
            losses.add(f"operations in rows {first} to {found.seq - 1}")
        yield found
        before = last = found.seq


def _highest_number(conn: sqlite3.Connection) -> int:
    for sql in (
        "SELECT seq FROM sqlite_sequence WHERE name = 'ops'",
        "SELECT max(seq) FROM ops NOT INDEXED",
    ):
        try:
            row = conn.execute(sql).fetchone()
        except sqlite3.DatabaseError as error:
            _raise_if_transient(error)
            continue
        if row and isinstance(row[0], int):
            return row[0]
    return DEFAULT_HIGHEST


def _probe(
    conn: sqlite3.Connection, operations: str, numbers: range, known: int
) -> OperationRow | None:
    """Return the first operation that can be read among these row numbers, except a known one."""
    for seq in numbers:
        if seq == known:
            continue
        try:
            row = _read_row(conn, f"{operations} WHERE seq = ?", (seq,))
        except sqlite3.DatabaseError as error:
            _raise_if_transient(error)
            continue
        if row is not None:
            return OperationRow(*row)
    return None


class Payloads(NamedTuple):
    """The payloads of an append in a damaged file."""

    texts: list[str]
    """`GONE` replaces lost payloads and payloads that were removed before the damage."""
    lost: list[int]
    """The indexes of the payloads that were lost."""
    is_placed: bool = True
    """False if the items have another place in the history than the operation, which means that a
    cell of the place is damaged."""


def read_payloads(conn: sqlite3.Connection, row: OperationRow) -> Payloads:
    """Return the payloads of an append."""
    texts = [GONE] * row.count
    rows, unread = _read_items(conn, row)
    live = row.live if type(row.live) is int else 0
    is_placed = True
    if row.has_turn and not (rows or unread) and live:
        rows, unread = _read_elsewhere(conn, row)
        is_placed = not rows
    found = 0
    for index, payload in rows:
        if type(index) is not int or not 0 <= index < row.count:
            continue
        try:
            text = (payload or b"").decode()
            json.loads(text)
        except (ValueError, RecursionError):
            # A damaged text does not match its writer's seal: no other replica would accept it.
            unread.append(index)
            continue
        texts[index] = text
        found += 1
    if found >= live:
        return Payloads(texts, [], is_placed)
    # If every row could be read, nothing shows which of the missing items were lost and which were
    # removed. Report all of them.
    lost = unread or [index for index, text in enumerate(texts) if text == GONE]
    return Payloads(texts, lost, is_placed)


def _read_items(
    conn: sqlite3.Connection, row: OperationRow
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Return the (index, payload) rows of an append, and the indexes of rows with damage."""
    # The conditions include the turn and the stamp, so that SQLite finds the rows by their primary
    # key.
    where, key = BY_PLACE, (row.session, *row.place)
    if not row.has_turn:
        where, key = BY_STAMP, (row.stamp, row.session, row.writer, row.counter)
    sql = f"{ITEMS} WHERE {where}"
    try:
        return conn.execute(sql, key).fetchall(), []
    except sqlite3.DatabaseError as error:
        _raise_if_transient(error)
    rows: list[tuple[Any, ...]] = []
    unread: list[int] = []
    for index in range(row.count):
        try:
            found = _read_row(conn, f"{sql} AND idx = ?", (*key, index))
        except sqlite3.DatabaseError as error:
            _raise_if_transient(error)
            unread.append(index)
            continue
        if found is not None:
            rows.append(found)
    return rows, unread


def _read_elsewhere(
    conn: sqlite3.Connection, row: OperationRow
) -> tuple[list[tuple[Any, ...]], list[int]]:
    """Return the result of `_read_items` for an append whose turn is damaged, in the row of the
    append or in the rows of its items. Read the rows of the session up to the first damage."""
    key = (row.stamp, row.session, row.writer, row.counter)
    return read_rows(conn, f"{ITEMS} WHERE {BY_STAMP}", "items", Losses(), key), []


def _read_row(conn: sqlite3.Connection, sql: str, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return one row, or None if the query finds no row.

    Raises:
        sqlite3.DatabaseError: two attempts to read the row failed.
    """
    try:
        row: tuple[Any, ...] | None = conn.execute(sql, key).fetchone()
    except sqlite3.DatabaseError as error:
        _raise_if_transient(error)
        row = conn.execute(sql, key).fetchone()
    return row


def _raise_if_transient(error: sqlite3.DatabaseError) -> None:
    """Raise an error that is not damage. A recovery then stops and leaves the file in place."""
    if is_transient(error):
        raise error
