"""What waits for the server, and what its answers change: the replicator's transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cached_session.history.ops import GONE, Dot, Kind, Operation, decode_clear, decode_pop
from cached_session.journal.sqlite.codec import EXACT, decode_rows
from cached_session.journal.sqlite.tracked_connection import count_queued
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.row_bounds import check_memories, check_operation
from cached_session.journal.tables.sessions import session_ids, session_row, stored_id
from cached_session.journal.tables.states import ACKED, AGAIN, PARKED, PENDING, SENT

__all__ = [
    "WAITING",
    "Forget",
    "Outgoing",
    "Parked",
    "ack",
    "drop_parked",
    "forgets_due",
    "forgotten",
    "has_unsent",
    "load",
    "newest",
    "park",
    "parked",
    "pending_sessions",
    "retry_parked",
    "take",
    "whole",
]

PARAMETERS = 500
"""Values in one statement: older builds of SQLite take fewer than a thousand."""


@dataclass(frozen=True)
class Outgoing:
    """An operation as the outbox holds it."""

    seq: int
    op: Operation
    digest: str


@dataclass(frozen=True)
class Forget:
    """The memories of one removed item (index -1: a placeholder) that the server should forget."""

    dot: Dot
    index: int
    parts: int


@dataclass(frozen=True)
class Parked:
    """An operation that the server refused for good. It stays readable here; see `retry_parked`."""

    session_id: str
    dot: Dot
    kind: str
    error: str
    said_at: float
    """Unix seconds by the writer's clock."""
    items: list[object]
    """The items of an append; empty for a pop or clear."""


def _row_id(conn: sqlite3.Connection, session_id: str) -> int | None:
    row = conn.execute(
        "SELECT id FROM sessions WHERE session_id = ?", (stored_id(session_id),)
    ).fetchone()
    return None if row is None else int(row[0])


def newest(conn: sqlite3.Connection) -> int:
    """The `seq` of the last operation of the journal: what a flush called now has to reach."""
    (seq,) = conn.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()
    return int(seq)


def take(
    conn: sqlite3.Connection,
    session_id: str,
    *,
    after: int | None,
    upto: int,
    most_ops: int,
    most_bytes: int,
) -> list[int]:
    """Choose the next unacknowledged operations of a session, in the order of writing, and note
    that the server may hold them from now on: before their payloads are read, so that an item
    is either popped here alone or sent.

    At least one if there is any, then as many as fit; their `seq` lie above ``after`` (None: from
    the lowest on, which a spoiled one may be below 1) and not above ``upto``.

    Raises:
        ValueError: the outbox is not in order: its reader would take the same ones without end.
    """
    session = _row_id(conn, session_id)
    if session is None:
        return []
    above, key = ("", ()) if after is None else ("AND seq > ?", (after,))
    rows = conn.execute(
        f"SELECT seq, bytes, count FROM ops WHERE session = ? {above} AND seq <= ? "
        f"AND state <> 2 AND state <> {PARKED} ORDER BY seq LIMIT ?",
        (session, *key, upto, most_ops),
    ).fetchall()
    if after is not None and any(row[0] <= after for row in rows):
        raise ValueError(f"the outbox of session {session} is not in order behind {after}")
    chosen: list[int] = []
    size = items = 0
    for seq, bytes_, count in rows:
        if chosen and (size + bytes_ > most_bytes or items + count > most_ops):
            break
        chosen.append(seq)
        size += bytes_
        items += count
    conn.executemany(
        f"UPDATE ops SET state = {SENT}, error = CASE state WHEN {SENT} THEN '{AGAIN}' END "
        f"WHERE seq = ? AND state IN ({PENDING}, {SENT}) AND error IS NOT '{AGAIN}'",
        [(seq,) for seq in chosen],
    )
    return chosen


