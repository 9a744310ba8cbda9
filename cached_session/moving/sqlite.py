"""Reading the database of an Agents SDK `SQLiteSession`: plain, asynchronous or advanced.

The database is opened read-only and read in short queries, each of which continues after the last
row of the previous query. So a program that writes to the database at the same time is not locked
out, in any of SQLite's journal modes.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cached_session.engine.importer import Row
from cached_session.errors import InvalidArgument
from cached_session.journal.sqlite.codec import encode_item

__all__ = ["MAIN_BRANCH", "MESSAGES_TABLE", "count_rows", "list_sessions", "read_rows"]

MESSAGES_TABLE = "agent_messages"
"""The SDK's default name of the table with the items."""
MAIN_BRANCH = "main"
"""The name of the first branch of an `AdvancedSQLiteSession`."""
PAGE = 500
"""Maximum number of rows of one query."""
BUSY_SECONDS = 5.0
"""Maximum number of seconds to wait for another process's lock on the database."""


def list_sessions(path: str | os.PathLike[str], messages: str = MESSAGES_TABLE) -> list[str]:
    """Return the ids of the sessions with items, ordered by their first item.

    Raises:
        InvalidArgument: the file is not such a database.
    """
    with _open(path, messages) as conn:
        table = _quoted(messages)
        ids = conn.execute(f"SELECT session_id FROM {table} GROUP BY session_id ORDER BY min(id)")
        return [name.decode("utf-8", "surrogatepass") for (name,) in ids.fetchall()]


def count_rows(
    path: str | os.PathLike[str], session: str, branch: str, messages: str = MESSAGES_TABLE
) -> int:
    """Return the number of rows that `read_rows` would yield now.

    Raises:
        InvalidArgument: the file is not such a database, or the session has no such branch.
    """
    with _open(path, messages) as conn:
        table = _quoted(messages)
        if _has_branches(conn, session, branch):
            sql = (
                f"SELECT count(*) FROM message_structure s JOIN {table} m ON m.id = s.message_id "
                "WHERE m.session_id = ? AND s.branch_id = ?"
            )
            (number,) = conn.execute(sql, (session, branch)).fetchone()
        else:
            sql = f"SELECT count(*) FROM {table} WHERE session_id = ?"
            (number,) = conn.execute(sql, (session,)).fetchone()
        return int(number)


def read_rows(
    path: str | os.PathLike[str], session: str, branch: str, messages: str = MESSAGES_TABLE
) -> Iterator[Row]:
    """Yield a session's items in order, in the form that the journal stores.

    Yield None for a row that is not valid JSON.

    Raises:
        InvalidArgument: the file is not such a database, or the session has no such branch.
    """
    with _open(path, messages) as conn:
        table = _quoted(messages)
        if _has_branches(conn, session, branch):
            # Each branch numbers all its items, including those that it shares with its parent
            # branch.
            sql = (
                f"SELECT s.sequence_number, s.id, m.message_data FROM message_structure s "
                f"JOIN {table} m ON m.id = s.message_id WHERE m.session_id = ? "
                "AND s.branch_id = ? AND (s.sequence_number, s.id) > (?, ?) "
                "ORDER BY s.sequence_number, s.id LIMIT ?"
            )
            parameters: tuple[Any, ...] = (session, branch)
        else:
            sql = (
                f"SELECT 0, id, message_data FROM {table} WHERE session_id = ? "
                "AND (0, id) > (?, ?) ORDER BY id LIMIT ?"
            )
            parameters = (session,)
        after = (-1, -1)
        while page := conn.execute(sql, (*parameters, *after, PAGE)).fetchall():
            for *_, data in page:
                yield _encode_row(data)
            last = (page[-1][0], page[-1][1])
            if not all(isinstance(number, (int, float)) for number in last) or last <= after:
                # The next query would return rows of this page again, and the loop would not end.
                raise sqlite3.DatabaseError(f"its rows are not in order at {last!r:.80}")
            after = last


def _encode_row(data: object) -> Row:
    try:
        return encode_item(json.loads(data))  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        # The row is not JSON, or not standard JSON: Python's json module also writes NaN.
        return None


def _has_branches(conn: sqlite3.Connection, session: str, branch: str) -> bool:
    """Return whether the session has branches. The database of an `AdvancedSQLiteSession`
    may also contain sessions without branches.

    Raises:
        InvalidArgument: the session does not have this branch.
    """
    known = []
    if _exists(conn, "message_structure"):
        known = [
            name.decode(errors="replace")
            for (name,) in conn.execute(
                "SELECT DISTINCT branch_id FROM message_structure WHERE session_id = ?", (session,)
            )
        ]
    if branch in known:
        return True
    if branch != MAIN_BRANCH or known:
        raise InvalidArgument(
            f"the session {session!r} has no branch {branch!r}; "
            + (f"it has {', '.join(map(repr, sorted(known)))}" if known else "it has no branches")
        )
    return False


@contextmanager
def _open(path: str | os.PathLike[str], messages: str) -> Iterator[sqlite3.Connection]:
    file = Path(path).absolute()
    if not file.is_file():
        raise InvalidArgument(f"there is no database file at {path}")
    try:
        uri = f"{file.as_uri()}?mode=ro"
        with closing(
            sqlite3.connect(
                uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        ) as conn:
            # Read text as bytes: a row with invalid UTF-8 must not prevent reading the other rows.
            conn.text_factory = bytes
            if not _exists(conn, messages):
                raise InvalidArgument(
                    f"{path} has no table {messages!r}, so it is not a database of an "
                    "SQLiteSession; if its table of items has another name, pass that name"
                )
            yield conn
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # UnicodeDecodeError: SQLite's error message may quote a damaged schema.
        raise InvalidArgument(
            f"{path} cannot be read as a database of an SQLiteSession: {error}"
        ) from error


def _exists(conn: sqlite3.Connection, table: str) -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return conn.execute(sql, (table,)).fetchone() is not None


def _quoted(table: str) -> str:
    return '"' + table.replace('"', '""') + '"'
