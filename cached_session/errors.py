"""Every error that a public call raises, split by what the caller can do about it.

Nothing of sqlite3, aiosqlite, httpx or dakera leaves a public call: it is mapped onto this tree and
kept as ``__cause__``. Each message names the value at fault and the way out.
"""

from __future__ import annotations

__all__ = [
    "CachedSessionError",
    "InvalidArgument",
    "JournalCorrupt",
    "JournalError",
    "JournalFull",
    "JournalTooNew",
    "PopUnconfirmed",
    "SessionClosed",
    "SyncError",
    "SyncTimeout",
    "Unauthorized",
    "UnreadableItem",
    "WouldBlock",
]


class CachedSessionError(Exception):
    """The root: catching it catches everything that this library raises on purpose."""


class InvalidArgument(CachedSessionError, ValueError, TypeError):
    """An argument that no retry can make right: fix the call.

    It is a ``ValueError`` and a ``TypeError`` too, because the sessions of the Agents SDK raise
    those for the same mistakes and code written for them keeps working.
    """


class SessionClosed(CachedSessionError, RuntimeError):
    """The session or cache was closed before this call: open a new one."""


class JournalError(CachedSessionError):
    """The journal could not be opened, read or written. Nothing of the failed call is stored."""


class JournalFull(JournalError):
    """The disk is full, or a configured limit of unsent work is reached: free space or sync."""


class JournalCorrupt(JournalError):
    """The file is a journal of ours but damaged: move it aside and let the history hydrate."""


class JournalTooNew(JournalError):
    """A newer version of this library wrote the file: upgrade. The file was left untouched."""


class SyncError(CachedSessionError):
    """The server did not take, or did not give, what the call asked for. The journal is intact."""


class SyncTimeout(SyncError, TimeoutError):
    """The time given ran out first; the work goes on in the background. ``__cause__`` says why."""


class Unauthorized(SyncError):
    """The server refuses the key (401) or its scope (403): fix the key; unsent work is kept."""


class PopUnconfirmed(SyncError):
    """A confirmed pop got no answer: nothing was returned, and the claim is settled later."""


class UnreadableItem(CachedSessionError, ValueError):
    """An adapter met an item that its framework did not write, or no longer reads: the item stays
    as it is. Read it with what wrote it, and give each framework session ids of its own."""


class WouldBlock(CachedSessionError, RuntimeError):
    """A synchronous call of an adapter, where a running event loop would stand still meanwhile:
    await the asynchronous one."""
