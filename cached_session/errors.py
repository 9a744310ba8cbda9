"""All errors that public calls raise, grouped by what the caller can do about them.

Public calls raise no exceptions of sqlite3, aiosqlite, httpx or dakera. They raise one of these
classes instead, with the original exception as ``__cause__``. Each message contains the wrong value
and a remedy.
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
    """The base class of all errors that this library raises on purpose."""


class InvalidArgument(CachedSessionError, ValueError, TypeError):
    """An argument is wrong. A retry does not help: fix the call.

    The class is also a ``ValueError`` and a ``TypeError``, because the sessions of the Agents SDK
    raise these for the same mistakes. Code that was written for those sessions keeps working.
    """


class SessionClosed(CachedSessionError, RuntimeError):
    """The session or cache was closed before this call. Open a new session or cache."""


class JournalError(CachedSessionError):
    """The journal could not be opened, read or written. The failed call stored nothing."""


class JournalFull(JournalError):
    """The disk is full, or a limit of unsent work is reached. Free disk space, or sync."""


class JournalCorrupt(JournalError):
    """The journal file is damaged. Move the file away. After that, a session with a server fetches
    its history again."""


class JournalTooNew(JournalError):
    """A newer version of this library wrote the journal file. Upgrade the library; the file is
    unchanged."""


class SyncError(CachedSessionError):
    """The server did not fulfil the request of this call. The journal is intact."""


class SyncTimeout(SyncError, TimeoutError):
    """The timeout expired before the work was done. The work continues in the background.

    ``__cause__`` is the last error of the server, if there was one.
    """


class Unauthorized(SyncError):
    """The server refuses the key (401) or its scope (403). Fix the key.

    Unsent operations stay in the journal.
    """


class PopUnconfirmed(SyncError):
    """A confirmed pop got no answer, so it returns no item. Its claim is resolved in the
    background."""


class UnreadableItem(CachedSessionError, ValueError):
    """An adapter found an item that its framework did not write or can no longer read.

    The item is unchanged. Read it with the program that wrote it, and give each framework its own
    session ids.
    """


class WouldBlock(CachedSessionError, RuntimeError):
    """A synchronous method of an adapter was called where it would block a running event loop.

    Await the asynchronous method instead.
    """