def load(conn: sqlite3.Connection, where: str, key: tuple[object, ...]) -> list[Outgoing]:
    """Operations with all their payloads that are still here; `GONE` stands for the others."""
    found = []
    rows = conn.execute(
        "SELECT seq, session, writer, counter, kind, stamp, said_ms, count, private, digest, body "
        f"FROM ops WHERE {where} ORDER BY seq",
        key,
    ).fetchall()
    for seq, session, writer, counter, kind, stamp, said_ms, count, private, digest, body in rows:
        try:
            check_operation(writer, counter, stamp, said_ms, count, digest)
        except ValueError as error:
            raise ValueError(f"operation number {seq}: {error}") from error
        texts = [body]
        if kind == Kind.APPEND.value:
            texts = [GONE] * count
            for index, payload in conn.execute(
                "SELECT idx, CAST(payload AS BLOB) FROM items WHERE session = ? AND stamp = ? "
                "AND writer = ? AND counter = ?",
                (session, stamp, writer, counter),
            ):
                # A damaged text goes as it can: its seal tells the others, nothing waits for it.
                texts[index] = payload.decode(errors="replace")
        op = Operation(
            Dot(writer, counter), Kind(kind), stamp, said_ms, tuple(texts), bool(private)
        )
        found.append(Outgoing(seq, op, digest))
    return found


def whole(conn: sqlite3.Connection, seqs: Sequence[int]) -> list[Outgoing]:
    """Operations by `seq`, as `load` gives them."""
    return [
        found
        for some in _few(seqs)
        for found in load(conn, f"seq IN ({', '.join('?' * len(some))})", tuple(some))
    ]


def ack(conn: sqlite3.Connection, seqs: Sequence[int]) -> None:
    """The server holds these whole."""
    for some in _few(seqs):
        among = f"seq IN ({', '.join('?' * len(some))})"
        conn.execute(f"UPDATE ops SET state = {ACKED} WHERE {among}", some)
        clears = conn.execute(
            "SELECT s.session_id, o.body FROM ops o JOIN sessions s ON s.id = o.session "
            f"WHERE o.{among} AND o.kind = '{Kind.CLEAR.value}'",
            some,
        ).fetchall()
        for name, body in clears:
            (session_id,) = session_ids([(name,)])
            tx = SessionTransaction.begin(conn, session_id)
            if tx is not None:
                tx.settle(decode_clear(body))


def _few(seqs: Sequence[int]) -> Iterator[Sequence[int]]:
    return (seqs[start : start + PARAMETERS] for start in range(0, len(seqs), PARAMETERS))


def park(conn: sqlite3.Connection, seq: int, error: str) -> bool:
    """The server refuses this one for good: out of the queue, still readable. False if it has
    taken it meanwhile, from another process that pushes, or if it has been given up."""
    parked = conn.execute(
        f"UPDATE ops SET state = {PARKED}, error = ? WHERE seq = ? AND state <> {ACKED}",
        (error, seq),
    )
    return parked.rowcount > 0


def parked(conn: sqlite3.Connection, session_id: str | None) -> list[Parked]:
    """Parked operations, oldest first."""
    session = None if session_id is None else _row_id(conn, session_id)
    if session_id is not None and session is None:
        return []
    of = "" if session is None else f"session = {session} AND "
    rows = conn.execute(
        f"SELECT o.seq, s.session_id, o.error FROM ops o JOIN sessions s ON s.id = o.session "
        f"WHERE o.seq IN (SELECT seq FROM ops WHERE {of} state <> 2 AND state = {PARKED}) "
        "ORDER BY o.seq"
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
    """Put parked operations back in the queue (all, or those named); how many there were.

    Their placeholders are forgotten once the operations themselves have arrived. They count as
    sent: an answer may have been lost before the server refused them, so that others have them.
    """
    session = _row_id(conn, session_id)
    if session is None:
        return 0
    moved = 0
    for seq, writer, counter in _parked_rows(conn, session, dots):
        conn.execute(f"UPDATE ops SET state = {SENT} WHERE seq = ?", (seq,))
        conn.execute(
            "INSERT OR IGNORE INTO forgets VALUES (?, ?, ?, -1, 1, ?, ?)",
            (session, writer, counter, writer, counter),
        )
        moved += 1
    count_queued(conn)
    return moved


def drop_parked(conn: sqlite3.Connection, session_id: str, dots: Sequence[Dot]) -> int:
    """Give up parked appends for good; how many there were.

    A dropped append leaves the local history too, so that all replicas stay equal. Its placeholder
    goes on explaining the hole. Pops and clears are not dropped: what they removed is gone here.
    The next pull lists everything: where an earlier answer was lost, the server holds the append
    all the same, and others show it.
    """
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return 0
    dropped = 0
    for seq, writer, counter in _parked_rows(conn, tx.session, dots):
        (kind,) = conn.execute("SELECT kind FROM ops WHERE seq = ?", (seq,)).fetchone()
        if kind != Kind.APPEND.value:
            continue
        tx.withdraw(Dot(writer, counter))
        conn.execute("DELETE FROM ops WHERE seq = ?", (seq,))
        _keep_pops(tx, Dot(writer, counter))
        # An earlier retry wanted the placeholder forgotten: it has to stay now.
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
    """What pops name of an operation that is not here any more: if the server holds the rest of it,
    that comes back, and what was popped is not waited for."""
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
        f"SELECT seq, writer, counter FROM ops WHERE session = ? AND state <> 2 "
        f"AND state = {PARKED} ORDER BY seq",
        (session,),
    ).fetchall()
    named = None if dots is None else set(dots)
    return [row for row in rows if named is None or Dot(row[1], row[2]) in named]


