"""The steps to store a batch of memories: which request comes next, and which memories the server
did not keep. Pure.

`StorePlan` is a state machine without I/O: it returns the next step, and the caller reports the
result of the step to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import BatchLimits

__all__ = ["SAMPLES", "Fetch", "ListNewest", "Send", "Step", "StorePlan", "batches"]

SAMPLES = 3
"""Once so many memories are fetched and not found, all unconfirmed ones count as not kept."""


def batches(memories: Sequence[EncodedMemory], limits: BatchLimits) -> list[list[EncodedMemory]]:
    """Divide memories into requests within the limits; a memory above them gets its own."""
    found: list[list[EncodedMemory]] = []
    size = 0
    for memory in memories:
        is_full = not found or len(found[-1]) >= limits.memories
        if is_full or size + len(memory.data) > limits.bytes:
            found.append([])
            size = 0
        found[-1].append(memory)
        size += len(memory.data)
    return found


@dataclass(frozen=True)
class Send:
    """Store these memories, and then call `StorePlan.sent` or `StorePlan.refused`."""

    memories: list[EncodedMemory]


@dataclass(frozen=True)
class ListNewest:
    """List the newest memories on the server, and then call `StorePlan.listed`."""

    memories: list[EncodedMemory]
    """The memories to look for."""
    conflict: bool
    """The server has refused them because it holds some of these ids."""


@dataclass(frozen=True)
class Fetch:
    """Fetch the memory by its id, and then call `StorePlan.fetched`."""

    memory: EncodedMemory
    rest: list[EncodedMemory]
    """The memories to fetch after it."""
    unconfirmed: frozenset[str]
    """The ids of all the memories that the server has not confirmed, this one among them."""
    missing: frozenset[str]
    """The ids of those that were fetched and not found."""


Step = Send | ListNewest | Fetch


class StorePlan:
    """The steps that store one batch and verify that the server keeps it.

    Memories that the server does not confirm are looked up by one listing. Only a few that the
    listing does not show are fetched by id.
    """

    def __init__(self, batch: list[EncodedMemory]) -> None:
        self._steps: list[Step] = [Send(batch)]
        self.unkept: set[str] = set()
        """The ids that the server did not keep, as far as the steps have shown."""

    def next(self) -> Step | None:
        """Return the next step; None at the end."""
        return self._steps.pop() if self._steps else None

    def sent(self, step: Send, stored: Collection[str]) -> None:
        """Plan the next steps after a successful request. ``stored``: the ids in its answer."""
        unconfirmed = [memory for memory in step.memories if memory.id not in stored]
        if len(unconfirmed) > SAMPLES:
            self._steps.append(ListNewest(unconfirmed, conflict=False))
        else:
            self._fetch(unconfirmed)

    def refused(self, step: Send, error: RemoteError) -> None:
        """Plan the next steps after a request that failed.

        Raises:
            RemoteError: the error itself, if a smaller request would not change it.
        """
        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):
            raise error
        conflict = error.verdict is Verdict.CONFLICT
        if conflict and len(step.memories) > SAMPLES:
            self._steps.append(ListNewest(step.memories, conflict=True))
        elif len(step.memories) > 1 and (conflict or _is_one_operation(step.memories)):
            # One of several operations at fault is found by the push, which can park it.
            self._halve(step.memories)
        elif conflict:
            self._fetch(step.memories)
        else:
            raise error

    def listed(self, step: ListNewest, held: Collection[str]) -> None:
        """Plan the next steps after a listing. ``held``: the ids of the memories that it shows with
        the same content as here."""
        rest = [memory for memory in step.memories if memory.id not in held]
        if not step.conflict:
            self._fetch(rest)
        elif not held:
            self._halve(step.memories)
        elif rest:
            self._steps.append(Send(rest))

    def fetched(self, step: Fetch, *, is_held: bool) -> None:
        """Plan the next steps after a fetch. ``is_held``: whether the server holds the memory with
        the same content as here."""
        missing = step.missing if is_held else step.missing | {step.memory.id}
        if not step.rest:
            self.unkept |= missing
        elif len(missing) >= SAMPLES:
            # A server that keeps nothing is not asked a thousand times. All is sent again.
            self.unkept |= step.unconfirmed
        else:
            self._steps.append(Fetch(step.rest[0], step.rest[1:], step.unconfirmed, missing))

    def _fetch(self, memories: list[EncodedMemory]) -> None:
        if memories:
            ids = frozenset(memory.id for memory in memories)
            self._steps.append(Fetch(memories[0], memories[1:], ids, frozenset()))

    def _halve(self, memories: list[EncodedMemory]) -> None:
        middle = len(memories) // 2
        self._steps += [Send(memories[middle:]), Send(memories[:middle])]


def _is_one_operation(memories: Sequence[EncodedMemory]) -> bool:
    return len({memory.dot for memory in memories}) == 1
