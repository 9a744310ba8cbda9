"""What an Agents SDK database holds: of `SQLiteSession`, plain, asynchronous and advanced.

Read-only, in short queries that go on behind the last row: a program that goes on writing to the
database is never locked out, whatever its journal mode.
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

__all__ = ["MAIN", "MESSAGES", "count", "rows", "sessions"]

MESSAGES = "agent_messages"
"""The table that the SDK keeps items in unless it is told another name."""
MAIN = "main"
"""The branch of an `AdvancedSQLiteSession` where a conversation begins."""
PAGE = 500
"""Rows of one short query."""
BUSY_SECONDS = 5.0


def sessions(path: str | os.PathLike[str], messages: str = MESSAGES) -> list[str]:
    """The ids of the sessions that have items, in the order in which they began.

    Raises:
        InvalidArgument: the file is no such database.
    """
    with _open(path, messages) as conn:
        table = _quoted(messages)
        found = conn.execute(f"SELECT session_id FROM {table} GROUP BY session_id ORDER BY min(id)")
        return [name.decode("utf-8", "surrogatepass") for (name,) in found.fetchall()]


def count(path: str | os.PathLike[str], session: str, branch: str, messages: str = MESSAGES) -> int:
    """How many items `rows` will give, as of now.

    Raises:
        InvalidArgument: the file is no such database, or the session has no such branch.
    """
    with _open(path, messages) as conn:
        table = _quoted(messages)
        if _has_branches(conn, session, branch):
            sql = (
                f"SELECT count(*) FROM message_structure s JOIN {table} m ON m.id = s.message_id "
                "WHERE m.session_id = ? AND s.branch_id = ?"
            )
            (found,) = conn.execute(sql, (session, branch)).fetchone()
        else:
            sql = f"SELECT count(*) FROM {table} WHERE session_id = ?"
            (found,) = conn.execute(sql, (session,)).fetchone()
        return int(found)


def rows(
    path: str | os.PathLike[str], session: str, branch: str, messages: str = MESSAGES
) -> Iterator[Row]:
    """A session's items in their order, as the journal stores them.

    Raises:
        InvalidArgument: the file is no such database, or the session has no such branch.
    """
    with _open(path, messages) as conn:
        table = _quoted(messages)
        if _has_branches(conn, session, branch):
            # A branch orders its items itself: those before the fork are rows of both.
            sql = (
                f"SELECT s.sequence_number, s.id, m.message_data FROM message_structure s "
                f"JOIN {table} m ON m.id = s.message_id WHERE m.session_id = ? "
                "AND s.branch_id = ? AND (s.sequence_number, s.id) > (?, ?) "
                "ORDER BY s.sequence_number, s.id LIMIT ?"
            )
            of: tuple[Any, ...] = (session, branch)
        else:
            sql = (
                f"SELECT 0, id, message_data FROM {table} WHERE session_id = ? "
                "AND (0, id) > (?, ?) ORDER BY id LIMIT ?"
            )
            of = (session,)
        after = (-1, -1)
        while page := conn.execute(sql, (*of, *after, PAGE)).fetchall():
            for *_, data in page:
                yield _row(data)
            after = (page[-1][0], page[-1][1])


def _row(data: object) -> Row:
    try:
        return encode_item(json.loads(data))  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        # No JSON, or JSON that only Python's own library writes, such as NaN.
        return None


def _has_branches(conn: sqlite3.Connection, session: str, branch: str) -> bool:
    """Whether the session is an advanced one; a plain session in such a database is not."""
    if not _exists(conn, "message_structure"):
        known = []
    else:
        known = [
            name.decode(errors="replace")
            for (name,) in conn.execute(
                "SELECT DISTINCT branch_id FROM message_structure WHERE session_id = ?", (session,)
            )
        ]
    if branch in known:
        return True
    if branch != MAIN or known:
        raise InvalidArgument(
            f"the session {session!r} has no branch {branch!r}; "
            + (f"it has {', '.join(map(repr, sorted(known)))}" if known else "it has no branches")
        )
    return False


@contextmanager
def _open(path: str | os.PathLike[str], messages: str) -> Iterator[sqlite3.Connection]:
    file = Path(path).absolute()
    if not file.is_file():
        raise InvalidArgument(f"there is no database at {path}")
    try:
        uri = f"{file.as_uri()}?mode=ro"
        with closing(
            sqlite3.connect(
                uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        ) as conn:
            # Bytes: one row whose text is damaged must not keep the others from being read.
            conn.text_factory = bytes
            if not _exists(conn, messages):
                raise InvalidArgument(
                    f"{path} has no table {messages!r}, so it is no database of an SQLiteSession; "
                    "if its tables have other names, say which"
                )
            yield conn
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # The second where SQLite quotes a damaged schema in what it says is wrong.
        raise InvalidArgument(
            f"{path} cannot be read as a database of an SQLiteSession: {error}"
        ) from error


def _exists(conn: sqlite3.Connection, table: str) -> bool:
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return conn.execute(sql, (table,)).fetchone() is not None


def _quoted(table: str) -> str:
    return '"' + table.replace('"', '""') + '"'
