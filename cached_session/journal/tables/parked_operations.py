"""Parked operations: operations in the outbox that the server refuses for good.

A push parks an operation (see `outbox`). The user retries or drops it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from cached_session.history.ops import GONE, Dot, Kind, decode_pop
from cached_session.journal.sqlite.codec import EXACT, decode_rows
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.sqlite.tracked_connection import count_queued
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.outbox import load
from cached_session.journal.tables.sessions import session_ids, session_number
from cached_session.journal.tables.states import BY_DOT, PARKED, SENT

__all__ = ["Parked", "ParkedOperations", "drop_parked", "parked", "retry_parked"]

DELETE = "DELETE FROM ops WHERE seq = ? AND seq < (SELECT max(seq) FROM ops)"
HIDE = "UPDATE ops SET session = 0, live = 0, body = NULL WHERE seq = ?"
"""SQL that deletes the row of a dropped operation. The row with the highest `seq` stays without a
session, so that its `seq` is not used again."""


@dataclass(frozen=True)
class Parked:
    """An operation that the server refuses for good. Its items stay in the history."""

    session_id: str
    dot: Dot
    kind: str
    error: str
    said_at: float
    """The time of the operation, in Unix seconds of the writer's clock."""
    items: list[object]
    """The items of an append; empty for other operations."""


def parked(conn: sqlite3.Connection, session_id: str | None) -> list[Parked]:
    """Return the parked operations of a session, or of all sessions (None), oldest first."""
    session = None if session_id is None else session_number(conn, session_id)
    if session_id is not None and session is None:
        return []
    of = "" if session is None else f"AND w.session = {session}"
    rows = conn.execute(
        "SELECT w.seq, s.session_id, w.error FROM waiting w JOIN sessions s ON s.id = w.session "
        f"WHERE w.state = {PARKED} {of} ORDER BY w.seq"
    ).fetchall()
    found = []
    for seq, name, error in rows:
        (owner,) = session_ids([(name,)])
        for outgoing in load(conn, "seq = ?", (seq,)):
            op = outgoing.op
            texts = [text for text in op.payloads if text != GONE]
            items = decode_rows([(text.encode(), EXACT) for text in texts])
            found.append(
                Parked(
                    owner,
                    op.dot,
                    op.kind.value,
                    error or "",
                    op.said_ms / 1000,
                    items if op.kind is Kind.APPEND else [],
                )
            )
    return found


def retry_parked(conn: sqlite3.Connection, session_id: str, dots: Sequence[Dot] | None) -> int:
    """Queue parked operations to be sent again (all, or those in ``dots``); return their number.

    Their placeholders are deleted after the server has acknowledged the operations. The new state
    is sent, not pending: an earlier request may have reached the server although its answer was
    lost, and other devices may have the operations.
    """
    session = session_number(conn, session_id)
    if session is None:
        return 0
    moved = 0
    for _, writer, counter in _parked_rows(conn, session, dots):
        conn.execute(
            f"UPDATE waiting SET state = {SENT}, error = NULL WHERE {BY_DOT}",
            (session, writer, counter),
        )
        conn.execute(
            "INSERT OR IGNORE INTO forgets VALUES (?, ?, ?, -1, 1, ?, ?)",
            (session, writer, counter, writer, counter),
        )
        moved += 1
    count_queued(conn)
    return moved


def drop_parked(conn: sqlite3.Connection, session_id: str, dots: Sequence[Dot]) -> int:
    """Drop parked appends for good; return their number.

    The items of a dropped append are removed from the local history too, so that all replicas stay
    equal. The placeholder of the append still explains the gap. Pops and clears are not dropped,
    because the items that they removed cannot be restored here. The next pull lists all memories of
    the session: if an earlier answer was lost, the server may have the append, and other devices
    show it.
    """
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return 0
    dropped = 0
    for seq, writer, counter in _parked_rows(conn, tx.session, dots):
        (kind,) = conn.execute("SELECT kind FROM ops WHERE seq = ?", (seq,)).fetchone()
        if kind != Kind.APPEND.value:
            continue
        tx.remove(Dot(writer, counter), None, None)
        conn.execute(f"DELETE FROM waiting WHERE {BY_DOT}", (tx.session, writer, counter))
        conn.execute(DELETE, (seq,))
        conn.execute(HIDE, (seq,))
        _keep_pops(tx, Dot(writer, counter))
        # An earlier retry may have queued the deletion of the placeholder, which must stay now.
        conn.execute(
            "DELETE FROM forgets WHERE session = ? AND by_writer = ? AND by_counter = ?",
            (tx.session, writer, counter),
        )
        dropped += 1
    if dropped:
        conn.execute("UPDATE sessions SET ground = 0, ground_ms = 0 WHERE id = ?", (tx.session,))
    tx.finish()
    return dropped


def _keep_pops(tx: SessionTransaction, dot: Dot) -> None:
    """Store the popped items of a dropped operation in the table `popped`.

    If the server has the operation, a pull applies it again. The popped items then stay removed,
    and the operation is complete without them.
    """
    bodies = tx.conn.execute(
        f"SELECT body FROM ops WHERE session = ? AND kind = '{Kind.POP.value}'", (tx.session,)
    )
    named = [ref for (body,) in bodies if (ref := decode_pop(body)).dot == dot]
    if named:
        tx.conn.executemany(
            "INSERT OR IGNORE INTO popped VALUES (?, ?, ?, ?, ?)",
            [(tx.session, *dot, ref.index, ref.count) for ref in named],
        )
        tx.mark("popped")


def _parked_rows(
    conn: sqlite3.Connection, session: int, dots: Sequence[Dot] | None
) -> list[tuple[int, str, int]]:
    rows: list[tuple[int, str, int]] = conn.execute(
        "SELECT seq, writer, counter FROM waiting "
        f"WHERE session = ? AND state = {PARKED} ORDER BY seq",
        (session,),
    ).fetchall()
    named = None if dots is None else set(dots)
    return [row for row in rows if named is None or Dot(row[1], row[2]) in named]


class ParkedOperations:
    """The parked operations of one journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def all(self, session_id: str | None) -> list[Parked]:
        """Return the parked operations of a session, or of all sessions (None), oldest first."""
        return await self._runner.read_aside(parked, session_id)

    async def retry(self, session_id: str, dots: Sequence[Dot] | None) -> int:
        """Queue parked operations to be sent again (all, or those in ``dots``); return their
        number."""
        return await self._runner.write(retry_parked, session_id, dots)

    async def drop(self, session_id: str, dots: Sequence[Dot]) -> int:
        """Drop parked appends for good; return their number."""
        return await self._runner.write(drop_parked, session_id, dots)
