"""Tuning, in one frozen dataclass; what changes a call's meaning is a keyword elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from cached_session.errors import InvalidArgument

__all__ = ["SyncOptions"]


@dataclass(frozen=True)
class SyncOptions:
    """Intervals, limits, timeouts and durability. Times are seconds, sizes are bytes."""

    durability: Literal["full", "normal"] = "full"
    """``full``: a returned write survives power loss (SQLite's ``synchronous=FULL``). ``normal``
    survives a crash of the process, but power loss may take the last writes back."""
    busy_timeout: float = 5.0
    """How long a write waits for another process's lock on the journal before `JournalError`."""
    search_index: bool = True
    """Whether the journal has a full-text index, written with each item; `search` looks through the
    session without it. It is the file's: whoever opens it last decides."""
    max_pending_items: int | None = None
    """Items that the journal may hold unsent, all sessions together; None: as many as the disk
    holds. Only `add_items` of a session with a server asks. Parked operations do not count."""
    max_pending_bytes: int | None = None
    """The same in bytes of payload (each item as JSON in UTF-8)."""
    when_full: Literal["block", "reject"] = "block"
    """What `add_items` does at such a limit: ``block`` waits for room, at most `full_timeout`;
    ``reject`` does not wait. Either ends in `JournalFull` with nothing of the batch stored."""
    full_timeout: float = 5.0
    """The longest that a blocked `add_items` waits for room."""
    run_gap: float = 600.0
    """A writer that pauses longer than this starts a new run: its next words sort as of now."""
    hydrate_timeout: float = 2.0
    """The longest that the first read of an unknown session waits for its history."""
    close_timeout: float = 2.0
    """The longest that `close` waits for unsent operations to drain; the rest stays queued."""
    push_delay: float = 0.02
    """Writes within this window of the first unsent one leave in one request."""
    poll_interval: float = 5.0
    """Between pulls of a session that is in use."""
    poll_interval_idle: float = 300.0
    """Between pulls of a session where nothing happens; the interval grows towards it."""
    audit_interval: float = 86_400.0
    """About how often each session is compared with the server unasked, and what the server lost is
    put back; 0 for never. Sessions and devices are spread over it, restarts included. At most 96 in
    this time, so that a cache with more sessions compares each of them more rarely."""
    listen: bool = True
    """Whether to hold one event stream open, by which the server says when to pull."""
    poll_interval_listening: float = 300.0
    """Between pulls, one session at a time, while the stream is up: events may be missed."""
    watch_interval: float = 0.5
    """How often the process that replicates, and whoever follows `changes`, looks for writes of
    other processes, and how often the others try to take over from one that died."""
    backoff_base: float = 0.5
    """The first retry comes within this time; each failure doubles it."""
    backoff_max: float = 60.0
    """The longest pause between attempts that the server did not ask for."""
    denied_retry: float = 60.0
    """The pause after an answer that only a person can change (401, 403, a full quota)."""
    request_timeout: float = 30.0
    """For one request, between bytes; a request that takes longer counts as unanswered."""
    connect_timeout: float = 5.0
    """For reaching the server at all."""
    max_batch_memories: int = 1000
    """Memories in one store request; the server takes at most 1000."""
    max_batch_bytes: int = 2 * 1024 * 1024
    """Encoded size of one store request at most (a single larger memory still goes, alone). The
    first have at most 512 KiB; they grow while answers are quick, and shrink where none come."""
    page_size: int = 500
    """Memories in one listing page when much is to be fetched (server maximum 1000)."""
    first_page_size: int = 100
    """Memories in the first page of a pull: small, so that the tail is readable soonest."""
    parallel_sessions: int = 4
    """Sessions pushed or pulled side by side."""
    parallel_requests: int = 8
    """Requests of one session under way at once, where order does not matter."""
    claim_patience: float = 10.0
    """A memory that is gone after a confirmed pop without an answer is believed to be gone when it
    still is this much later: one node of a cluster may lag."""
    prune_interval: float = 600.0
    """Between looks of the process that replicates for bookkeeping that nothing needs any more (see
    `SessionCache.compact`); 0 never looks."""
    hole_patience: float = 600.0
    """A missing operation is looked for eagerly this long, then reported as absent and looked for
    at `poll_interval_idle`."""

    def __post_init__(self) -> None:
        if self.durability not in ("full", "normal"):
            raise InvalidArgument(
                f"durability={self.durability!r} is not known; use 'full' or 'normal'"
            )
        for name in ("search_index", "listen"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgument(f"{name}={getattr(self, name)!r} must be True or False")
        if self.when_full not in ("block", "reject"):
            raise InvalidArgument(
                f"when_full={self.when_full!r} is not known; use 'block' or 'reject'"
            )
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in ("durability", "listen", "search_index", "when_full"):
                continue
            if value is None and spec.type == "int | None":
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise InvalidArgument(
                    f"{spec.name}={value!r} must be a finite number, zero or more"
                )
            if spec.type in ("int", "int | None") and not isinstance(value, int):
                raise InvalidArgument(f"{spec.name}={value!r} must be a whole number")
        for name in ("max_batch_memories", "page_size", "first_page_size"):
            if not 1 <= getattr(self, name) <= 1000:
                raise InvalidArgument(
                    f"{name}={getattr(self, name)!r} must lie between 1 and 1000, "
                    "the server's own limit"
                )
        for name in (
            "max_batch_bytes",
            "max_pending_items",
            "max_pending_bytes",
            "parallel_sessions",
            "parallel_requests",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgument(f"{name}={getattr(self, name)!r} must be at least 1")
