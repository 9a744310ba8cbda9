"""Errors of SQLite, the file system and Python: their kinds, and the library's error for each."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from cached_session.errors import CachedSessionError, JournalCorrupt, JournalError, JournalFull

__all__ = [
    "FOREIGN_ERRORS",
    "INVALID_VALUE",
    "is_damage",
    "is_locked",
    "is_transient",
    "journal_error",
]

TRANSIENT = (
    "disk I/O",
    "locked",
    "locking",
    "full",
    "readonly",
    "unable to open",
    "out of memory",
    "interrupted",
)
"""Parts of SQLite's error messages about the disk, a lock or memory."""
DAMAGE = (
    "malformed",
    "decode to UTF-8",
    "no such table",
    "no such column",
    "has no column named",
    "no such index",
    "constraint failed",
    "datatype mismatch",
)
"""Parts of SQLite's error messages about a damaged file. The statements of this library are
constant and correct: if a table is missing, the schema is damaged; if a constraint fails, a row is
damaged."""
INVALID_VALUE = (TypeError, ValueError, ArithmeticError)
"""Python's errors for an invalid value in a cell of the journal, for example after damage (see
`recovery/row_check.py`). Arguments of callers are checked before they reach the journal. Other
errors, such as a KeyError, are errors of this library, which callers get unchanged."""
FOREIGN_ERRORS = (sqlite3.Error, OSError, *INVALID_VALUE)
"""The errors that `journal_error` maps to errors of this library."""

FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT)
UNSPECIFIC = ("unable to open", "disk i/o")
"""Parts of SQLite's error messages if it cannot create or extend a file next to the journal. A full
disk is one of the possible causes."""
MIN_FREE_BYTES = 64 * 1024
"""The free disk space in bytes that a new log and its index need."""


def is_locked(error: BaseException) -> bool:
    """Return whether another connection held the file for longer than a call waits."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def is_transient(error: BaseException) -> bool:
    """Return whether the cause is the disk, a lock or memory, and not the content of the file."""
    return any(sign in str(error) for sign in TRANSIENT)


def is_damage(error: BaseException) -> bool:
    """Return whether the content of the file may be damaged."""
    if isinstance(error, INVALID_VALUE):
        # A text that cannot be encoded is an argument of the caller: the file has no such text.
        return not isinstance(error, (CachedSessionError, UnicodeEncodeError))
    return isinstance(error, sqlite3.DatabaseError) and any(sign in str(error) for sign in DAMAGE)


def journal_error(error: BaseException, path: str) -> BaseException:
    """Return the library's error for one of `FOREIGN_ERRORS`, with the original as its cause.
    Return any other error unchanged."""
    if isinstance(error, CachedSessionError) or not isinstance(error, FOREIGN_ERRORS):
        return error
    if not isinstance(error, INVALID_VALUE):
        mapped = _map_system_error(error, path)
    elif is_damage(error):
        mapped = _damaged(path, f"{type(error).__name__}: {error}")
    else:
        mapped = JournalError(f"the journal {path} failed: {type(error).__name__}: {error}")
    mapped.__cause__ = error
    return mapped


def _map_system_error(error: BaseException, path: str) -> JournalError:
    text = str(error)
    lowered = text.lower()
    if remedy := _free_space_remedy(error, path):
        return JournalFull(f"the disk of the journal {path} is full ({text}): {remedy}")
    if "not a database" in lowered:
        return JournalError(
            f"{path} is not a journal: it is not a SQLite file ({text}); the file was not changed; "
            "pass another path, or, if this was the journal, move the file away: a new journal "
            "fetches what the server has"
        )
    if is_damage(error):
        return _damaged(path, text)
    if "locked" in lowered or "busy" in lowered:
        return JournalError(
            f"the journal {path} is locked by another program ({text}): find it (a backup, a "
            "database browser, a process that hangs; cached-session doctor may name it) and try "
            "again"
        )
    if "readonly" in lowered or "read-only" in lowered:
        return JournalError(
            f"the journal {path} is read-only ({text}): check the modes of the file and of its "
            "directory, or pass the path of a copy in a writable directory"
        )
    if "unable to open" in lowered or (isinstance(error, OSError) and error.errno == errno.ELOOP):
        return JournalError(
            f"the journal {path} cannot be opened ({text}): check that its directory exists "
            "and is writable, or pass another path, such as that of a copy"
        )
    return JournalError(f"the journal {path} failed: {text}")


def _damaged(path: str, text: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"the journal {path} is damaged ({text}): the next call sets it aside and copies what can "
        "be read to a new file; a sync fetches what the server has"
    )


def _free_space_remedy(error: BaseException, path: str) -> str:
    """Return the remedy if an error means that the disk is full, or else an empty string."""
    lowered = str(error).lower()
    is_full = "full" in lowered or (isinstance(error, OSError) and error.errno in FULL_ERRNO)
    if not is_full and not any(sign in lowered for sign in UNSPECIFIC):
        return ""
    return _missing_space(path) or ("free some space" if is_full else "")


def _missing_space(path: str) -> str:
    """Return the remedy if the disk has no space for a new file next to the journal.

    Return an empty string if the disk has space, or if the system does not report its free space.
    """
    try:
        disk = os.statvfs(Path(path).absolute().parent)
    except (OSError, AttributeError):  # AttributeError: not a POSIX system
        return ""
    if disk.f_files and not disk.f_favail:
        return "delete some files: its file system has no free inodes (df -i)"
    blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
    return "free some space" if blocks * disk.f_frsize < MIN_FREE_BYTES else ""
