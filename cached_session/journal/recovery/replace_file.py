"""Replacement of a damaged journal file by a new one. The replacement can be undone if a crash
interrupts it at any point.

The new file is filled under one name, renamed when it is complete, and then takes the journal's
name. The damaged file stays in the same directory under a name with the date.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from pathlib import Path

from cached_session.journal.sqlite.file_identity import LOG_SUFFIXES, dated_name, file_id

__all__ = [
    "discard_partial_file",
    "is_interrupted",
    "mark_complete",
    "name_for_damaged",
    "never_close",
    "partial_path",
    "swap",
    "undo_interrupted_swap",
]

PARTIAL, COMPLETE = ".salvaging", ".salvaged"
"""Suffixes of the new file's name after the journal's path: the first suffix while the file is
filled, and the second when the file is complete."""
DAMAGED = ".damaged-"
"""The text between the journal's path and the date in the name of a damaged file."""


def is_interrupted(path: str) -> bool:
    """Return whether a process ended while it replaced the file of a journal."""
    return file_id(os.path.realpath(path) + COMPLETE) is not None


def never_close(conn: sqlite3.Connection) -> None:
    """Keep a connection open until the process ends, because its file has lost its name.

    When SQLite closes the last connection to a file, it may delete the log by its name. That name
    belongs to the log of the new journal now. Recent versions of SQLite compare the file's identity
    first.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(conn))


def name_for_damaged(real: str, at_ms: int) -> str:
    """Return the path to which the damaged file is moved."""
    return dated_name(real, DAMAGED, at_ms)


def partial_path(real: str) -> str:
    """Return the path of the new file while it is filled."""
    return real + PARTIAL


def discard_partial_file(real: str) -> None:
    """Delete a partial file and its logs, which an earlier recovery may have left."""
    for suffix in ("", *LOG_SUFFIXES):
        Path(partial_path(real) + suffix).unlink(missing_ok=True)


def mark_complete(real: str) -> None:
    """Rename the closed partial file to the name of a complete one."""
    for suffix in LOG_SUFFIXES:
        Path(partial_path(real) + suffix).unlink(missing_ok=True)
    Path(partial_path(real)).replace(real + COMPLETE)


def swap(real: str, set_aside: str) -> None:
    """Give the damaged file another name, and its old name to the complete new file. One of the two
    files has the journal's name at any time.

    The damaged file's log is moved first, and the move is synced to the disk: SQLite would apply a
    log that it finds beside the new file. A process that ends between these steps leaves the
    complete file under its own name, and `undo_interrupted_swap` restores the old state.
    """
    os.link(real, set_aside)
    for suffix in LOG_SUFFIXES:
        if Path(real + suffix).exists():
            Path(real + suffix).replace(set_aside + suffix)
    _sync_directory(real)
    Path(real + COMPLETE).replace(real)
    _sync_directory(real)


def undo_interrupted_swap(real: str) -> None:
    """Give the damaged file its log back and delete the complete file, if a process ended during
    `swap`. The caller then starts the recovery again. Finishing the swap instead would lose rows
    that other processes, which have the damaged file open, have written to it since."""
    complete = Path(real + COMPLETE)
    if not complete.exists():
        return
    for set_aside in _other_names(real):
        for suffix in LOG_SUFFIXES:
            if Path(set_aside + suffix).exists():
                Path(set_aside + suffix).replace(real + suffix)
        Path(set_aside).unlink()
    complete.unlink()


def _other_names(real: str) -> list[str]:
    """Return the names for damaged files under which the journal's current file is linked."""
    prefix = f"{Path(real).name}{DAMAGED}"
    file = file_id(real)
    found = [str(path) for path in Path(real).parent.iterdir() if path.name.startswith(prefix)]
    return [name for name in found if not name.endswith(LOG_SUFFIXES) and file_id(name) == file]


def _sync_directory(real: str) -> None:
    directory = os.open(Path(real).parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
