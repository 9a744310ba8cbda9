"""Store memories in requests within the size limits, and verify that the server keeps them."""

from __future__ import annotations

from collections.abc import Sequence

from cached_session.history.session_ref import SessionRef
from cached_session.remote.errors import RemoteError
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.context import Context
from cached_session.replication.store_plan import Fetch, ListNewest, Send, StorePlan, batches

__all__ = ["LISTED", "store"]

LISTED = 1000
"""The number of newest rows that are listed to find out which of many memories the server holds."""


async def store(
    context: Context, session: SessionRef, memories: Sequence[EncodedMemory]
) -> set[str]:
    """Store memories; return the ids of the memories that the server did not keep.

    An interrupted store resumes where it stopped; see `StoreProgress`.

    Raises:
        RemoteError: a request has failed; `REFUSED` if the server refuses a memory for good.
    """
    session_id, clock = session.name, context.runtime.monotonic
    progress, batch_size = context.push_state.progress, context.push_state.batch_size
    while True:
        to_verify = progress.to_verify(session_id, memories)
        unkept: set[str] = set()
        unsent = progress.unsent(session_id, memories)
        for batch in batches(unsent, batch_size.limits(session_id)):
            size, began = sum(len(memory.data) for memory in batch), clock()
            try:
                missing = await _store_batch(context, session, batch)
            except RemoteError as error:
                batch_size.failed(session_id, size, len(batch), error)
                raise
            batch_size.answered(session_id, size, len(batch), clock() - began)
            progress.acknowledge(session_id, {memory.id for memory in batch} - missing)
            unkept |= missing
        if to_verify is None or await _is_held(context, session, to_verify):
            progress.finish(session_id)
            return unkept
        progress.lost(session_id)


async def _store_batch(
    context: Context, session: SessionRef, batch: list[EncodedMemory]
) -> set[str]:
    """Run the steps of a `StorePlan`; return the ids of memories that the server did not keep."""
    plan = StorePlan(batch)
    while (step := plan.next()) is not None:
        if isinstance(step, Send):
            context.push_state.sent.add(memory.id for memory in step.memories)
            try:
                stored = await context.remote.store(session.agent, step.memories)
            except RemoteError as error:
                plan.refused(step, error)
            else:
                plan.sent(step, stored)
        elif isinstance(step, ListNewest):
            plan.listed(step, await _held_in_listing(context, session, step.memories))
        elif isinstance(step, Fetch):
            plan.fetched(step, is_held=await _is_held(context, session, step.memory))
    return plan.unkept


async def _held_in_listing(
    context: Context, session: SessionRef, memories: Sequence[EncodedMemory]
) -> set[str]:
    """Return the ids of the memories that the newest rows on the server show unchanged."""
    rows = await context.remote.list_memories(session.agent, offset=0, limit=LISTED)
    theirs = {row["id"]: row for row in rows if isinstance(row.get("id"), str)}
    return {memory.id for memory in memories if memory.is_held(theirs.get(memory.id))}


async def _is_held(context: Context, session: SessionRef, memory: EncodedMemory) -> bool:
    return memory.is_held(await context.remote.fetch(session.agent, memory.id))
