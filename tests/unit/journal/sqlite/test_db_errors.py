"""Kinds of errors, and the library's error for each of them."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from cached_session.errors import (
    CachedSessionError,
    InvalidArgument,
    JournalCorrupt,
    JournalError,
    JournalFull,
)
from cached_session.journal.sqlite.db_errors import (
    MIN_FREE_BYTES,
    is_damage,
    is_locked,
    is_transient,
    journal_error,
)

CANNOT_ENCODE = UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
CANNOT_DECODE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    ("error", "transient", "damage"),
    [
        (sqlite3.OperationalError("disk I/O error"), True, False),
        (sqlite3.OperationalError("database is locked"), True, False),
        (sqlite3.OperationalError("database or disk is full"), True, False),
        (sqlite3.OperationalError("attempt to write a readonly database"), True, False),
        (sqlite3.OperationalError("unable to open database file"), True, False),
        (sqlite3.DatabaseError("database disk image is malformed"), False, True),
        (sqlite3.OperationalError("Could not decode to UTF-8 column 'digest'"), False, True),
        (sqlite3.OperationalError("no such table: ops"), False, True),
        (sqlite3.OperationalError("no such column: digest"), False, True),
        (sqlite3.IntegrityError("UNIQUE constraint failed: meta.key"), False, True),
        (sqlite3.DatabaseError("file is not a database"), False, False),
        (TypeError("an integer is required"), False, True),
        (CANNOT_DECODE, False, True),
        (CANNOT_ENCODE, False, False),
        (InvalidArgument("the limit is negative"), False, False),
        (OSError(errno.EIO, "Input/output error"), False, False),
        (RuntimeError("database disk image is malformed"), False, False),
    ],
    ids=str,
)
def test_each_error_has_its_kind(error: BaseException, transient: bool, damage: bool) -> None:
    """An error is about the system around the file, about its content, or about neither."""
    assert (is_transient(error), is_damage(error)) == (transient, damage)


def test_only_sqlite_reports_a_lock() -> None:
    """Another error whose text contains the word is not about a lock."""
    assert is_locked(sqlite3.OperationalError("database is locked"))
    assert not is_locked(sqlite3.DatabaseError("database is locked"))
    assert not is_locked(OSError("locked"))


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (sqlite3.DatabaseError("file is not a database"), JournalError, "not a SQLite file"),
        (
            sqlite3.DatabaseError("database disk image is malformed"),
            JournalCorrupt,
            r"is damaged \(database disk image is malformed\): the next call sets it aside",
        ),
        (TypeError("no number"), JournalCorrupt, r"is damaged \(TypeError: no number\)"),
        (CANNOT_ENCODE, JournalError, "failed: UnicodeEncodeError"),
        (sqlite3.OperationalError("database is locked"), JournalError, "is locked by another"),
        (sqlite3.OperationalError("database table is busy"), JournalError, "is locked by another"),
        (sqlite3.OperationalError("readonly database"), JournalError, "is read-only"),
        (OSError(errno.EROFS, "Read-only file system"), JournalError, "is read-only"),
        (sqlite3.OperationalError("unable to open database file"), JournalError, "cannot be open"),
        (OSError(errno.ELOOP, "Too many levels"), JournalError, "cannot be opened"),
        (sqlite3.OperationalError("database or disk is full"), JournalFull, "free some space"),
        (OSError(errno.ENOSPC, "No space left on device"), JournalFull, "free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), JournalFull, "free some space"),
        (sqlite3.OperationalError("near SELECT: syntax error"), JournalError, "failed: near"),
    ],
    ids=str,
)
def test_each_foreign_error_becomes_one_of_the_library(
    tmp_path: Path, error: BaseException, kind: type[JournalError], part: str
) -> None:
    """The message names the file and the cause, and the original error is the cause."""
    mapped = journal_error(error, str(tmp_path / "agent.db"))
    assert type(mapped) is kind
    with pytest.raises(kind, match=part):
        raise mapped
    assert "agent.db" in str(mapped)
    assert mapped.__cause__ is error


@pytest.mark.parametrize(
    "error", [InvalidArgument("wrong"), RuntimeError("bug"), KeyboardInterrupt()]
)
def test_other_errors_stay(error: BaseException) -> None:
    """An error of the library, and one of any other kind, is returned unchanged."""
    assert journal_error(error, "agent.db") is error


def disk(**changes: int) -> SimpleNamespace:
    values = {"f_files": 9, "f_favail": 9, "f_bavail": 1000, "f_bfree": 1000, "f_frsize": 4096}
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize("text", ["disk I/O error", "unable to open database file"])
@pytest.mark.parametrize(
    ("found", "remedy"),
    [
        (disk(f_favail=0), "no free inodes"),
        (disk(f_bavail=1, f_bfree=1, f_frsize=MIN_FREE_BYTES - 1), "free some space"),
        (disk(f_bavail=1, f_bfree=1, f_frsize=MIN_FREE_BYTES), None),
        (disk(f_files=0, f_favail=0), None),
        (OSError(errno.ENOENT, "no such directory"), None),
    ],
    ids=str,
)
def test_a_full_disk_is_recognised_behind_an_unspecific_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    found: object,
    remedy: str | None,
) -> None:
    """SQLite cannot create a log on a full disk, and reports only that it failed."""

    def statvfs(path: object) -> object:
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(os, "statvfs", statvfs)
    mapped = journal_error(sqlite3.OperationalError(text), str(tmp_path / "agent.db"))
    assert isinstance(mapped, CachedSessionError)
    assert isinstance(mapped, JournalFull) == (remedy is not None)
    if remedy is not None:
        assert remedy in str(mapped)
