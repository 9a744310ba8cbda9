"""The decisions of a push: which operations go into one request, and what a refusal means. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cached_session.history.ops import Operation
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import BatchLimits

__all__ = [
    "DeliveryPlan",
    "EncodedOperation",
    "Park",
    "SendGroup",
    "check_placeholder",
    "groups",
    "kept",
]


@dataclass(frozen=True)
class EncodedOperation:
    """An operation of the outbox and its memories, ready to be sent.

    An operation has no memories if all its items were removed before it was sent. Such an operation
    need not be sent: the operation that removed the items also explains the gap on other replicas.
    """

    seq: int
    op: Operation
    memories: list[EncodedMemory] = field(repr=False)

    @property
    def size(self) -> int:
        """The number of encoded bytes."""
        return sum(len(memory.data) for memory in self.memories)


def groups(
    operations: Sequence[EncodedOperation], limits: BatchLimits
) -> list[list[EncodedOperation]]:
    """Divide operations, in order, into groups that fit one request each.

    An operation that is too large for one request gets a group of its own.
    """
    found: list[list[EncodedOperation]] = []
    size = count = 0
    for operation in operations:
        fits = (
            size + operation.size <= limits.bytes
            and count + len(operation.memories) <= limits.memories
        )
        if found and fits:
            found[-1].append(operation)
        else:
            found.append([operation])
            size = count = 0
        size += operation.size
        count += len(operation.memories)
    return found


def kept(group: Sequence[EncodedOperation], unkept: Collection[str]) -> list[int]:
    """Return the `seq` of the operations of which the server kept every memory."""
    return [
        operation.seq
        for operation in group
        if not any(memory.id in unkept for memory in operation.memories)
    ]


@dataclass(frozen=True)
class SendGroup:
    """Send these operations, and call `DeliveryPlan.refused` if the request fails."""

    operations: list[EncodedOperation]


@dataclass(frozen=True)
class Park:
    """Park this operation, because the server refuses it even in a request of its own."""

    operation: EncodedOperation
    error: RemoteError


class DeliveryPlan:
    """The steps that deliver one group of operations.

    A group that the server refuses is halved until the refused operation is alone in its request.
    That operation is parked, and all other operations are sent in order.
    """

    def __init__(self, group: list[EncodedOperation]) -> None:
        self._steps: list[SendGroup | Park] = [SendGroup(group)]

    def next(self) -> SendGroup | Park | None:
        """Return the next step; None at the end."""
        return self._steps.pop() if self._steps else None

    def refused(self, step: SendGroup, error: RemoteError) -> None:
        """Plan the next steps after a request that failed.

        Raises:
            RemoteError: the error itself, unless the server refuses these operations for good.
        """
        if error.verdict is not Verdict.REFUSED:
            raise error
        if len(step.operations) == 1:
            self._steps.append(Park(step.operations[0], error))
            return
        middle = len(step.operations) // 2
        self._steps += [SendGroup(step.operations[middle:]), SendGroup(step.operations[:middle])]


def check_placeholder(refusal: RemoteError, error: RemoteError) -> None:
    """Check whether an operation may be parked although its placeholder could not be stored.

    A server that refuses even the placeholder refuses every memory of the session. In that case,
    the operation is not at fault and must not be parked.

    Args:
        refusal: the error for the placeholder.
        error: the error for the operation.

    Raises:
        RemoteError: `DENIED` if the server refuses the placeholder; ``refusal`` itself for every
            other error, except for a conflict. A conflict means that the server already holds the
            placeholder.
    """
    if refusal.verdict is Verdict.REFUSED:
        raise RemoteError(
            Verdict.DENIED,
            f"the server refuses everything of this session: {error.reason}",
            scope=Scope.SESSION,
            status=error.status,
        ) from refusal
    if refusal.verdict is not Verdict.CONFLICT:
        raise refusal
