"""From the outbox to the server: in order, whole, acknowledged by nothing but its answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from cached_session.history.ids import agent_id, session_key
from cached_session.journal.tables import outbox
from cached_session.journal.tables.meta import note_progress, note_success
from cached_session.journal.tables.outbox import Forget, has_unsent
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.ids import memory_id, placeholder_id
from cached_session.remote.wire import EncodedMemory, placeholder
from cached_session.replication.context import Context, log
from cached_session.replication.encode import EncodedOperation, encode
from cached_session.replication.results import PushResult
from cached_session.replication.retention_guard import guard
from cached_session.replication.store import store
from cached_session.replication.tasks import cancel_all

__all__ = ["push"]

FORGETS_A_REQUEST = 500
"""Ids in one forget request."""
EVERYTHING = (1 << 63) - 1
"""The highest `seq` that there can be."""
TAKE_OPS = 1000
TAKE_BYTES = 512 * 1024
"""Payload bytes taken from the outbox at a time: a few requests' worth, whatever the backlog."""


async def push(context: Context, session_id: str, *, upto: int | None = None) -> PushResult:
    """Send what waits in one session, then have the server forget what was removed.

    Args:
        upto: the `seq` to stop at; None goes on while there is something to send.

    Raises:
        RemoteError: the first failure; what was acknowledged before it stays acknowledged.
    """
    result = PushResult()
    last = EVERYTHING if upto is None else upto
    async with context.lock("push", session_id):
        if await context.journal.read(lambda conn: has_unsent(conn, session_id)):
            await guard(context, session_id)
            waiting: list[EncodedOperation] = []
            async with _taking(context, session_id, last) as following:
                while parcels := await following():
                    *full, waiting = _groups([*waiting, *parcels], context, session_id)
                    for group in full:
                        await _deliver(context, session_id, group, result)
                if waiting:
                    await _deliver(context, session_id, waiting, result)
        await _forget(context, session_id, result)
    if result.unkept:
        raise RemoteError(
            Verdict.UNREACHABLE,
            f"the server did not keep {result.unkept} operations of {agent_id(session_id)} "
            "(does it deduplicate on store?); they will be sent again",
            scope=Scope.SESSION,
        )
    return result


@asynccontextmanager
async def _taking(
    context: Context, session_id: str, last: int
) -> AsyncIterator[Callable[[], Awaitable[list[EncodedOperation]]]]:
    """What is to be sent, some at a time, in order; nothing at the end. The next is taken and
    encoded while its caller sends."""

    async def take(after: int | None) -> tuple[int | None, list[EncodedOperation]]:
        seqs = await context.journal.write(
            lambda conn: outbox.take(
                conn,
                session_id,
                after=after,
                upto=last,
                most_ops=TAKE_OPS,
                most_bytes=TAKE_BYTES,
            )
        )
        if not seqs:
            return after, []
        found = await context.journal.read_aside(lambda conn: outbox.whole(conn, seqs))
        return seqs[-1], await encode(context, found, session_id)

    ahead = asyncio.ensure_future(take(None))

    async def following() -> list[EncodedOperation]:
        nonlocal ahead
        after, parcels = await ahead
        if parcels:
            ahead = asyncio.ensure_future(take(after))
        return parcels

    try:
        yield following
    finally:
        await cancel_all([ahead])


def _groups(
    parcels: Sequence[EncodedOperation], context: Context, session_id: str
) -> list[list[EncodedOperation]]:
    """Neighbours that fit one request; an operation too large for one goes alone."""
    groups: list[list[EncodedOperation]] = []
    size = count = 0
    most = context.batch_most(session_id)
    for parcel in parcels:
        fits = size + parcel.size <= context.body.most and count + len(parcel.memories) <= most
        if groups and fits:
            groups[-1].append(parcel)
        else:
            groups.append([parcel])
            size = count = 0
        size += parcel.size
        count += len(parcel.memories)
    return groups


async def _deliver(
    context: Context, session_id: str, group: Sequence[EncodedOperation], result: PushResult
) -> None:
    """Send a group and settle it; a refusal is bisected down to the operation at fault.

    An operation of which everything was removed before it was sent has no memories: its removal
    explains its dot, and nobody ever needs it.
    """
    try:
        unkept = await store(
            context, session_id, [memory for parcel in group for memory in parcel.memories]
        )
    except RemoteError as error:
        if error.verdict is not Verdict.REFUSED:
            raise
        if len(group) == 1:
            await _park(context, session_id, group[0], error, result)
            return
        middle = len(group) // 2
        await _deliver(context, session_id, group[:middle], result)
        await _deliver(context, session_id, group[middle:], result)
        return
    kept = [
        parcel.outgoing.seq
        for parcel in group
        if not any(memory.id in unkept for memory in parcel.memories)
    ]
    now = context.runtime.wall_ms()

    def settle(conn: sqlite3.Connection) -> None:
        outbox.ack(conn, kept)
        note_success(conn, now)
        if kept:
            note_progress(conn, now)

    await context.journal.write(settle)
    result.acked += len(kept)
    result.unkept += len(group) - len(kept)


async def _park(
    context: Context,
    session_id: str,
    parcel: EncodedOperation,
    error: RemoteError,
    result: PushResult,
) -> None:
    """Set one operation aside. The placeholder proves that it is the operation that is at fault:
    a server that refuses even that refuses everything."""
    op = parcel.outgoing.op
    note = EncodedMemory.of(placeholder(op, session_id))
    context.sent.add([note.id])
    try:
        await context.remote.store(agent_id(session_id), [note])
    except RemoteError as refusal:
        if refusal.verdict is Verdict.REFUSED:
            raise RemoteError(
                Verdict.DENIED,
                f"the server refuses everything of this session: {error.reason}",
                scope=Scope.SESSION,
                status=error.status,
            ) from refusal
        if refusal.verdict is not Verdict.CONFLICT:  # it stands there already
            raise
    if not await context.journal.write(
        lambda conn: outbox.park(conn, parcel.outgoing.seq, error.reason)
    ):
        return
    result.parked += 1
    log.error(
        "operation %d of writer %s in session %r is parked: %s",
        op.dot.counter,
        op.dot.writer,
        session_id,
        error.reason,
        extra={"session": session_id, "writer": op.dot.writer, "counter": op.dot.counter},
    )


async def _forget(context: Context, session_id: str, result: PushResult) -> None:
    agent, key = agent_id(session_id), session_key(session_id)
    while True:
        due = await context.journal.read(
            lambda conn: outbox.forgets_due(conn, session_id, FORGETS_A_REQUEST)
        )
        if not due:
            return
        ids = [identity for forget in due for identity in _ids(forget, key)]
        for start in range(0, len(ids), FORGETS_A_REQUEST):
            await context.remote.forget(agent, ids[start : start + FORGETS_A_REQUEST])
        await context.journal.write(
            lambda conn, due=due: outbox.forgotten(conn, session_id, due)  # type: ignore[misc]
        )
        result.forgotten += len(due)


def _ids(forget: Forget, key: str) -> list[str]:
    if forget.index < 0:
        return [placeholder_id(key, forget.dot)]
    return [memory_id(key, forget.dot, forget.index, part) for part in range(forget.parts)]
