"""The plan of an audit: the differences between a server's listing and the journal.

The functions of this module are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cached_session.history.ops import Dot
from cached_session.history.parts import Part, is_intact
from cached_session.journal.tables.outbox import Forget

__all__ = ["AuditPlan", "HeldOperation", "ServerListing", "compare"]


@dataclass
class ServerListing:
    """The memories that a server lists for one session."""

    key: str
    """The hash of the session's id, which `is_intact` needs."""
    parts: dict[Dot, dict[tuple[int, int], int]] = field(default_factory=dict)
    """The listed parts of each operation. A (payload index, part index) pair maps to the number of
    parts of that payload."""
    explained: set[Dot] = field(default_factory=set)
    """The dots of operations that have a placeholder, because the server refuses them."""

    def add(self, parts: Sequence[Part], explained: Sequence[Dot]) -> None:
        """Add listed memories, except parts that do not match their seal."""
        self.explained.update(explained)
        for part in parts:
            if is_intact(part, self.key):
                self.parts.setdefault(part.dot, {})[part.index, part.part] = part.parts

    def __len__(self) -> int:
        """Return the number of parts."""
        return sum(len(parts) for parts in self.parts.values())


@dataclass(frozen=True, slots=True)
class HeldOperation:
    """An operation that the journal holds, with the values that an audit compares."""

    seq: int
    dot: Dot
    is_acked: bool
    is_parked: bool
    is_append: bool
    part_counts: Mapping[int, int]
    """For each payload, by its index: the number of parts that the server must hold. Removed
    items of an append are left out."""


@dataclass
class AuditPlan:
    """The result of a comparison: the operations to send again, the memories to delete, and the
    placeholders to store."""

    resend: list[int] = field(default_factory=list)
    """The `seq` numbers of acknowledged operations that the server does not hold completely."""
    forget: list[Forget] = field(default_factory=list)
    """Removed items, and obsolete placeholders, that the server still holds."""
    explain: list[int] = field(default_factory=list)
    """The `seq` numbers of parked operations whose placeholder the server does not hold."""


def compare(
    operations: Iterable[HeldOperation],
    listing: ServerListing,
    is_cleared: Callable[[Dot], bool],
) -> AuditPlan:
    """Compare the listing of the server with every operation that the journal holds.

    Args:
        is_cleared: returns whether a clear covers an operation.
    """
    plan = AuditPlan()
    known: set[Dot] = set()
    for operation in operations:
        known.add(operation.dot)
        if operation.is_acked or operation.is_parked:
            _compare_one(plan, operation, listing)
    for dot, listed in listing.parts.items():
        # `compaction.prune` has deleted the operation's row. The server holds too few of its parts
        # for a pull to apply it again, so no other code queues the deletion of these parts.
        if dot not in known and is_cleared(dot):
            plan.forget.extend(_forgets(dot, listed, kept={}))
    return plan


def _compare_one(plan: AuditPlan, operation: HeldOperation, listing: ServerListing) -> None:
    dot, is_explained = operation.dot, operation.dot in listing.explained
    listed = listing.parts.get(dot, {})
    if operation.is_acked and is_explained:
        # A retry has delivered the parked operation and deleted its placeholder, but a server that
        # was restored from an older backup has the placeholder again.
        plan.forget.append(Forget(dot, -1, 1))
    is_whole = all(
        (index, part) in listed
        for index, parts in operation.part_counts.items()
        for part in range(parts)
    )
    if not is_whole and operation.is_acked:
        plan.resend.append(operation.seq)
    elif not is_whole and not is_explained:
        plan.explain.append(operation.seq)
    if operation.is_append and operation.is_acked:
        plan.forget.extend(_forgets(dot, listed, kept=operation.part_counts))


def _forgets(
    dot: Dot, listed: Mapping[tuple[int, int], int], kept: Mapping[int, int]
) -> list[Forget]:
    """Return the listed payloads of an operation that are not in ``kept``.

    Any part proves that the server holds a payload: the server may have deleted the first part
    already.
    """
    removed = {index: parts for (index, _), parts in listed.items() if index not in kept}
    return [Forget(dot, index, parts) for index, parts in removed.items()]
