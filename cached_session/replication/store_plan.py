"""The steps that store a batch of memories and find the memories that the server did not keep.

Pure: `StorePlan` is a state machine without I/O. It returns the next step. The caller runs the step
and reports the result to the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import BatchLimits

__all__ = ["SAMPLES", "Fetch", "ListNewest", "Send", "Step", "StorePlan", "batches"]

SAMPLES = 3
"""The number of fetched memories that must be missing before all unconfirmed memories count as not
kept. Also the largest number of memories that are fetched by id without a listing first."""


def batches(memories: Sequence[EncodedMemory], limits: BatchLimits) -> list[list[EncodedMemory]]:
    """Divide memories, in order, into batches within the limits of one request.

    A memory that is larger than the limit gets its own batch.
    """
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
    """True if the server has refused the memories because it already holds some of their ids."""


@dataclass(frozen=True)
class Fetch:
    """Fetch the memory by its id, and then call `StorePlan.fetched`."""

    memory: EncodedMemory
    rest: list[EncodedMemory]
    """The memories to fetch after this memory."""
    unconfirmed: frozenset[str]
    """The ids of all memories that the server has not confirmed, including this memory."""
    missing: frozenset[str]
    """The ids of the unconfirmed memories that were fetched and not found."""


Step = Send | ListNewest | Fetch


class StorePlan:
    """The steps that store one batch and verify that the server keeps it.

    If the server leaves more than `SAMPLES` memories unconfirmed, the plan first requests one
    listing. Then it fetches by id the memories that the listing does not contain. If `SAMPLES` of
    them are missing, the plan stops fetching, and all unconfirmed memories count as not kept.
    """

    def __init__(self, batch: list[EncodedMemory]) -> None:
        self._steps: list[Step] = [Send(batch)]
        self.unkept: set[str] = set()
        """The ids of the memories that the server did not keep, according to the completed
        steps."""

    def next(self) -> Step | None:
        """Return the next step; None at the end."""
        return self._steps.pop() if self._steps else None

    def sent(self, step: Send, stored: Collection[str]) -> None:
        """Plan the next steps after a successful request.

        Args:
            stored: the ids that the server has confirmed in its answer.
        """
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
            # Do not halve several operations that the server refuses: the push divides them itself
            # to find the operation to park.
            self._halve(step.memories)
        elif conflict:
            self._fetch(step.memories)
        else:
            raise error

    def listed(self, step: ListNewest, held: Collection[str]) -> None:
        """Plan the next steps after a listing.

        Args:
            held: the ids of the memories that the listing shows with unchanged content.
        """
        rest = [memory for memory in step.memories if memory.id not in held]
        if not step.conflict:
            self._fetch(rest)
        elif not held:
            self._halve(step.memories)
        elif rest:
            self._steps.append(Send(rest))

    def fetched(self, step: Fetch, *, is_held: bool) -> None:
        """Plan the next steps after a fetch.

        Args:
            is_held: whether the server holds the memory with unchanged content.
        """
        missing = step.missing if is_held else step.missing | {step.memory.id}
        if not step.rest:
            self.unkept |= missing
        elif len(missing) >= SAMPLES:
            # The server seems to keep no memories. Stop fetching: up to a thousand requests would
            # follow. All unconfirmed memories are sent again.
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
