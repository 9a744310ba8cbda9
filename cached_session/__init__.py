"""Conversation sessions that are stored on the device and synced with a Dakera memory server."""

from __future__ import annotations

from cached_session.cache import SessionCache
from cached_session.diagnosis import Finding, diagnose
from cached_session.engine.changes import Changes
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
    UnreadableItem,
    WouldBlock,
)
from cached_session.journal.tables.parked_operations import Parked
from cached_session.models import (
    Change,
    CompactReport,
    Entry,
    ImportProgress,
    ImportReport,
    Progress,
    Recall,
    SessionInfo,
    Status,
    SyncReport,
    Turn,
)
from cached_session.moving.dakera_import import import_dakera_export, import_dakera_session
from cached_session.moving.export import export_jsonl
from cached_session.moving.file_import import import_jsonl, import_sqlite, import_sqlite_session
from cached_session.moving.sqlite import list_sessions as sqlite_sessions
from cached_session.options import SyncOptions, Window
from cached_session.replication.audit import AuditReport
from cached_session.session import CachedSession

__all__ = [
    "AuditReport",
    "CachedSession",
    "CachedSessionError",
    "Change",
    "Changes",
    "CompactReport",
    "Entry",
    "Finding",
    "ImportProgress",
    "ImportReport",
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
    "SessionInfo",
    "Status",
    "SyncError",
    "SyncOptions",
    "SyncReport",
    "SyncTimeout",
    "Turn",
    "Unauthorized",
    "UnreadableItem",
    "Window",
    "WouldBlock",
    "diagnose",
    "export_jsonl",
    "import_dakera_export",
    "import_dakera_session",
    "import_jsonl",
    "import_sqlite",
    "import_sqlite_session",
    "sqlite_sessions",
]
