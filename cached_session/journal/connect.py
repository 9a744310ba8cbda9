"""How a connection to a journal file is made: private to its owner, refused where it is another
program's, with a write-ahead log and the durability that was asked for."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

from cached_session.errors import JournalError
from cached_session.history.parts import part_count
from cached_session.journal.sqlite.tracked_connection import TrackedConnection
from cached_session.journal.tables import schema

__all__ = ["MEMORY", "connect", "create_private", "teach", "there"]

MEMORY = ":memory:"
CACHE_KIB = 8 * 1024
"""SQLite's page cache for each connection."""


def connect(path: str, busy_ms: int, durability: str) -> sqlite3.Connection:
    """A connection to a journal, whose file is made if there is none.

    Raises:
        JournalError: it is no journal, or cannot be one here; JournalTooNew, JournalCorrupt.
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
        # Which file is this? Asked before anything that could write to it.
        schema.identify(conn, path)
        if path != MEMORY:
            if conn.execute("PRAGMA page_count").fetchone() == (0,):
                # While the file is empty: later its free pages can be given back. Elsewhere this
                # would do nothing, and wait for whoever is writing.
                conn.execute("PRAGMA auto_vacuum = INCREMENTAL")
            _enter_wal(conn, busy_ms)
        conn.execute(f"PRAGMA synchronous = {durability.upper()}")
        conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        conn.execute("PRAGMA temp_store = MEMORY")
        teach(conn)
    except BaseException:
        conn.close()
        raise
    return conn


def there(path: str) -> str:
    """A journal's file as SQLite opens it with ``uri=True`` if it is there, and never makes it: for
    a further connection to a file that may have been taken away a moment ago."""
    return f"{Path(path).absolute().as_uri()}?mode=rw"


def teach(conn: sqlite3.Connection) -> None:
    """The functions of ours that the journal's SQL uses."""
    conn.create_function("part_count", 1, _part_count, deterministic=True)


def _part_count(payload: bytes) -> int:
    """`part_count` for SQL, of a text that may be damaged."""
    return part_count(payload.decode(errors="replace"))


def create_private(path: str) -> None:
    """Make a new file readable by its owner only; SQLite gives its WAL the same mode.

    A file that is there is never opened here: closing any descriptor of it would drop the POSIX
    locks of this process's SQLite connections, and another process would then take itself for the
    last user and delete the write-ahead log under them.
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
    """SQLite makes its log with the mode of the file: one from a time when the file was read-only
    would keep the file so for ever."""
    real = os.path.realpath(path)
    mode = stat.S_IMODE(Path(real).stat().st_mode)
    for log in (Path(f"{real}-wal"), Path(f"{real}-shm")):
        try:
            if mode & stat.S_IWUSR and not log.stat().st_mode & stat.S_IWUSR:
                log.chmod(mode)
        except (FileNotFoundError, PermissionError):
            # There is none; or it is another user's, and SQLite says what comes of it.
            continue


def _enter_wal(conn: sqlite3.Connection, busy_ms: int) -> None:
    """Switch to the write-ahead log; several processes may do so at the same first moment."""
    (mode,) = conn.execute("PRAGMA journal_mode").fetchone()
    if mode == "wal":
        return
    # SQLite does not call its busy handler for this switch, so a lock elsewhere is waited out here.
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
                "SQLite cannot use a write-ahead log here (a network file system?); "
                "put the journal on a local disk"
            )
        pause.wait(0.02)
