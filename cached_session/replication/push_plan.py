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

    An operation whose items were all removed before it was sent has no memories. The operation
    that removed them also explains its gap, and no reader needs it.
    """

    seq: int
    op: Operation
    memories: list[EncodedMemory] = field(repr=False)

    @property
    def size(self) -> int:
        """Encoded bytes."""
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
    """Send these operations. Then `DeliveryPlan.refused`, if the server refuses them."""

    operations: list[EncodedOperation]


@dataclass(frozen=True)
class Park:
    """Park this operation: the server refuses it alone."""

    operation: EncodedOperation
    error: RemoteError


class DeliveryPlan:
    """The steps that deliver one group of operations.

    A group that the server refuses is halved until the operation at fault is alone. That one is
    parked, and all others arrive in order.
    """

    def __init__(self, group: list[EncodedOperation]) -> None:
        self._steps: list[SendGroup | Park] = [SendGroup(group)]

    def next(self) -> SendGroup | Park | None:
        """Return the next step; None at the end."""
        return self._steps.pop() if self._steps else None

    def refused(self, step: SendGroup, error: RemoteError) -> None:
        """Go on after a request that failed.

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
    """Check the failure of storing a placeholder for an operation that got `error`.

    A server that refuses even the placeholder refuses everything, and no operation is at fault.

    Raises:
        RemoteError: DENIED in that case; the refusal itself unless the placeholder exists already.
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