def forgets_due(conn: sqlite3.Connection, session_id: str, most: int) -> list[Forget]:
    """Removed items whose removal the server has acknowledged, and whose own append is settled:
    forgetting a memory that is yet to arrive would let it come back."""
    session = _row_id(conn, session_id)
    if session is None:
        return []
    rows = conn.execute(
        "SELECT f.writer, f.counter, f.idx, f.parts FROM forgets f "
        "LEFT JOIN ops b ON b.session = f.session AND b.writer = f.by_writer "
        "AND b.counter = f.by_counter "
        "LEFT JOIN ops a ON a.session = f.session AND a.writer = f.writer "
        "AND a.counter = f.counter "
        "WHERE f.session = ? AND coalesce(b.state, 2) = 2 AND coalesce(a.state, 2) = 2 LIMIT ?",
        (session, most),
    ).fetchall()
    for row in rows:
        # What no row has, none is found by when it is done: it would be asked for without end.
        check_memories(*row)
    return [Forget(Dot(writer, counter), index, parts) for writer, counter, index, parts in rows]


def forgotten(conn: sqlite3.Connection, session_id: str, done: Sequence[Forget]) -> None:
    """The server has answered: these need not be asked for again."""
    session = _row_id(conn, session_id)
    gone = conn.executemany(
        "DELETE FROM forgets WHERE session = ? AND writer = ? AND counter = ? AND idx = ?",
        [(session, *forget.dot, forget.index) for forget in done],
    ).rowcount
    if gone < len(done):
        # Another process may have deleted them. What is still listed cannot be found by its key,
        # and the caller would have it forgotten again and again.
        left = set(done).intersection(forgets_due(conn, session_id, len(done)))
        if left:
            raise ValueError(f"{len(left)} rows of forgets cannot be found by their keys")


def pending_sessions(conn: sqlite3.Connection) -> list[str]:
    """Sessions with something to send, to have forgotten or to settle. Cost: those sessions, and
    what of them is parked; not how much waits in each."""
    return list(session_ids(conn.execute(WAITING).fetchall()))


def _stepping(table: str, rows: str = "1") -> str:
    """Return SQL that steps through the session numbers in a table by its index, each once."""
    # UNION, not UNION ALL: it drops a number that was found before, so the query ends whatever the
    # cells hold. The text '5' is compared as the number 5, and every text is greater than that.
    # The first bound passes over a NULL, which SQLite takes for the least of a NOT NULL column.
    least = f"SELECT min(session) FROM {table} WHERE {rows} AND session"
    return f"{least} >= {-(1 << 63)} UNION SELECT ({least} > s) FROM {{name}} WHERE s IS NOT NULL"


WAITING = (
    "WITH RECURSIVE "
    f"unacked(s) AS ({_stepping('ops', 'state <> 2').format(name='unacked')}), "
    f"forgetting(s) AS ({_stepping('forgets').format(name='forgetting')}) "
    "SELECT session_id FROM sessions WHERE id IN (SELECT s FROM unacked WHERE EXISTS "
    f"(SELECT 1 FROM ops WHERE session = s AND state <> 2 AND state <> {PARKED}) "
    "UNION SELECT s FROM forgetting UNION SELECT session FROM claims)"
)


def has_unsent(conn: sqlite3.Connection, session_id: str) -> bool:
    """Whether a session has something to send."""
    row = session_row(conn, session_id)
    found = (
        row
        and conn.execute(
            f"SELECT 1 FROM ops WHERE session = ? AND state <> 2 AND state <> {PARKED} LIMIT 1",
            (row[0],),
        ).fetchone()
    )
    return bool(found)
