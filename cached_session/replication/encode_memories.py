"""Encode operations of the outbox into memories without blocking the event loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.outbox import Outgoing
from cached_session.remote.wire import EncodedMemory, memories_of
from cached_session.replication.context import Context
from cached_session.replication.push_plan import EncodedOperation
from cached_session.replication.tasks import SliceBudget

__all__ = ["LARGE_BYTES", "SLICE_BYTES", "encode"]

SLICE_BYTES = 8 * 1024
"""The number of bytes that are encoded on the event loop at a time: about 200 microseconds of
work."""

LARGE_BYTES = 128 * 1024
"""The payload size in bytes above which an operation is encoded in a thread. One item may make up
all of this payload, and a single item cannot be encoded in slices."""


async def encode(
    context: Context, session: SessionRef, operations: Sequence[Outgoing]
) -> list[EncodedOperation]:
    """Return the operations with their memories, in the same order."""
    budget = SliceBudget(SLICE_BYTES)
    encoded = []
    for outgoing in operations:
        pieces = _memories(outgoing, session)
        if sum(map(len, outgoing.op.payloads)) > LARGE_BYTES:
            memories: list[EncodedMemory] = await context.journal.offload(list, pieces)
        else:
            memories = []
            for memory in pieces:
                memories.append(memory)
                await budget.spend(len(memory.data))
        encoded.append(EncodedOperation(outgoing.seq, outgoing.op, memories))
    return encoded


def _memories(outgoing: Outgoing, session: SessionRef) -> Iterator[EncodedMemory]:
    return map(EncodedMemory.of, memories_of(outgoing.op, outgoing.digest, session.name))
