"""How a call of the journal ends: its outcome is known, and its error is one of our tree."""

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

PASSING = (
    "disk I/O",
    "locked",
    "locking",
    "full",
    "readonly",
    "unable to open",
    "out of memory",
    "interrupted",
)
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
FULL = (errno.ENOSPC, errno.EDQUOT)
INVALID_VALUE = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What Python says of a value that cannot be where it was read: a cell of the journal is spoiled
(`sense.py`). The names and numbers that callers bring are looked at before they come here."""
FOREIGN_ERRORS = (sqlite3.Error, OSError, *INVALID_VALUE)
"""What SQLite, the file system and Python raise: mapped onto our tree before it leaves a call."""


UNTOLD = ("unable to open", "disk i/o")
"""What SQLite says where it cannot make, or lengthen, what it keeps beside the file: whatever the
reason is, a full disk among them."""
LEAST_ROOM = 64 * 1024
"""Bytes that the log of a journal and its index need to begin with."""


def is_locked(error: BaseException) -> bool:
    """Whether somebody else held the file for longer than a call waits."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def is_transient(error: BaseException) -> bool:
    """Whether SQLite speaks of a disk, a lock or memory, and not of what is in the file."""
    return any(sign in str(error) for sign in PASSING)


def is_damage(error: BaseException) -> bool:
    """Whether the file itself may be broken: not the disk or a lock. Our statements never change,
    so one that names what is not there speaks of a spoiled schema, and one that breaks a rule of it
    of a spoiled row."""
    if isinstance(error, INVALID_VALUE):
        # A text that cannot be written is none of the file's.
        return not isinstance(error, (CachedSessionError, UnicodeEncodeError))
    return isinstance(error, sqlite3.DatabaseError) and any(sign in str(error) for sign in DAMAGE)


def _wanting(path: str) -> str:
    """What to do so that something can be made beside a file; empty where there is room for it, or
    nobody can tell."""
    try:
        disk = os.statvfs(Path(path).absolute().parent)
    except (OSError, AttributeError):  # not POSIX
        return ""
    if disk.f_files and not disk.f_favail:
        return "remove some files, its file system can have no more (df -i)"
    blocks = disk.f_bavail if os.geteuid() else disk.f_bfree
    return "free some space" if blocks * disk.f_frsize < LEAST_ROOM else ""


def journal_error(error: BaseException, path: str) -> BaseException:
    """The error of our tree for one of SQLite's or of the file system's; anything else is passed
    through."""
    if isinstance(error, CachedSessionError) or not isinstance(error, FOREIGN_ERRORS):
        return error
    text = str(error)
    is_nonsense = isinstance(error, INVALID_VALUE)
    if is_nonsense:
        text = f"{type(error).__name__}: {text}"
    lowered = text.lower()
    mapped: JournalError
    wanting = ""
    is_full = "full" in lowered or (isinstance(error, OSError) and error.errno in FULL)
    if not is_nonsense and (is_full or any(sign in lowered for sign in UNTOLD)):
        wanting = _wanting(path) or ("free some space" if is_full else "")
    if wanting:
        mapped = JournalFull(f"the disk of the journal {path} is full ({text}): {wanting}")
    elif "not a database" in lowered and not is_nonsense:
        mapped = JournalError(
            f"{path} is not a journal: it is no SQLite file ({text}); "
            "choose another path; or, if it was the journal, move it away, and a new one gets back "
            "what the server has (the file was left untouched)"
        )
    elif is_damage(error):
        mapped = JournalCorrupt(
            f"the journal {path} is damaged ({text}): the next call sets it aside and carries over "
            "what can be read; what the server has comes back by itself"
        )
    elif "locked" in lowered or "busy" in lowered:
        mapped = JournalError(
            f"the journal {path} is locked by another program ({text}): "
            "find it (a backup? a database browser? a process that hangs? cached-session doctor "
            "may name it) and try again"
        )
    elif "readonly" in lowered or "read-only" in lowered:
        mapped = JournalError(
            f"the journal {path} is read-only ({text}): check the file's and the directory's mode; "
            "where it may only be read, pass the path of a copy"
        )
    elif "unable to open" in lowered or (isinstance(error, OSError) and error.errno == errno.ELOOP):
        mapped = JournalError(
            f"the journal {path} cannot be opened ({text}): check that its directory exists "
            "and is writable, or pass another path; where it may only be read, that of a copy"
        )
    else:
        mapped = JournalError(f"the journal {path} failed: {text}")
    mapped.__cause__ = error
    return mapped
