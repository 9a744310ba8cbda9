"""The rules of confirmed pops: which device gets an item, and how a claim in doubt ends. Pure.

A device that claims an item leaves a note on it, deletes the item's memory, and reads the notes.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum

from cached_session.journal.tables.claims import Claim, ClaimState
from cached_session.options import SyncOptions

__all__ = [
    "Contest",
    "Resolution",
    "ResolveRules",
    "has_deleted",
    "judge_notes",
    "may_be_live",
]


class Contest(Enum):
    """The result of a check of the notes on an item whose memory we have deleted."""

    WON = "won"
    """No other device has claimed the item: it is ours."""
    DISPUTED = "disputed"
    """Another device has claimed the item, and may have won it."""
    UNKNOWN = "unknown"
    """Our own note is missing: the answer is older than the claim, or the server stores no tags."""


def judge_notes(claimers: AbstractSet[str], own: str) -> Contest:
    """Return whether the notes on an item show that it is ours.

    Args:
        claimers: the writer ids of the notes.
        own: our writer id.
    """
    if claimers == {own}:
        return Contest.WON
    return Contest.DISPUTED if claimers - {own} else Contest.UNKNOWN


def has_deleted(deleted: int, claim: Claim) -> bool:
    """Return whether our request may have deleted the item.

    The server may hold no memory of a parked item. So for a parked item ``deleted`` is ignored, and
    only the notes decide.

    Args:
        deleted: the number of memories that the server reports as deleted. It may exceed 1, because
            the server deletes derived memories as well.
    """
    return deleted >= 1 or claim.is_parked


def may_be_live(*, is_own: bool, is_waiting: bool, age_ms: int, timeout: float) -> bool:
    """Return whether a call may still wait for the answer to a claim.

    Args:
        is_own: whether this opening of the journal has made the claim.
        is_waiting: whether a call of this opening waits for the answer.
        age_ms: the time since the last change of the claim's state, in milliseconds.
        timeout: the time limit of one request, in seconds.
    """
    return is_waiting if is_own else 0 <= age_ms < 2000 * timeout


class Resolution(Enum):
    """The outcome of a check of a claim that got no answer from the server."""

    CONFIRM = "confirm"
    """Some device has won the item, perhaps this device. Store the pop of the item, and do not
    return the item."""
    RELEASE = "release"
    """No device has won the item: end the claim, and leave the item in the history."""
    REQUEUE = "requeue"
    """The server has lost the item: end the claim, and send the item again."""
    WAIT_FOR_POP = "wait for pop"
    """Another device may have won the item: wait until the pop by that device arrives."""
    LOOK_AGAIN = "look again"
    """The server does not show the item, but the node that answered may lag. Look up the item
    later."""

    @property
    def ends_without_pop(self) -> bool:
        """True if the claim ends without a pop of its item."""
        return self in (Resolution.RELEASE, Resolution.REQUEUE)


@dataclass(frozen=True)
class ResolveRules:
    """The rules that resolve a claim in doubt, and their waiting times."""

    pop_patience_ms: float
    """The longest time until the pop of another device arrives, in milliseconds."""
    lag_patience_ms: float
    """The longest lag of a node of the server, in milliseconds."""
    is_eager: bool
    """True to look up an item that another device may have won, even before `pop_patience_ms` has
    passed."""

    @classmethod
    def of(cls, options: SyncOptions, *, is_eager: bool) -> ResolveRules:
        """Return the rules with the times of these options."""
        return cls(1000 * options.hole_patience, 1000 * options.claim_patience, is_eager)

    def before_lookup(self, claim: Claim, age_ms: int) -> Resolution | None:
        """Return how a claim ends; None if the item has to be looked up on the server first."""
        if not claim.is_visible or claim.state is ClaimState.RESERVED:
            return Resolution.RELEASE
        is_recent = 0 <= age_ms < self.pop_patience_ms
        if claim.state is ClaimState.LOST and is_recent and not self.is_eager:
            return Resolution.WAIT_FOR_POP
        return None

    def after_lookup(self, claim: Claim, age_ms: int, *, is_on_server: bool) -> Resolution:
        """Return how a claim ends after its item was looked up on the server."""
        if is_on_server:
            return Resolution.RELEASE
        if claim.state is ClaimState.LOST:
            is_recent = 0 <= age_ms < self.pop_patience_ms
            return Resolution.WAIT_FOR_POP if is_recent else Resolution.REQUEUE
        is_first_look = claim.state is ClaimState.ASKED and self.lag_patience_ms > 0
        if is_first_look or 0 <= age_ms < self.lag_patience_ms:
            return Resolution.LOOK_AGAIN
        return Resolution.CONFIRM
