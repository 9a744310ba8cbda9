"""SQL over the tables of a journal for tests: items and the states of operations as rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from cached_session.journal.tables import outbox
from cached_session.journal.tables.payloads import SEPARATOR
from cached_session.journal.tables.states import ACKED

__all__ = ["ITEMS", "OPS", "change_payloads", "items_of", "set_states", "spoil"]

OPS = (
    "(SELECT o.*, coalesce(w.state, 2) AS state, w.error FROM ops o "
    "LEFT JOIN waiting w USING (session, writer, counter))"
)
"""The operations with their states and errors, for a FROM clause."""
SPLIT = (
    "WITH RECURSIVE split(operation, idx, payload, rest) AS ("
    "SELECT seq, -1, '', body || char(30) FROM ops WHERE live > 0 UNION ALL "
    "SELECT operation, idx + 1, substr(rest, 1, instr(rest, char(30)) - 1), "
    "substr(rest, instr(rest, char(30)) + 1) FROM split WHERE rest <> '')"
)
ITEMS = (
    f"({SPLIT} SELECT o.session, o.turn_stamp, o.turn_writer, o.turn_counter, o.stamp, o.writer, "
    "o.counter, s.idx, s.payload, o.codec FROM split s JOIN ops o ON o.seq = s.operation "
    "WHERE s.idx >= 0 AND trim(s.payload) <> '')"
)
"""The visible items, for a FROM clause."""


def items_of(conn: sqlite3.Connection, session_id: str) -> list[tuple[str, int, int, str]]:
    """Return (writer, counter, index, payload) of each visible item of a session, in order."""
    rows = conn.execute(
        "SELECT writer, counter, body FROM ops WHERE live > 0 AND session = "
        "(SELECT id FROM sessions WHERE session_id = ?) ORDER BY turn_stamp, turn_writer, "
        "turn_counter, stamp, writer, counter",
        (session_id,),
    )
    return [
        (writer, counter, index, payload)
        for writer, counter, body in rows
        for index, payload in enumerate(body.split(SEPARATOR))
        if payload.strip()
    ]


def change_payloads(
    conn: sqlite3.Connection, change: Callable[[int, bytes], bytes], *, where: str = "1"
) -> int:
    """Replace payloads of appends in place, without any other change; return their number.

    ``change`` gets the index and the text of each visible item, and returns the new text. ``where``
    selects rows of `ops`.
    """
    changed = 0
    separator = SEPARATOR.encode()
    sql = f"SELECT seq, CAST(body AS BLOB) FROM ops WHERE live > 0 AND {where}"
    for seq, body in conn.execute(sql).fetchall():
        payloads = body.split(separator)
        texts = [
            change(index, text) if text.strip() else text for index, text in enumerate(payloads)
        ]
        changed += sum(old != new for old, new in zip(payloads, texts, strict=True))
        new_body = separator.join(texts)
        conn.execute("UPDATE ops SET body = CAST(? AS TEXT) WHERE seq = ?", (new_body, seq))
    return changed


def set_states(conn: sqlite3.Connection, state: int) -> None:
    """Give all operations this state."""
    if state == ACKED:
        outbox.acknowledge(conn, [seq for (seq,) in conn.execute("SELECT seq FROM ops").fetchall()])
    else:
        outbox.requeue(conn, "1", ())
        conn.execute("UPDATE waiting SET state = ?", (state,))


def spoil(conn: sqlite3.Connection, statement: str, key: tuple[object, ...] = ()) -> None:
    """Run a statement that may write cells which the constraints of the schema forbid."""
    conn.execute("PRAGMA ignore_check_constraints = ON")
    conn.execute(statement, key)
    conn.execute("PRAGMA ignore_check_constraints = OFF")
