"""The results of one push and of one pull of a session: plain counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PullResult", "PushResult"]


@dataclass
class PushResult:
    """The counts of one push."""

    acked: int = 0
    """The number of operations that the server has acknowledged."""
    parked: int = 0
    """The number of operations that were parked because the server refuses them for good."""
    forgotten: int = 0
    """The number of removed items whose memories the server has deleted."""
    claims_in_doubt: int = 0
    """The number of confirmed pops whose outcome is still in doubt."""
    unkept: int = 0
    """The number of operations that the server accepted and did not keep. The outbox keeps them."""


@dataclass
class PullResult:
    """The counts and the outcome of one pull."""

    new: int = 0
    """The number of operations that the journal did not have."""
    conflicts: int = 0
    """The number of operations that differ from the stored operation with the same dot."""
    unreadable: int = 0
    """The number of memories that cannot be decoded, plus the number of damaged operations."""
    pages: int = 0
    finished: bool = False
    """True if the pull read the listing to its end, or down to the known part."""
    went_back: bool = False
    """True if the newest memory on the server is older than the newest memory of an earlier pull.
    The server may have lost memories, or a lagging node of the server may have answered."""
