"""The results of one push and of one pull of a session: plain counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PullResult", "PushResult"]


@dataclass
class PushResult:
    """The work of one push."""

    acked: int = 0
    """Operations that the server has acknowledged."""
    parked: int = 0
    """Operations that the server refuses for good."""
    forgotten: int = 0
    """Removed items that the server has deleted."""
    claims_in_doubt: int = 0
    """Confirmed pops whose outcome is still in doubt."""
    unkept: int = 0
    """Operations that the server accepted and did not keep. They stay in the outbox."""


@dataclass
class PullResult:
    """The work of one pull."""

    new: int = 0
    """Operations that the journal did not have."""
    conflicts: int = 0
    """Operations that differ from the ones stored under the same dots."""
    unreadable: int = 0
    """Memories that cannot be decoded, or fail their checksum."""
    pages: int = 0
    finished: bool = False
    """True if the listing reached its end, or memories that an earlier pull has seen."""
    went_back: bool = False
    """The newest memory on the server is older than the one that an earlier pull saw. The server
    may have lost memories, or a lagging replica may have answered."""
