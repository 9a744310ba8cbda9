"""Store memories in requests of legal size and verify what the server kept."""

from __future__ import annotations

from collections.abc import Sequence

from cached_session.history.ids import agent_id
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.context import RATE_LIMITED, Context

__all__ = ["LISTED", "SAMPLES", "store"]

SAMPLES = 3
"""Memories that are looked for by id, and not found, before the rest counts as not kept."""


LISTED = 1000
"""Rows of the one listing that tells which of many memories are there already."""


async def store(context: Context, session_id: str, memories: Sequence[EncodedMemory]) -> set[str]:
    """Store memories, in requests of legal size; the ids of those that the server did not keep.

    Where a server takes only so many a minute, what it has taken of a large operation is not sent
    again after the pause: it would use up the next minute, and the next. In the end it is asked for
    the last of that, because it may have been restarted meanwhile, without it.

    Raises:
        RemoteError: REFUSED if even one of them alone is refused.
    """
    taken = context.taken.setdefault(session_id, set())
    relied = None
    if session_id not in context.doubted:
        relied = next((memory for memory in reversed(memories) if memory.id in taken), None)
    unkept: set[str] = set()
    for batch in _batches(memories, context, session_id, taken):
        ids = {memory.id for memory in batch}
        size, began = sum(len(memory.data) for memory in batch), context.runtime.monotonic()
        try:
            missing = await _store_batch(context, session_id, batch)
        except RemoteError as error:
            context.body.failed(size, error)
            if error.status == RATE_LIMITED:
                context.batch_refused(session_id, len(batch))
            raise
        context.body.answered(size, context.runtime.monotonic() - began)
        context.batch_taken(session_id, len(batch))
        taken |= ids - missing
        unkept |= missing
    if relied is not None:
        found = await context.remote.fetch(agent_id(session_id), relied.id)
        if not relied.is_held(found):
            # Once for an operation: a server whose reads lag would be sent it again without end.
            context.doubted.add(session_id)
            taken.clear()
            return await store(context, session_id, memories)
    context.doubted.discard(session_id)
    del context.taken[session_id]
    return unkept


def _batches(
    memories: Sequence[EncodedMemory], context: Context, session_id: str, taken: set[str]
) -> list[list[EncodedMemory]]:
    batches: list[list[EncodedMemory]] = []
    size = 0
    most = context.batch_most(session_id)
    for memory in memories:
        if memory.id in taken:
            continue
        full = not batches or len(batches[-1]) >= most
        if full or size + len(memory.data) > context.body.most:
            batches.append([])
            size = 0
        batches[-1].append(memory)
        size += len(memory.data)
    return batches


async def _store_batch(context: Context, session_id: str, batch: list[EncodedMemory]) -> set[str]:
    """Store a batch; the ids that the server did not keep. What it holds already, whether it
    refuses to hear of it again or keeps silent, is looked up by one listing, not one by one."""
    agent = agent_id(session_id)
    context.sent.add(memory.id for memory in batch)
    try:
        stored = await context.remote.store(agent, batch)
    except RemoteError as error:
        # Too large together, or one id there already: smaller requests tell.
        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):
            raise
        conflict = error.verdict is Verdict.CONFLICT
        stored = (
            await _listed(context, agent, batch) if conflict and len(batch) > SAMPLES else set()
        )
        rest = [memory for memory in batch if memory.id not in stored]
        if stored:
            return await _store_batch(context, session_id, rest) if rest else set()
        if len(batch) > 1 and (conflict or _is_one_operation(batch)):
            middle = len(batch) // 2
            unkept = await _store_batch(context, session_id, batch[:middle])
            return unkept | await _store_batch(context, session_id, batch[middle:])
        if not conflict:
            raise
    unsaid = [memory for memory in batch if memory.id not in stored]
    if len(unsaid) > SAMPLES:
        held = await _listed(context, agent, unsaid)
        unsaid = [memory for memory in unsaid if memory.id not in held]
    unkept = set()
    for memory in unsaid:
        if len(unkept) >= SAMPLES:
            # A server that keeps nothing is not asked a thousand times. All of it is sent again.
            return {memory.id for memory in unsaid}
        if not memory.is_held(await context.remote.fetch(agent, memory.id)):
            unkept.add(memory.id)
    return unkept


async def _listed(context: Context, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
    """Those of these memories that stand, as they are, among the newest on the server."""
    found = await context.remote.list_memories(agent, offset=0, limit=LISTED)
    theirs = {memory["id"]: memory for memory in found if isinstance(memory.get("id"), str)}
    return {memory.id for memory in memories if memory.is_held(theirs.get(memory.id))}


def _is_one_operation(batch: list[EncodedMemory]) -> bool:
    return len({memory.dot for memory in batch}) == 1
