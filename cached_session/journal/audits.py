"""The journal's side of an audit: what should be on the server and is not, and the reverse."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cached_session.history.ops import Dot, Kind
from cached_session.history.parts import part_count
from cached_session.journal import outbox
from cached_session.journal.apply import ACKED, SessionTransaction
from cached_session.journal.outbox import Forget, Outgoing

__all__ = ["Plan", "compare", "operations", "queue_forgets"]

Present = Mapping[Dot, Mapping[tuple[int, int], int]]
"""Of each operation: which (payload, part) are there, and how many parts that payload has."""


@dataclass
class Plan:
    """What an audit has to do."""

    resend: list[int] = field(default_factory=list)
    """`seq` of operations to store again."""
    forget: list[Forget] = field(default_factory=list)


def compare(
    conn: sqlite3.Connection,
    session_id: str,
    present: Present,
    explained: Collection[Dot] = (),
) -> Plan:
    """Compare what the server lists with every acknowledged operation of a session.

    ``explained``: dots of which a placeholder says that the server refuses them.
    """
    plan = Plan()
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return plan
    rows = conn.execute(
        "SELECT seq, writer, counter, kind, stamp, body FROM ops "
        "WHERE session = ? AND state = ? ORDER BY seq",
        (tx.session, ACKED),
    ).fetchall()
    for seq, writer, counter, kind, stamp, body in rows:
        dot = Dot(writer, counter)
        places = present.get(dot, {})
        if dot in explained:
            # It got through after all: by a retry of which a restored backup knows nothing.
            plan.forget.append(Forget(dot, -1, 1))
        if kind != Kind.APPEND.value:
            if len(places) < part_count(body):
                plan.resend.append(seq)
            continue
        visible = dict(
            conn.execute(
                "SELECT idx, part_count(CAST(payload AS BLOB)) FROM items "
                "WHERE session = ? AND stamp = ? "
                "AND writer = ? AND counter = ?",
                (tx.session, stamp, writer, counter),
            ).fetchall()
        )
        whole = all(
            (index, part) in places for index, parts in visible.items() for part in range(parts)
        )
        if not whole:
            plan.resend.append(seq)
        # Any part tells: the first one may be forgotten already, and a later one sent twice.
        gone = {index: parts for (index, _), parts in places.items() if index not in visible}
        plan.forget.extend(Forget(dot, index, parts) for index, parts in gone.items())
    plan.forget.extend(_remains(conn, tx, present))
    return plan


def _remains(conn: sqlite3.Connection, tx: SessionTransaction, present: Present) -> list[Forget]:
    """What is left on the server of operations that a clear covers and the journal has let go of
    (`compaction.prune`): too little to be applied again, so that no row tells of it."""
    known = set(
        conn.execute("SELECT writer, counter FROM ops WHERE session = ?", (tx.session,)).fetchall()
    )
    return [
        Forget(dot, index, parts)
        for dot, places in present.items()
        if dot not in known and dot.counter in tx.writer(dot.writer).cleared
        for index, parts in {index: parts for (index, _), parts in places.items()}.items()
    ]


def operations(conn: sqlite3.Connection, seqs: Sequence[int]) -> list[Outgoing]:
    """Operations by `seq`, whole."""
    return [found for seq in seqs for found in outbox.load(conn, "seq = ?", (seq,))]


def queue_forgets(conn: sqlite3.Connection, session_id: str, forgets: Sequence[Forget]) -> None:
    """Have the next push forget these: their removal is recorded and acknowledged."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        conn.executemany(
            "INSERT OR IGNORE INTO forgets VALUES (?, ?, ?, ?, ?, '', 0)",
            [(tx.session, *forget.dot, forget.index, forget.parts) for forget in forgets],
        )
