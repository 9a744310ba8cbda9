"""The identity of the file behind a journal's name, and of the logs next to it.

SQLite finds a log and its index by name. If a journal file is moved away without its log and index,
SQLite would use them for the next file of that name. SQLite would also overwrite them while another
process has the old file open.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cached_session.errors import JournalError

__all__ = [
    "LOG_SUFFIXES",
    "FileId",
    "dated_name",
    "file_id",
    "find_logs",
    "is_replaced",
    "lock_names",
    "move_stray_logs",
]

log = logging.getLogger("cached_session.journal")

LOCK_SUFFIX = ".salvage-lock"
"""Suffix of the lock file. A process holds the lock while it moves or replaces files of the
journal."""
LOG_SUFFIXES = ("-wal", "-shm")
"""Suffixes of the log and its index, which SQLite keeps next to the file."""
STRAY = ".left-"
"""Part of the new name of a log that belongs to another file: PATH.left-DATE."""
FileId = tuple[int, int]
"""The device and inode numbers of a file. They identify the file even after it is renamed."""


def file_id(path: str) -> FileId | None:
    """Return the identity of the file with this name; None if there is no such file.

    Raises:
        JournalError: the name cannot be looked up, for example because of a directory's mode.
    """
    try:
        info = os.stat(path)  # noqa: PTH116 - every call of a session runs this line
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise JournalError(
            f"the journal {path} cannot be looked up: {error.strerror}; "
            "check its directory, and try again"
        ) from error
    return info.st_dev, info.st_ino


def is_replaced(path: str, file: FileId | None) -> bool:
    """Return whether the path no longer names ``file``, or cannot be looked up."""
    try:
        return file_id(path) != file
    except JournalError:
        return True


def find_logs(path: str) -> dict[str, FileId]:
    """Return the identities of the log and its index next to the journal, by suffix."""
    real = os.path.realpath(path)
    found = {suffix: file_id(real + suffix) for suffix in LOG_SUFFIXES}
    return {suffix: file for suffix, file in found.items() if file is not None}


@contextmanager
def lock_names(path: str, timeout: float) -> Iterator[None]:
    """Hold the lock under which the files of a journal are moved or replaced.

    Raises:
        JournalError: another process held the lock for ``timeout`` seconds.
    """
    lock = FileLock(os.path.realpath(path) + LOCK_SUFFIX, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise JournalError(
            f"another process is recovering the journal {path}: nothing was read or "
            "written; try again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def move_stray_logs(
    path: str, timeout: float, known: Mapping[str, FileId] | None = None
) -> list[Path]:
    """Rename a log and an index that do not belong to the journal at this path; return their new
    paths.

    If they kept their names, SQLite would use them for the journal. Processes that have the log or
    the index open can continue to use them.

    Args:
        path: The journal's path.
        timeout: The maximum time to wait for the lock of `lock_names`, in seconds.
        known: The logs of an earlier file at this path, as `find_logs` returned them. With None,
            all logs are moved if no file exists at this path.

    Raises:
        JournalError: another process holds the lock, or a log cannot be renamed.
    """
    if not _stray_logs(path, known):
        return []
    real = os.path.realpath(path)
    new, moved = dated_name(real, STRAY, time.time_ns() // 1_000_000), []
    try:
        with lock_names(path, timeout):
            # Check again under the lock: another process may already have moved the stale log and
            # created its own.
            for suffix in _stray_logs(path, known):
                moved.append(Path(new + suffix))
                Path(real + suffix).replace(moved[-1])
                log.warning("moved %s%s, the log of another file, to %s", real, suffix, moved[-1])
    except OSError as error:
        raise JournalError(
            f"the log next to {path} belongs to another file and cannot be moved: {error}; "
            "make its directory writable"
        ) from error
    return moved


def dated_name(real: str, label: str, at_ms: int) -> str:
    """Return a path with a label and a time, for a file that is moved away."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at_ms / 1000))
    return f"{real}{label}{stamp}.{at_ms % 1000:03d}Z"


def _stray_logs(path: str, known: Mapping[str, FileId] | None) -> list[str]:
    """Return the suffixes of the logs that `move_stray_logs` has to move."""
    if known is None:
        return list(find_logs(path)) if file_id(path) is None else []
    return [suffix for suffix, file in find_logs(path).items() if known.get(suffix) == file]
