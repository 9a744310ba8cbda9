"""Encode operations into memories without holding the event loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cached_session.journal.tables.outbox import Outgoing
from cached_session.remote.wire import EncodedMemory, memories_of
from cached_session.replication.context import Context
from cached_session.replication.tasks import SliceBudget

__all__ = ["LARGE_BYTES", "SLICE_BYTES", "EncodedOperation", "encode"]

SLICE_BYTES = 8 * 1024
"""Memories encoded on the event loop at a time: some two hundred microseconds of work."""


LARGE_BYTES = 128 * 1024
"""An operation with more payload is cut and encoded in a thread: one item of it may be that large,
and cannot be done in slices."""


@dataclass
class EncodedOperation:
    """An operation and its memories, ready to be sent."""

    outgoing: Outgoing
    memories: list[EncodedMemory]

    @property
    def size(self) -> int:
        """EncodedMemory bytes."""
        return sum(len(memory.data) for memory in self.memories)


async def encode(
    context: Context, found: Sequence[Outgoing], session_id: str
) -> list[EncodedOperation]:
    """Operations with their memories."""
    budget = SliceBudget(SLICE_BYTES)
    parcels = []
    for outgoing in found:
        pieces = _memories(outgoing, session_id)
        if sum(map(len, outgoing.op.payloads)) > LARGE_BYTES:
            memories: list[EncodedMemory] = await context.journal.offload(list, pieces)
        else:
            memories = []
            for memory in pieces:
                memories.append(memory)
                await budget.spend(len(memory.data))
        parcels.append(EncodedOperation(outgoing, memories))
    return parcels


def _memories(outgoing: Outgoing, session_id: str) -> Iterator[EncodedMemory]:
    return map(EncodedMemory.of, memories_of(outgoing.op, outgoing.digest, session_id))
