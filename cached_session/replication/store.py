"""Store memories in requests of legal size and verify what the server kept."""

from __future__ import annotations

from collections.abc import Sequence

from cached_session.history.ids import agent_id
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.context import RATE_LIMITED, Link

__all__ = ["LISTED", "SAMPLES", "store"]

SAMPLES = 3
"""Memories that are looked for by id, and not found, before the rest counts as not kept."""


LISTED = 1000
"""Rows of the one listing that tells which of many memories are there already."""


async def store(link: Link, session_id: str, memories: Sequence[EncodedMemory]) -> set[str]:
    """Store memories, in requests of legal size; the ids of those that the server did not keep.

    Where a server takes only so many a minute, what it has taken of a large operation is not sent
    again after the pause: it would use up the next minute, and the next. In the end it is asked for
    the last of that, because it may have been restarted meanwhile, without it.

    Raises:
        RemoteError: REFUSED if even one of them alone is refused.
    """
    taken = link.taken.setdefault(session_id, set())
    relied = None
    if session_id not in link.doubted:
        relied = next((memory for memory in reversed(memories) if memory.id in taken), None)
    unkept: set[str] = set()
    for batch in _batches(memories, link, session_id, taken):
        ids = {memory.id for memory in batch}
        size, began = sum(len(memory.data) for memory in batch), link.runtime.monotonic()
        try:
            missing = await _store_batch(link, session_id, batch)
        except RemoteError as error:
            link.body.failed(size, error)
            if error.status == RATE_LIMITED:
                link.batch_refused(session_id, len(batch))
            raise
        link.body.answered(size, link.runtime.monotonic() - began)
        link.batch_taken(session_id, len(batch))
        taken |= ids - missing
        unkept |= missing
    if relied is not None:
        found = await link.remote.fetch(agent_id(session_id), relied.id)
        if not relied.is_held(found):
            # Once for an operation: a server whose reads lag would be sent it again without end.
            link.doubted.add(session_id)
            taken.clear()
            return await store(link, session_id, memories)
    link.doubted.discard(session_id)
    del link.taken[session_id]
    return unkept


def _batches(
    memories: Sequence[EncodedMemory], link: Link, session_id: str, taken: set[str]
) -> list[list[EncodedMemory]]:
    batches: list[list[EncodedMemory]] = []
    size = 0
    most = link.batch_most(session_id)
    for memory in memories:
        if memory.id in taken:
            continue
        full = not batches or len(batches[-1]) >= most
        if full or size + len(memory.data) > link.body.most:
            batches.append([])
            size = 0
        batches[-1].append(memory)
        size += len(memory.data)
    return batches


async def _store_batch(link: Link, session_id: str, batch: list[EncodedMemory]) -> set[str]:
    """Store a batch; the ids that the server did not keep. What it holds already, whether it
    refuses to hear of it again or keeps silent, is looked up by one listing, not one by one."""
    agent = agent_id(session_id)
    link.sent.add(memory.id for memory in batch)
    try:
        stored = await link.remote.store(agent, batch)
    except RemoteError as error:
        # Too large together, or one id there already: smaller requests tell.
        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):
            raise
        conflict = error.verdict is Verdict.CONFLICT
        stored = await _listed(link, agent, batch) if conflict and len(batch) > SAMPLES else set()
        rest = [memory for memory in batch if memory.id not in stored]
        if stored:
            return await _store_batch(link, session_id, rest) if rest else set()
        if len(batch) > 1 and (conflict or _is_one_operation(batch)):
            middle = len(batch) // 2
            unkept = await _store_batch(link, session_id, batch[:middle])
            return unkept | await _store_batch(link, session_id, batch[middle:])
        if not conflict:
            raise
    unsaid = [memory for memory in batch if memory.id not in stored]
    if len(unsaid) > SAMPLES:
        held = await _listed(link, agent, unsaid)
        unsaid = [memory for memory in unsaid if memory.id not in held]
    unkept = set()
    for memory in unsaid:
        if len(unkept) >= SAMPLES:
            # A server that keeps nothing is not asked a thousand times. All of it is sent again.
            return {memory.id for memory in unsaid}
        if not memory.is_held(await link.remote.fetch(agent, memory.id)):
            unkept.add(memory.id)
    return unkept


async def _listed(link: Link, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
    """Those of these memories that stand, as they are, among the newest on the server."""
    found = await link.remote.list_memories(agent, offset=0, limit=LISTED)
    theirs = {memory["id"]: memory for memory in found if isinstance(memory.get("id"), str)}
    return {memory.id for memory in memories if memory.is_held(theirs.get(memory.id))}


def _is_one_operation(batch: list[EncodedMemory]) -> bool:
    return len({memory.dot for memory in batch}) == 1
