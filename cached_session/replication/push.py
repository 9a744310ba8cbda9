"""Push one session: send the outbox in order, then delete removed items on the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing

from cached_session.history.session_name import identity_fields, quoted_name
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.outbox import Forget
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.ids import READABLE_VERSIONS, memory_id, placeholder_id
from cached_session.remote.wire import EncodedMemory, placeholder
from cached_session.replication.context import Context
from cached_session.replication.encode_memories import encode
from cached_session.replication.push_plan import (
    DeliveryPlan,
    EncodedOperation,
    Park,
    check_placeholder,
    groups,
    kept,
)
from cached_session.replication.results import PushResult
from cached_session.replication.retention_guard import guard_retention
from cached_session.replication.store import store
from cached_session.replication.tasks import cancel_all

__all__ = ["push"]

FORGETS_A_REQUEST = 500
"""The maximum number of ids in one request that deletes memories."""
LAST_SEQ = (1 << 63) - 1
"""The highest possible `seq`."""
READ_OPERATIONS = 1000
"""The maximum number of operations that are read from the outbox at a time."""
READ_BYTES = 512 * 1024
"""The maximum number of payload bytes that are read from the outbox at a time: enough for a few
requests. The limit bounds the memory use of a long backlog."""

log = logging.getLogger("cached_session.replication")


async def push(context: Context, session: SessionRef, *, upto: int | None = None) -> PushResult:
    """Send the unsent operations of a session, then delete removed items from the server.

    Args:
        upto: the last `seq` to send; None to send until the outbox of the session is empty.

    Raises:
        RemoteError: the first failed request, or the server did not keep some operations. All
            earlier acknowledgements remain stored.
    """
    result = PushResult()
    async with context.lock("push", session.name):
        if await context.journal.outbox.has_unsent(session):
            await guard_retention(context, session)
            await _send_unsent(context, session, LAST_SEQ if upto is None else upto, result)
        await _forget_removed(context, session, result)
    if result.unkept:
        raise RemoteError(
            Verdict.UNREACHABLE,
            f"the server did not keep {result.unkept} operations of {session.agent} "
            "(does it deduplicate on store?); they will be sent again",
            scope=Scope.SESSION,
        )
    return result


async def _send_unsent(
    context: Context, session: SessionRef, upto: int, result: PushResult
) -> None:
    """Send the operations up to a `seq`, with as many operations in each request as fit."""
    batch_size = context.push_state.batch_size
    waiting: list[EncodedOperation] = []
    async with aclosing(_ReadAhead(context, session, upto)) as reader:
        while operations := await reader.next():
            # Do not send the last group yet: the next operations may fit into its request.
            limits = batch_size.limits(session.name)
            *full, waiting = groups([*waiting, *operations], limits)
            for group in full:
                await _deliver(context, session, group, result)
        if waiting:
            await _deliver(context, session, waiting, result)


class _ReadAhead:
    """The unsent operations of a session, encoded and in order.

    The next operations are read and encoded while the caller sends the previous operations.
    """

    def __init__(self, context: Context, session: SessionRef, upto: int) -> None:
        self._context = context
        self._session = session
        self._upto = upto
        self._reading = asyncio.ensure_future(self._read(after=None))

    async def next(self) -> list[EncodedOperation]:
        """Return the next operations; an empty list at the end."""
        last, operations = await self._reading
        if operations:
            self._reading = asyncio.ensure_future(self._read(after=last))
        return operations

    async def aclose(self) -> None:
        """Cancel the read under way; return when it has ended."""
        await cancel_all([self._reading])

    async def _read(self, after: int | None) -> tuple[int | None, list[EncodedOperation]]:
        outbox = self._context.journal.outbox
        seqs = await outbox.take(
            self._session,
            after=after,
            upto=self._upto,
            most_ops=READ_OPERATIONS,
            most_bytes=READ_BYTES,
        )
        if not seqs:
            return after, []
        operations = await outbox.load(seqs)
        return seqs[-1], await encode(self._context, self._session, operations)


async def _deliver(
    context: Context, session: SessionRef, group: list[EncodedOperation], result: PushResult
) -> None:
    """Send a group of operations and acknowledge them; park operations that the server refuses."""
    plan = DeliveryPlan(group)
    while (step := plan.next()) is not None:
        if isinstance(step, Park):
            await _park(context, session, step, result)
            continue
        memories = [memory for operation in step.operations for memory in operation.memories]
        try:
            unkept = await store(context, session, memories)
        except RemoteError as error:
            plan.refused(step, error)
        else:
            await _acknowledge(context, step.operations, unkept, result)


async def _acknowledge(
    context: Context, operations: Sequence[EncodedOperation], unkept: set[str], result: PushResult
) -> None:
    seqs = kept(operations, unkept)
    await context.journal.outbox.acknowledge(seqs, context.runtime.wall_ms())
    result.acked += len(seqs)
    result.unkept += len(operations) - len(seqs)


async def _park(context: Context, session: SessionRef, step: Park, result: PushResult) -> None:
    """Store a placeholder for an operation that the server refuses, and park the operation."""
    op, reason = step.operation.op, step.error.reason
    memory = EncodedMemory.of(placeholder(op, session.name))
    context.push_state.sent.add([memory.id])
    try:
        await context.remote.store(session.agent, [memory])
    except RemoteError as refusal:
        check_placeholder(refusal, step.error)
    if not await context.journal.outbox.park(step.operation.seq, reason):
        return
    result.parked += 1
    log.error(
        "operation %d of writer %s in session %s is parked: %s",
        op.dot.counter,
        op.dot.writer,
        quoted_name(session.name),
        reason,
        extra={
            **identity_fields(session.name),
            "writer": op.dot.writer,
            "counter": op.dot.counter,
        },
    )


async def _forget_removed(context: Context, session: SessionRef, result: PushResult) -> None:
    """Delete the memories of removed items on the server."""
    outbox = context.journal.outbox
    while due := await outbox.forgets_due(session, FORGETS_A_REQUEST):
        ids = [identity for forget in due for identity in _ids(forget, session.key)]
        for start in range(0, len(ids), FORGETS_A_REQUEST):
            await context.remote.forget(session.agent, ids[start : start + FORGETS_A_REQUEST])
        await outbox.delete_forgets(session, due)
        result.forgotten += len(due)


def _ids(forget: Forget, key: str) -> list[str]:
    """Return the ids of the memories to delete, in each wire version that the item may have."""
    if forget.index < 0:
        return [placeholder_id(key, forget.dot, version) for version in READABLE_VERSIONS]
    return [
        memory_id(key, forget.dot, forget.index, part, version)
        for version in READABLE_VERSIONS
        for part in range(forget.parts)
    ]
