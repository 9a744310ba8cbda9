"""Helpers that write operations into tables and take them from the outbox."""

from __future__ import annotations

import json
import sqlite3

from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import entry_rows, outbox, writes
from tests.journal_rows import OPS

S = "talk"
ME = "mewriter"


def author(now_ms: int = 1, writer: str = ME) -> writes.Author:
    return writes.Author(writer, now_ms, 600_000)


def add(conn: sqlite3.Connection, *items: object, session: str = S) -> None:
    writes.append(conn, author(), session, encode_items(items), private=False)


def pop(conn: sqlite3.Connection) -> object:
    popped = writes.pop(conn, author(), S)
    return popped and json.loads(popped.row[0])


def states(conn: sqlite3.Connection) -> list[int]:
    return [state for (state,) in conn.execute(f"SELECT state FROM {OPS} ORDER BY seq")]


def items(conn: sqlite3.Connection) -> list[object]:
    return [entry.item for entry in entry_rows.entries(conn, S, None)]


def take(conn: sqlite3.Connection, **limits: int) -> list[outbox.Outgoing]:
    limits = {"after": 0, "upto": 1 << 40, "most_ops": 1000, "most_bytes": 1 << 20, **limits}
    seqs = outbox.take(conn, S, **limits)
    return outbox.load_by_seq(conn, seqs)


def ack_all(conn: sqlite3.Connection) -> None:
    outbox.acknowledge(conn, [out.seq for out in take(conn)])
