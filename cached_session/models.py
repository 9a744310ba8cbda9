"""What a session tells about itself: plain, frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Change",
    "CompactReport",
    "Entry",
    "ImportProgress",
    "ImportReport",
    "Progress",
    "Recall",
    "State",
    "Status",
    "SyncReport",
]

State = Literal["local", "connecting", "online", "offline", "unauthorized", "closed"]


@dataclass(frozen=True)
class Status:
    """One session, or a whole cache, at one moment: read from the journal, not from the server."""

    state: State
    """``local``: no server configured. ``connecting``: not asked yet. ``offline``: the last attempt
    failed, see ``last_error``. ``unauthorized``: the server refuses the key."""
    items: int
    """Visible items."""
    pending: int
    """Operations that the server has not acknowledged, without the parked ones."""
    parked: int
    """Operations that the server refuses for good: see ``parked()``."""
    absent: int
    """Operations known to exist that have been looked for in vain for a while."""
    oldest_pending_age: float | None
    """Seconds since the oldest pending operation was written; None if nothing is pending."""
    last_success: float | None
    """Unix seconds when the server last answered as it should; None for never."""
    last_error: str | None
    """Why the last attempt failed; None while all is well."""
    server: str | None
    journal: str
    retry_in: float | None = None
    """Seconds until the next attempt; None if none is waiting."""
    failing_for: float | None = None
    """Seconds since the first of the attempts that have failed in a row."""
    is_refused: bool = False
    """Whether they failed because the server refuses the key; known without a server, too."""
    incomplete: int = 0
    """Operations of which some parts have arrived."""
    conflicts: int = 0
    """Operations that were seen again with other content; the first seen stays."""
    clock_ahead: float | None = None
    """Seconds by which the latest stamp is ahead of this device's clock, if more than a minute:
    one of the devices has a wrong clock. Order does not suffer; `said_at` does."""
    unreadable: int = 0
    """Memories of ours that the last pull could not read."""
    unguarded: str | None = None
    """Why the server's memory policy could not be set for a session; None if it is set."""
    salvaged: str | None = None
    """What became of the journal file that was here before this one: why it was set aside, what
    was carried over, what could not be saved; None if this is the first."""
    hydrated: bool = False
    """Whether the whole history has been fetched at least once."""
    last_server: str | None = None
    """The server that the journal synced with last, also where none is configured now."""
    sessions: Mapping[str, Status] = field(default_factory=dict)
    """For a cache: each session of the journal."""


@dataclass(frozen=True)
class SyncReport:
    """What a `sync` did. When it returns, everything written before the call is on the server, and
    everything that the server listed is in the journal."""

    pushed: int
    """Operations acknowledged by the server."""
    pulled: int
    """Operations of other devices applied."""
    pending: int
    """Operations written meanwhile."""
    parked: int
    absent: int
    seconds: float


@dataclass(frozen=True)
class CompactReport:
    """What a `compact` did."""

    operations: int
    """Operations whose bookkeeping nothing needed any more."""
    bytes_before: int
    """Size of the journal's file."""
    bytes_after: int
    free_bytes: int
    """Of these, bytes that could not be given back and are used again."""


@dataclass(frozen=True)
class Entry:
    """One visible item with its place in the one history."""

    rank: int
    """Its sequence number: 0, 1, 2, ... without gaps, the same on all replicas once synced."""
    item: Any
    stamp: int
    """Hybrid logical clock of the start of its run."""
    run: str
    """The stretch of one writer's words that it belongs to."""
    writer: str
    counter: int
    index: int
    """Its place in the batch that it was added with."""
    sync_state: Literal["pending", "sent", "acked", "parked"]
    said_at: float
    """Unix seconds by its writer's clock."""


@dataclass(frozen=True)
class Change:
    """One step of a session that is followed: see `CachedSession.changes`."""

    kind: Literal["appended", "removed", "synced"]
    """``appended``: these entries are shown now, each at its rank; not always at the end, because
    what another device said earlier may arrive later. ``removed``: popped, cleared or dropped.
    ``synced``: the server has acknowledged operations, or what waits for it has changed."""
    entries: Sequence[Entry]
    """In the order of the history. ``appended``: insert each at its rank, first to last.
    ``removed``: delete each at its rank, last to first; their items are None, because nobody has
    them any more. ``synced``: put each in place of what stands at its rank."""
    operations: int
    """How many operations of this journal the server has acknowledged, pops and clears among them;
    0 unless this is ``synced``."""
    pending: int
    """How many wait for the server now, as `Status.pending` counts."""


@dataclass(frozen=True)
class Recall:
    """What `recall` found, best first."""

    entries: list[Entry]
    source: Literal["server", "local"]
    """``local``: the server could not be asked, this is what `search` finds."""


@dataclass(frozen=True)
class Progress:
    """How far a first hydration is: given to ``on_progress`` after each page."""

    session_id: str
    items: int
    """Items readable so far."""
    done: bool


@dataclass(frozen=True)
class ImportProgress:
    """How far an import is: given to ``on_progress`` after each batch."""

    session_id: str
    done: int
    """Items of the source looked at so far."""
    added: int
    """Of those, how many were not here yet."""
    total: int | None
    """Items of the source; None where nobody knows."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    session_id: str
    added: int
    """Items that are in the session now and were not before."""
    known: int
    """Items that an earlier import of the same source had brought."""
    unreadable: int = 0
    """What the source holds and JSON cannot carry, or that is no item: left out."""
    skipped: int = 0
    """Memories of a Dakera namespace that belong to no session."""
    first_unreadable: int | None = None
    """Which of the values of a file, a database or an iterable is the first of the unreadable,
    counted from 1; None where nothing is, and for memories."""
