"""Connections to a journal file with a write-ahead log and the configured durability. Only the
owner of a new file can read it. A file of another program is refused."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

from cached_session.errors import JournalError
from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from cached_session.journal.tables import schema

__all__ = ["MEMORY", "connect", "create_private", "existing_uri"]

MEMORY = ":memory:"
"""Path of a journal without a file."""
CACHE_KIB = 8 * 1024
"""Size of SQLite's page cache of each connection, in KiB."""


def connect(path: str, busy_ms: int, durability: str) -> sqlite3.Connection:
    """Connect to a journal; create the file if it does not exist.

    Raises:
        JournalError: the file is not a journal, cannot be created, or cannot have a write-ahead
            log.
        JournalTooNew: the file has a newer format.
        sqlite3.DatabaseError: the file is damaged.
    """
    if path != MEMORY:
        create_private(path)
        _unlock_logs(path)
    conn = sqlite3.connect(
        path,
        timeout=busy_ms / 1000,
        isolation_level=None,
        check_same_thread=False,
        factory=TrackedConnection,
    )
    try:
        # Check the file before anything that could write to it.
        schema.identify(conn, path)
        if path != MEMORY:
            if conn.execute("PRAGMA page_count").fetchone() == (0,):
                # Let SQLite return free pages to the file system later. The statement works only
                # in an empty file. In any other file it has no effect, but waits for the write
                # lock.
                conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _enter_wal(conn, busy_ms, path)
        conn.execute(f"PRAGMA synchronous = {durability.upper()}")
        conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        conn.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        conn.close()
        raise
    return conn


def existing_uri(path: str) -> str:
    """Return a URI with which SQLite opens an existing file, but does not create a new file.

    Use this URI for a further connection to the journal, because its file may just have been moved.
    """
    return f"{Path(path).absolute().as_uri()}?mode=rw"


def create_private(path: str) -> None:
    """Create a file that only its owner can read. SQLite gives the write-ahead log the same mode.

    An existing file is never opened here: closing any descriptor of the file would release the
    POSIX locks of this process's SQLite connections. Another process would then consider itself the
    last user, and delete the write-ahead log while these connections use it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    cause: OSError
    try:
        os.close(os.open(os.path.realpath(path), flags, 0o600))
        return
    except FileExistsError as error:
        if not Path(path).is_dir():
            return
        why, cause = "it is a directory", error
    except OSError as error:
        why, cause = error.strerror or str(error), error
    raise JournalError(
        f"the journal {path} cannot be opened: {why}; "
        "check that its directory exists and is writable, or pass another path"
    ) from cause


def _unlock_logs(path: str) -> None:
    """Make the logs writable if the file is writable.

    SQLite creates a log with the mode of the file. A log that was created while the file was
    read-only would keep the journal read-only forever.
    """
    real = os.path.realpath(path)
    mode = stat.S_IMODE(Path(real).stat().st_mode)
    for log in (Path(f"{real}-wal"), Path(f"{real}-shm")):
        try:
            if mode & stat.S_IWUSR and not log.stat().st_mode & stat.S_IWUSR:
                log.chmod(mode)
        except (FileNotFoundError, PermissionError):
            # The log does not exist, or another user owns it. SQLite reports the consequences.
            continue


def _enter_wal(conn: sqlite3.Connection, busy_ms: int, path: str) -> None:
    """Switch to the write-ahead log. Several processes may switch at the same time."""
    (mode,) = conn.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        return
    # SQLite does not call its busy handler when the journal mode changes, so wait for the lock
    # here.
    pause = threading.Event()
    for attempt in range(max(1, busy_ms // 20)):
        try:
            (mode,) = conn.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt + 1 >= busy_ms // 20:
                raise
        else:
            if mode == "wal":
                return
            raise JournalError(
                f"the journal {path} cannot be opened: SQLite cannot use a write-ahead log there "
                "(is it a network file system?); put the journal on a local disk"
            )
        pause.wait(0.02)
