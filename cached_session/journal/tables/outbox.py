"""The outbox: operations that the server has not acknowledged, and memories that it should delete.

Sessions add operations (see `writes`). The replicator takes them and records the server's answers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cached_session.history.ops import GONE, Dot, Kind, Operation, TurnKey, decode_clear
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.apply import SessionTransaction, fold_sessions
from cached_session.journal.tables.meta import note_progress, note_success
from cached_session.journal.tables.payloads import checked_payloads
from cached_session.journal.tables.row_bounds import (
    check_memories,
    check_operation,
    check_placement,
)
from cached_session.journal.tables.sessions import session_ids, session_number
from cached_session.journal.tables.states import BY_DOT, PARKED, PENDING, PLACE, SENT

__all__ = [
    "WAITING",
    "Forget",
    "Outbox",
    "Outgoing",
    "acknowledge",
    "delete_forgets",
    "forgets_due",
    "has_unsent",
    "load",
    "load_by_seq",
    "newest",
    "park",
    "pending_sessions",
    "requeue",
    "take",
]

PARAMETERS = 500
"""Maximum number of values in one statement. Older builds of SQLite accept at most 999."""

UNSENT = f"state <> {PARKED}"
"""The condition that selects the rows of `waiting` whose operations are still to be sent."""


@dataclass(frozen=True)
class Outgoing:
    """An operation in the outbox."""

    seq: int
    op: Operation
    digest: str


@dataclass(frozen=True)
class Forget:
    """The memories of one removed item (index -1: a placeholder) that the server should delete."""

    dot: Dot
    index: int
    parts: int


def newest(conn: sqlite3.Connection) -> int:
    """Return the `seq` of the last operation of the journal; 0 if the journal has no operations.

    A flush that begins now ends at this operation.
    """
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
    """Take the next unacknowledged operations of a session, in the order of writing.

    The operations are marked as sent before their payloads are read. A confirmed pop skips the
    request to the server only for items of operations without this mark, so no item is both popped
    without a request and sent.

    Returns:
        The `seq` numbers of as many operations as fit into the limits, and of at least one if any
        operation is unsent. Each number is above ``after`` and at most ``upto``. If ``after`` is
        None, the lowest number is first; in a damaged row it may be below 1.

    Raises:
        ValueError: the rows of the outbox are not in order. A caller would take the same operations
            forever.
    """
    session = session_number(conn, session_id)
    if session is None:
        return []
    above, key = ("", ()) if after is None else ("AND seq > ?", (after,))
    rows = conn.execute(
        f"SELECT w.seq, w.writer, w.counter, w.count, w.state, o.bytes FROM (SELECT * FROM waiting "
        f"WHERE session = ? {above} AND seq <= ? AND {UNSENT} ORDER BY seq LIMIT ?) w "
        "LEFT JOIN ops o ON o.seq = w.seq ORDER BY w.seq",
        (session, *key, upto, most_ops),
    ).fetchall()
    if after is not None and any(row[0] <= after for row in rows):
        raise ValueError(f"the outbox of session {session} is not in order behind {after}")
    chosen: list[tuple[int, str, int, int]] = []
    size = items = 0
    for seq, writer, counter, count, state, bytes_ in rows:
        if bytes_ is None:
            raise sqlite3.DatabaseError(f"malformed journal: operation number {seq} has no row")
        if chosen and (size + bytes_ > most_bytes or items + count > most_ops):
            break
        chosen.append((seq, writer, counter, state))
        size += bytes_
        items += count
    conn.executemany(
        f"UPDATE waiting SET state = {SENT} WHERE {BY_DOT} AND state = {PENDING}",
        [(session, writer, counter) for _, writer, counter, state in chosen if state == PENDING],
    )
    conn.executemany(
        "UPDATE ops SET resent = 1 WHERE seq = ? AND NOT resent",
        [(seq,) for seq, _, _, state in chosen if state == SENT],
    )
    return [seq for seq, *_ in chosen]


def load(conn: sqlite3.Connection, where: str, key: tuple[object, ...]) -> list[Outgoing]:
    """Return operations with their payloads. `GONE` replaces each removed payload of an append."""
    found = []
    rows = conn.execute(
        "SELECT seq, kind, said_ms, count, live, private, digest, CAST(body AS BLOB), "
        f"branch, key_id, version, {PLACE} FROM ops WHERE {where} ORDER BY seq",
        key,
    ).fetchall()
    for seq, kind, said_ms, count, live, private, digest, body, *rest in rows:
        branch, key_id, version, *place = rest
        *turn, stamp, writer, counter = place
        try:
            check_operation(writer, counter, stamp, said_ms, count, digest)
            check_placement(turn, stamp, branch, key_id, version)
        except ValueError as error:
            raise ValueError(f"operation number {seq}: {error}") from error
        texts = [GONE] * count
        shown = [(0, body)]
        if kind == Kind.APPEND.value:
            shown = checked_payloads(seq, body, count, live)
        elif body is None:
            raise sqlite3.DatabaseError(f"malformed journal: operation number {seq} has no payload")
        for index, payload in shown:
            # Send a damaged text as far as it can be decoded, so that it does not block later
            # operations. Its checksum shows the damage to other devices.
            texts[index] = payload.decode(errors="replace")
        dot, key_of_turn = Dot(writer, counter), TurnKey(*turn)
        op = Operation(
            dot,
            Kind(kind),
            stamp,
            said_ms,
            tuple(texts),
            bool(private),
            None if key_of_turn == (stamp, *dot) else key_of_turn,
            branch,
            key_id,
            version,
        )
        found.append(Outgoing(seq, op, digest))
    return found


def load_by_seq(conn: sqlite3.Connection, seqs: Sequence[int]) -> list[Outgoing]:
    """Return operations by their `seq` numbers, with the payloads that `load` returns."""
    return [
        found
        for some in _few(seqs)
        for found in load(conn, f"seq IN ({', '.join('?' * len(some))})", tuple(some))
    ]


def acknowledge(conn: sqlite3.Connection, seqs: Sequence[int]) -> None:
    """Record that the server has stored these operations completely."""
    found = list(_dots(conn, seqs))
    fold_sessions(conn, [session for session, *_ in found])
    done = [
        (session, writer, counter, seq)
        for session, writer, counter, seq, _ in found
        if conn.execute(f"DELETE FROM waiting WHERE {BY_DOT}", (session, writer, counter)).rowcount
    ]
    conn.executemany("INSERT INTO acked VALUES (?, ?, ?, ?)", done)
    for session, _, _, seq, kind in found:
        if kind == Kind.CLEAR.value:
            name, body = conn.execute(
                "SELECT s.session_id, o.body FROM sessions s JOIN ops o ON o.seq = ? "
                "WHERE s.id = ?",
                (seq, session),
            ).fetchone()
            (session_id,) = session_ids([(name,)])
            tx = SessionTransaction.begin(conn, session_id)
            if tx is not None:
                tx.acknowledge_clear(decode_clear(body))


def requeue(conn: sqlite3.Connection, where: str, key: tuple[object, ...]) -> int:
    """Queue acknowledged operations to be sent again; return their number. ``where`` selects rows
    of `acked`.

    The new state is sent, not pending, because other devices may have the operations.
    """
    found = conn.execute(
        "SELECT a.session, a.writer, a.counter, a.seq, o.count FROM acked a "
        f"JOIN ops o ON o.seq = a.seq WHERE {where}",
        key,
    ).fetchall()
    fold_sessions(conn, [session for session, *_ in found])
    conn.executemany(f"DELETE FROM acked WHERE {BY_DOT}", [row[:3] for row in found])
    conn.executemany(
        "INSERT INTO waiting (session, writer, counter, seq, count, state) "
        f"VALUES (?, ?, ?, ?, ?, {SENT})",
        found,
    )
    return len(found)


def _dots(
    conn: sqlite3.Connection, seqs: Sequence[int]
) -> Iterator[tuple[int, str, int, int, str]]:
    """Yield the session, writer, counter, `seq` and kind of operations."""
    for some in _few(seqs):
        among = ", ".join("?" * len(some))
        yield from conn.execute(
            f"SELECT session, writer, counter, seq, kind FROM ops WHERE seq IN ({among})", some
        ).fetchall()


def _few(seqs: Sequence[int]) -> Iterator[Sequence[int]]:
    return (seqs[start : start + PARAMETERS] for start in range(0, len(seqs), PARAMETERS))


def park(conn: sqlite3.Connection, seq: int, error: str) -> bool:
    """Park an operation that the server refuses for good. The operation is not sent again, and
    stays readable.

    Returns:
        False if another process has pushed or dropped the operation meanwhile.
    """
    parked = 0
    for session, writer, counter, *_ in _dots(conn, [seq]):
        parked += conn.execute(
            f"UPDATE waiting SET state = {PARKED}, error = ? WHERE {BY_DOT}",
            (error, session, writer, counter),
        ).rowcount
    return parked > 0


def forgets_due(conn: sqlite3.Connection, session_id: str, limit: int) -> list[Forget]:
    """Return removed items whose append and removal the server has both acknowledged.

    If a memory was deleted before its append arrives, the append would store the memory again.
    """
    session = session_number(conn, session_id)
    if session is None:
        return []
    rows = conn.execute(
        "SELECT f.writer, f.counter, f.idx, f.parts FROM forgets f "
        "LEFT JOIN waiting b ON b.session = f.session AND b.writer = f.by_writer "
        "AND b.counter = f.by_counter "
        "LEFT JOIN waiting a ON a.session = f.session AND a.writer = f.writer "
        "AND a.counter = f.counter "
        "WHERE f.session = ? AND b.seq IS NULL AND a.seq IS NULL LIMIT ?",
        (session, limit),
    ).fetchall()
    for row in rows:
        # `delete_forgets` would not find a row with a damaged dot, so its deletion would be sent
        # forever.
        check_memories(*row)
    return [Forget(Dot(writer, counter), index, parts) for writer, counter, index, parts in rows]


def delete_forgets(conn: sqlite3.Connection, session_id: str, done: Sequence[Forget]) -> None:
    """Remove items from the queue of deletions after the server has answered.

    Raises:
        ValueError: damaged rows cannot be found by their keys. Their deletions would be sent
            forever.
    """
    session = session_number(conn, session_id)
    deleted = conn.executemany(
        f"DELETE FROM forgets WHERE {BY_DOT} AND idx = ?",
        [(session, *forget.dot, forget.index) for forget in done],
    ).rowcount
    if deleted < len(done):
        # Another process may have deleted the rows. Rows that are still listed are damaged.
        left = set(done).intersection(forgets_due(conn, session_id, len(done)))
        if left:
            raise ValueError(f"{len(left)} rows of table forgets cannot be found by their keys")


def pending_sessions(conn: sqlite3.Connection) -> list[str]:
    """Return the sessions with operations to send, memories to delete or claims to resolve.

    The cost grows with the number of those sessions and of their parked operations, not with the
    length of their queues.
    """
    return list(session_ids(conn.execute(WAITING).fetchall()))


def _stepping(table: str) -> str:
    """Return SQL that steps through the session numbers in a table by its index, each once."""
    # UNION, not UNION ALL: UNION drops a number that was found before, so the query ends even if
    # cells are damaged. For example, SQLite compares the text '5' as the number 5, but treats every
    # text as greater than every number. The first bound skips a NULL, which SQLite would return as
    # the minimum of a NOT NULL column.
    least = f"SELECT min(session) FROM {table} WHERE session"
    return f"{least} >= {-(1 << 63)} UNION SELECT ({least} > s) FROM {{name}} WHERE s IS NOT NULL"


WAITING = (
    "WITH RECURSIVE "
    f"waits(s) AS ({_stepping('waiting').format(name='waits')}), "
    f"forgetting(s) AS ({_stepping('forgets').format(name='forgetting')}) "
    "SELECT session_id FROM sessions WHERE id IN (SELECT s FROM waits WHERE EXISTS "
    f"(SELECT 1 FROM waiting WHERE session = s AND {UNSENT}) "
    "UNION SELECT s FROM forgetting UNION SELECT session FROM claims)"
)


def has_unsent(conn: sqlite3.Connection, session_id: str) -> bool:
    """Return whether a session has operations to send."""
    session = session_number(conn, session_id)
    sql = f"SELECT 1 FROM waiting WHERE session = ? AND {UNSENT} LIMIT 1"
    return conn.execute(sql, (session,)).fetchone() is not None


def acknowledge_now(conn: sqlite3.Connection, seqs: Sequence[int], now_ms: int) -> None:
    """Record the time of an answer of the server, and the operations that the server has stored."""
    acknowledge(conn, seqs)
    note_success(conn, now_ms)
    if seqs:
        note_progress(conn, now_ms)


class Outbox:
    """The outbox of one journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def newest_seq(self) -> int:
        """Return the `seq` of the last operation of the journal."""
        return await self._runner.read(newest)

    async def pending_sessions(self) -> list[str]:
        """Return the sessions with operations to send, memories to delete or claims to resolve."""
        return await self._runner.read(pending_sessions)

    async def has_unsent(self, session: SessionRef) -> bool:
        """Return whether a session has operations to send."""
        return await self._runner.read(has_unsent, session.name)

    async def take(
        self, session: SessionRef, *, after: int | None, upto: int, most_ops: int, most_bytes: int
    ) -> list[int]:
        """Mark the next operations as sent; return their `seq` numbers. See the function `take`."""
        return await self._runner.write(
            take,
            session.name,
            after=after,
            upto=upto,
            most_ops=most_ops,
            most_bytes=most_bytes,
        )

    async def load(self, seqs: Sequence[int]) -> list[Outgoing]:
        """Return the given operations with their payloads. The read runs in a thread."""
        return await self._runner.read_aside(load_by_seq, seqs)

    async def acknowledge(self, seqs: Sequence[int], now_ms: int) -> None:
        """Record the time of an answer of the server, and the operations that the server has
        stored."""
        await self._runner.write(acknowledge_now, seqs, now_ms)

    async def park(self, seq: int, reason: str) -> bool:
        """Park an operation that the server refuses; return False if another process has
        acknowledged or dropped the operation meanwhile."""
        return await self._runner.write(park, seq, reason)

    async def forgets_due(self, session: SessionRef, limit: int) -> list[Forget]:
        """Return removed items whose memories the server should delete now."""
        return await self._runner.read(forgets_due, session.name, limit)

    async def delete_forgets(self, session: SessionRef, done: Sequence[Forget]) -> None:
        """Remove items from the queue of deletions after the server has answered."""
        await self._runner.write(delete_forgets, session.name, done)
