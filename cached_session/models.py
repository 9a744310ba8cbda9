"""The immutable values that public calls return or pass to callbacks."""

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
    "SessionInfo",
    "State",
    "Status",
    "SyncReport",
    "Turn",
]

State = Literal["local", "connecting", "online", "offline", "unauthorized", "closed"]


@dataclass(frozen=True)
class Status:
    """The state of one session, a cache or a journal, read from the journal and not from the
    server."""

    state: State
    """``local``: no server is configured. ``connecting``: no request has ended yet. ``offline``:
    the last request failed, see ``last_error``. ``unauthorized``: the server refuses the key.
    ``closed``: the session or cache was closed."""
    items: int
    """Number of visible items."""
    pending: int
    """Number of operations that the server has not acknowledged, without parked operations."""
    parked: int
    """Number of operations that the server refused permanently: see ``parked()``."""
    absent: int
    """Number of operations that are known to exist and were not found within `hole_patience`."""
    oldest_pending_age: float | None
    """Seconds since the oldest pending operation was written; None if nothing is pending."""
    last_success: float | None
    """Unix seconds of the last successful request; None if no request has succeeded."""
    last_error: str | None
    """Reason why the last request failed or sync makes no progress; None if there is no problem."""
    server: str | None
    """URL of the configured server; None if no server is configured."""
    journal: str
    """Path of the journal."""
    retry_in: float | None = None
    """Seconds until the next attempt; None if no attempt is scheduled."""
    failing_for: float | None = None
    """Seconds since the first of the latest consecutive failures; None if there are no such
    failures."""
    is_refused: bool = False
    """True if the last failure was a refused key, even if no server is configured now."""
    incomplete: int = 0
    """Number of operations of which only some parts have arrived."""
    conflicts: int = 0
    """Number of operations that arrived again with different content. The first content stays."""
    clock_ahead: float | None = None
    """Seconds by which the latest stamp is ahead of this device's clock; None if the difference is
    at most a minute. A larger difference means that a device has a wrong clock. A wrong clock
    affects `Entry.said_at`, but not the order."""
    unreadable: int = 0
    """Number of memories with operations that the last pull could not decode."""
    unguarded: str | None = None
    """Reason why the server's memory policy could not be set for a session; None if there is no
    such failure."""
    salvaged: str | None = None
    """Report about the damaged journal file that this journal replaces: why the file was set aside,
    which rows were copied from it, and which rows were lost. None if there was no such file."""
    hydrated: bool = False
    """True if the whole history has been fetched from the server at least once."""
    last_server: str | None = None
    """URL of the server that the journal synced with last, even if no server is configured now."""
    sessions: Mapping[str, Status] = field(default_factory=dict)
    """For a cache: the status of each session by its id. Empty for a session."""
    prefixes: Mapping[str, Status] = field(default_factory=dict)
    """For a journal (`SessionCache.journal_status`): the status of the sessions of each key prefix.
    Otherwise empty."""


@dataclass(frozen=True)
class SyncReport:
    """The result of a `sync`: everything written before the call is on the server, and everything
    that the server listed is in the journal."""

    pushed: int
    """Number of operations that the server acknowledged."""
    pulled: int
    """Number of operations of other devices that were applied."""
    pending: int
    """Number of unacknowledged operations. They were written during the call."""
    parked: int
    """Number of operations that the server refused permanently, as in `Status.parked`."""
    absent: int
    """Number of operations that exist and were not found, as in `Status.absent`."""
    seconds: float
    """Duration of the call in seconds."""


@dataclass(frozen=True)
class CompactReport:
    """The result of a `compact`."""

    operations: int
    """Number of operations whose bookkeeping rows were removed."""
    bytes_before: int
    """Size of the journal file before the call, in bytes."""
    bytes_after: int
    """Size of the journal file after the call, in bytes."""
    free_bytes: int
    """Bytes of ``bytes_after`` that are free. New rows use them first."""


