"""Processes that hold locks on the journal's files, read from /proc.

Only Linux has /proc/locks: on other systems no process is found. A process id in the lock file
could not replace this module. The id could be stale, and it would not show whether the process is
stopped. For SQLite's write lock, no file contains a process id.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Holder", "holder_of", "writer_of"]

PROC = Path("/proc")
WAL_WRITE_LOCK = 120
"""The byte of the -shm file that SQLite locks while a transaction writes."""
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a disk", "Z": "dead"}


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. `name` and `state` are empty if this user may not read them."""

    pid: int
    name: str
    state: str
    """A value of `STATES`; empty for a process that runs or sleeps."""

    def __str__(self) -> str:
        if self.pid == os.getpid():
            return f"this process ({self.pid})"
        process = f"process {self.pid}" + (f" ({self.name})" if self.name else "")
        return f"{process}, which is {self.state}," if self.state else process

    @property
    def advice(self) -> str:
        """Advice with the commands that make the process release the lock."""
        if self.state.startswith("stopped"):
            return f"kill -CONT {self.pid} continues it, kill -KILL {self.pid} ends it"
        return f"if it hangs, end it: kill {self.pid}"


def holder_of(lock: str) -> Holder | None:
    """Return the process that has locked a whole file; None if it is unknown."""
    return next((_process(pid) for pid, _ in _locks(lock, "FLOCK")), None)


def writer_of(journal: str) -> Holder | None:
    """Return the process with an open write transaction on a journal; None if it is unknown."""
    locks = _locks(f"{journal}-shm", "POSIX")
    return next((_process(pid) for pid, first in locks if first == WAL_WRITE_LOCK), None)


def _locks(path: str, kind: str) -> Iterator[tuple[int, int]]:
    """Yield (process id, first byte) of each write lock of this kind on a file."""
    try:
        inode = Path(path).stat().st_ino
        lines = (PROC / "locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        # `1: FLOCK ADVISORY WRITE 27472 fe:00:2187348 0 EOF`; a waiting process adds `->`.
        if len(fields) != 8 or fields[1] != kind or fields[3] != "WRITE":
            continue
        pid, inode_field = int(fields[4]), fields[5].rpartition(":")[2]
        if int(inode_field) == inode and _has_open(pid, path):
            yield pid, int(fields[6])


def _has_open(pid: int, path: str) -> bool:
    """Return whether a process has a file open; True if this user may not list its files.

    The inode does not identify the file: it is unique only within a file system, and the device
    number in /proc/locks can differ from the device number that stat returns.
    """
    real = os.path.realpath(path)
    try:
        with os.scandir(PROC / str(pid) / "fd") as opened:
            return any(os.path.realpath(file.path) == real for file in opened)
    except PermissionError:
        return True
    except OSError:
        return False


def _process(pid: int) -> Holder:
    try:
        name = (PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
        # `pid (name) state ...`; the name may contain spaces and parentheses.
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        state = stat.rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return Holder(pid, "", "")
    return Holder(pid, name, STATES.get(state, ""))
