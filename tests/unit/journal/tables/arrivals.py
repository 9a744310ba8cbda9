"""Operations of another device that arrive in a journal."""

from __future__ import annotations

import json
import sqlite3

from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.parts import split
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import entry_rows, inbox, writes
from cached_session.journal.tables.inbox import PageResult

__all__ = ["ME", "SESSION", "THEM", "add", "arrive", "author", "items", "pop", "remote"]

SESSION = SessionRef.of("talk")
ME = "mewriter"
THEM = "themwriter"


def author(now_ms: int = 1, writer: str = ME) -> writes.Author:
    return writes.Author(writer, now_ms, 600_000)


def add(conn: sqlite3.Connection, *items: object) -> None:
    """Append a batch of items to the session."""
    writes.append(conn, author(), SESSION.session_id, encode_items(items), private=False)


def remote(counter: int, *payloads: str, kind: Kind = Kind.APPEND, stamp: int = 9) -> Operation:
    """Return an operation that another device has written."""
    return Operation(Dot(THEM, counter), kind, stamp, 9, payloads)


def arrive(conn: sqlite3.Connection, *ops: Operation, parts: slice = slice(None)) -> PageResult:
    """Apply a page with some of the parts of these operations."""
    key = SESSION.key
    pieces = [part for op in ops for part in split(op, op.digest(key), key)]
    return inbox.apply_page(conn, SESSION, pieces[parts], [], 0)


def items(conn: sqlite3.Connection) -> list[object]:
    """Return the items of the history."""
    return [entry.item for entry in entry_rows.entries(conn, SESSION.session_id, None)]


def pop(conn: sqlite3.Connection) -> object:
    """Pop the latest item and return it."""
    popped = writes.pop(conn, author(), SESSION.session_id)
    return popped and json.loads(popped.row[0])