@dataclass(frozen=True)
class SessionInfo:
    """The description of a session, read from the journal."""

    session_id: str
    key_prefix: str = ""
    title: str | None = None
    """The title; None if no device has set one."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values by their names, as `CachedSession.update_info` has set them on any device."""
    items: int = 0
    """Number of visible items in the journal."""
    created_at: float | None = None
    """Time when this journal first knew the session, in Unix seconds; None if it does not know
    it."""
    last_activity: float | None = None
    """Time of the latest item, in Unix seconds by its writer's clock; None without an item."""
    pending: int = 0
    """Number of operations that the server has not acknowledged and that will be sent."""
    parked: int = 0
    """Number of operations that the server refuses."""

    @property
    def sync_state(self) -> Literal["synced", "pending", "parked"]:
        """``parked`` if the server refuses an operation, else ``pending`` if operations wait to be
        sent, else ``synced``."""
        return "parked" if self.parked else "pending" if self.pending else "synced"


@dataclass(frozen=True)
class Entry:
    """A visible item and its position in the history."""

    rank: int
    """Sequence number: 0, 1, 2, ... without gaps. After a sync, all replicas have identical
    ranks."""
    item: Any
    stamp: int
    """Stamp of the item's run (hybrid logical clock)."""
    run: str
    """Id of the item's run: consecutive operations of one writer."""
    turn: str
    """Id of the item's turn. The items of one turn are contiguous."""
    writer: str
    """Id of the writer that appended the item."""
    counter: int
    """Counter of the append that added the item; unique for its writer."""
    index: int
    """Index of the item in its batch."""
    sync_state: Literal["pending", "sent", "acked", "parked"]
    """State of the item's append in the outbox. An append of another device is ``acked``."""
    said_at: float
    """Time when the item was added, in Unix seconds by its writer's clock."""


@dataclass(frozen=True)
class Turn:
    """A turn: one exchange of an agent, from its input to its final answer."""

    id: str
    """Id of the turn, as in `Entry.turn`. It is the same on all replicas."""
    entries: Sequence[Entry]
    """The visible entries of the turn, at least one, in the order of the history."""

    @property
    def head(self) -> Entry:
        """The first entry of the turn: usually the input of a user."""
        return self.entries[0]

    @property
    def items(self) -> list[Any]:
        """The items of the turn, in the order of the history."""
        return [entry.item for entry in self.entries]

    @property
    def said_at(self) -> float:
        """Time when the first item was added, in Unix seconds by its writer's clock."""
        return self.head.said_at


@dataclass(frozen=True)
class Change:
    """A change of the visible items or of their sync state: see `CachedSession.changes`."""

    kind: Literal["appended", "removed", "synced"]
    """``appended``: entries became visible, not always at the end: an earlier item of another
    device may arrive late. ``removed``: entries were popped, cleared or dropped. ``synced``: the
    server acknowledged operations, or the number of pending operations has changed."""
    entries: Sequence[Entry]
    """Entries in the order of the history. ``appended``: insert each entry at its rank, first to
    last. ``removed``: delete each entry at its rank, last to first; the items of these entries are
    None, because the items are no longer stored. ``synced``: replace the entry at each rank."""
    operations: int
    """Number of operations of this journal that the server acknowledged, including pops and clears.
    It is 0 if `kind` is not ``synced``."""
    pending: int
    """Number of operations that are not acknowledged yet, as `Status.pending`."""


@dataclass(frozen=True)
class Recall:
    """The result of a `recall`."""

    entries: list[Entry]
    """Matching entries, best first."""
    source: Literal["server", "local"]
    """Origin of the entries. ``local``: the server was not reachable, so the entries are the
    results of `search`."""


@dataclass(frozen=True)
class Progress:
    """Progress of a first hydration, passed to ``on_progress`` after each page."""

    session_id: str
    items: int
    """Number of items that can be read so far."""
    done: bool
    """True if the whole history has been fetched."""


@dataclass(frozen=True)
class ImportProgress:
    """Progress of an import, passed to ``on_progress`` after each batch."""

    session_id: str
    done: int
    """Number of items of the source that were processed so far."""
    added: int
    """Number of items that were added to the session so far."""
    total: int | None
    """Number of items of the source; None if unknown."""


@dataclass(frozen=True)
class ImportReport:
    """The result of an import."""

    session_id: str
    added: int
    """Number of items that were added to the session."""
    known: int
    """Number of items that an earlier import of the same source had added."""
    unreadable: int = 0
    """Number of entries of the source that were omitted, because they are not items or not valid
    JSON."""
    skipped: int = 0
    """Number of memories of a Dakera namespace that are not items of the session."""
    first_unreadable: int | None = None
    """Position of the first unreadable value of a file, a database or an iterable, counted from 1.
    None if all values are readable, or if the source consists of memories."""
