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
    """The result of looking at the notes on an item that we have deleted."""

    WON = "won"
    """No other device has claimed the item: it is ours."""
    DISPUTED = "disputed"
    """Another device has claimed it, and may have got it."""
    UNKNOWN = "unknown"
    """Our own note is missing: the answer is older than the claim, or the server keeps no tags."""


def judge_notes(claimers: AbstractSet[str], own: str) -> Contest:
    """Return whether the notes on an item make it ours.

    Args:
        claimers: the writer ids that have left a note.
        own: our writer id.
    """
    if claimers == {own}:
        return Contest.WON
    return Contest.DISPUTED if claimers - {own} else Contest.UNKNOWN


def has_deleted(deleted: int, claim: Claim) -> bool:
    """Return whether our request may have deleted the item, by the count that the server reports.

    The count may exceed one, because the server deletes derived memories as well. The server need
    not hold an item that it has refused: then the notes alone decide.
    """
    return deleted >= 1 or claim.is_parked


def may_be_live(*, is_own: bool, is_waiting: bool, age_ms: int, timeout: float) -> bool:
    """Return whether a call may still wait for the answer to a claim.

    Args:
        is_own: whether this opening of the journal has made the claim.
        is_waiting: whether a call of this opening waits for it.
        timeout: the time limit of one request, in seconds.
    """
    return is_waiting if is_own else 0 <= age_ms < 2000 * timeout


class Resolution(Enum):
    """The end of a claim that got no answer from the server."""

    CONFIRM = "confirm"
    """A device has got the item, perhaps this one: pop it, and do not return it."""
    RELEASE = "release"
    """No device has got the item: it stays."""
    REQUEUE = "requeue"
    """The server has lost the item: send it again."""
    WAIT_FOR_POP = "wait for pop"
    """Another device may have got the item: wait for its pop."""
    LOOK_AGAIN = "look again"
    """The item is not on the server. The node that answered may lag: look again later."""

    @property
    def ends_without_pop(self) -> bool:
        """True if the claim ends without a pop of its item."""
        return self in (Resolution.RELEASE, Resolution.REQUEUE)


@dataclass(frozen=True)
class ResolveRules:
    """Time to wait before a claim without an answer is resolved."""

    pop_patience_ms: float
    """Longest time until the pop of another device arrives."""
    lag_patience_ms: float
    """Longest lag of a node of the server."""
    is_eager: bool
    """True if to look up an item that another device may have got before its time has passed."""

    @classmethod
    def of(cls, options: SyncOptions, *, is_eager: bool) -> ResolveRules:
        """Return the rules that these options ask for."""
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
