"""Which file has a journal's name, and whose the log is that lies beside it.

SQLite finds a log and its index by their names. A file that is taken away without them leaves them
to whatever comes to have its name: they would be taken for that one's, and written over under
whoever has the old one open.
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

LOCK = ".salvage-lock"
"""Beside the journal: who changes what its names stand for."""
LOG_SUFFIXES = ("-wal", "-shm")
"""What SQLite keeps beside a file."""
STRAY_SUFFIX = ".left-"
"""Between the journal's name and the moment at which a log was found that is another file's."""
FileId = tuple[int, int]
"""Device and inode: which file it is, whatever its name."""


def file_id(path: str) -> FileId | None:
    """Which file has this name; None for none that can be looked at: opening it says why."""
    try:
        info = os.stat(path)  # noqa: PTH116 - at every call of a session
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise JournalError(
            f"the journal {path} cannot be looked at: {error.strerror}; "
            "check its directory, and try again"
        ) from error
    return info.st_dev, info.st_ino


def is_replaced(path: str, file: FileId | None) -> bool:
    """Whether the name is another file's than this, or may be: it cannot be looked at."""
    try:
        return file_id(path) != file
    except JournalError:
        return True


def find_logs(path: str) -> dict[str, FileId]:
    """The log and its index that lie beside this name, by suffix."""
    real = os.path.realpath(path)
    found = {suffix: file_id(real + suffix) for suffix in LOG_SUFFIXES}
    return {suffix: file for suffix, file in found.items() if file is not None}


@contextmanager
def lock_names(path: str, patience: float) -> Iterator[None]:
    """Alone with the names of a journal, among those who change what they stand for.

    Raises:
        JournalError: another process is at it.
    """
    lock = FileLock(os.path.realpath(path) + LOCK, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise JournalError(f"another process is mending the journal {path}: try again") from error
    try:
        yield
    finally:
        lock.release()


def move_stray_logs(
    path: str, patience: float, whose: Mapping[str, FileId] | None = None
) -> list[Path]:
    """Let a log and an index that are not those of the file of this name have other names, before
    SQLite looks for its own; these names. Whoever has them open goes on with them.

    ``whose``: those of a file that no longer has this name. None: any, if nothing has this name.

    Raises:
        JournalError: another process changes the names, or they cannot be changed.
    """
    if not _stray_logs(path, whose):
        return []
    real = os.path.realpath(path)
    new, moved = dated_name(real, STRAY_SUFFIX, time.time_ns() // 1_000_000), []
    try:
        with lock_names(path, patience):
            # Asked again: others may have come to the same end, and theirs must stay.
            for suffix in _stray_logs(path, whose):
                moved.append(Path(new + suffix))
                Path(real + suffix).replace(moved[-1])
                log.warning("%s was not of the file beside it: it is %s now", suffix, moved[-1])
    except OSError as error:
        raise JournalError(
            f"the log beside {path} is another file's, and cannot be moved away: {error}; "
            "make its directory writable"
        ) from error
    return moved


def dated_name(real: str, why: str, at_ms: int) -> str:
    """The name of what is set aside at this moment."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at_ms / 1000))
    return f"{real}{why}{stamp}.{at_ms % 1000:03d}Z"


def _stray_logs(path: str, whose: Mapping[str, FileId] | None) -> list[str]:
    if whose is None:
        return list(find_logs(path)) if file_id(path) is None else []
    return [suffix for suffix, file in find_logs(path).items() if whose.get(suffix) == file]
