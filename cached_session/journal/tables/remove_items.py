"""Removal of visible items: from the history, the full-text index, and later from the server."""

from __future__ import annotations

import sqlite3

from cached_session.history.ops import Dot
from cached_session.history.parts import part_count
from cached_session.journal.tables import search_index
from cached_session.journal.tables.dots import FoundOperation
from cached_session.journal.tables.payloads import remove_payload, visible_payloads
from cached_session.journal.tables.states import ACKED, PENDING, SENT

__all__ = ["remove_items"]


def remove_items(
    conn: sqlite3.Connection,
    session: int,
    op: FoundOperation,
    dot: Dot,
    index: int | None,
    by: Dot | None,
) -> int:
    """Remove the visible items of an operation, or the item at ``index``; return their number.

    ``by`` is the operation of this journal that removes the items; None if another replica has
    removed them. After ``by`` is acknowledged, a push deletes the memories of the items from the
    server.
    """
    count, live, body = conn.execute(
        "SELECT count, live, CAST(body AS BLOB) FROM ops WHERE seq = ?", (op.seq,)
    ).fetchone()
    shown = visible_payloads(body, count, live)
    removed = [item for item in shown if index is None or item[0] == index]
    if index is None and not removed:
        # A damaged body hides which items it has. Remove all of them.
        removed = [(at, b"") for at in range(count)] if live else []
    if not removed:
        return 0
    is_being_sent = op.state in (PENDING, SENT) or (op.state == ACKED and op.is_resent)
    if by is None and is_being_sent:
        # Another replica has removed an item that this journal has not sent yet, sends again after
        # a lost answer, or sent again before it received the removal. Queue the deletion of the
        # memories, which would otherwise stay on the server forever.
        by = Dot("", 0)
    if by is not None:
        conn.executemany(
            "INSERT OR IGNORE INTO forgets VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (session, *dot, at, part_count(text.decode(errors="replace")), *by)
                for at, text in removed
            ],
        )
    left = [item for item in shown if item not in removed]
    _index_again(conn, session, op.seq, shown, left)
    if left and index is not None:
        conn.execute(
            "UPDATE ops SET live = ?, tokens = NULL, body = CAST(? AS TEXT) WHERE seq = ?",
            (len(left), remove_payload(body, index), op.seq),
        )
    else:
        conn.execute("UPDATE ops SET live = 0, tokens = NULL, body = NULL WHERE seq = ?", (op.seq,))
    return int(live) - len(left)


def _index_again(
    conn: sqlite3.Connection,
    session: int,
    seq: int,
    shown: list[tuple[int, bytes]],
    left: list[tuple[int, bytes]],
) -> None:
    """Replace the search document of an operation, if the operation is indexed."""
    reached = search_index.reach(conn)
    if reached is None or seq > reached or not shown:
        return
    search_index.remove(conn, [(seq, search_index.document(session, _texts(shown)))])
    if left:
        search_index.add(conn, [(seq, search_index.document(session, _texts(left)))])


def _texts(payloads: list[tuple[int, bytes]]) -> list[str]:
    return [payload.decode(errors="replace") for _, payload in payloads]
