"""A conversation session that lives on the device and syncs with a Dakera memory server."""

from __future__ import annotations

from cached_session.cache import SessionCache
from cached_session.errors import (
    CachedSessionError,
    InvalidArgument,
    JournalCorrupt,
    JournalError,
    JournalFull,
    JournalTooNew,
    PopUnconfirmed,
    SessionClosed,
    SyncError,
    SyncTimeout,
    Unauthorized,
)
from cached_session.journal.outbox import Parked
from cached_session.options import SyncOptions
from cached_session.replication.audit import AuditReport
from cached_session.session import CachedSession
from cached_session.status import Entry, Progress, Recall, Status, SyncReport

__all__ = [
    "AuditReport",
    "CachedSession",
    "CachedSessionError",
    "Entry",
    "InvalidArgument",
    "JournalCorrupt",
    "JournalError",
    "JournalFull",
    "JournalTooNew",
    "Parked",
    "PopUnconfirmed",
    "Progress",
    "Recall",
    "SessionCache",
    "SessionClosed",
    "Status",
    "SyncError",
    "SyncOptions",
    "SyncReport",
    "SyncTimeout",
    "Unauthorized",
]
