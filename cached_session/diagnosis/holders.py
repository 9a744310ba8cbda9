"""Who holds a lock on a file. Linux tells, in /proc; elsewhere nobody is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Holder", "holder_of", "writer_of"]

PROC = Path("/proc")
WAL_WRITE_LOCK = 120
"""The byte of the shared-memory file whose lock is SQLite's permission to write."""
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a disk", "Z": "dead"}


@dataclass(frozen=True)
class Holder:
    """A process, as far as this user may know it."""

    pid: int
    name: str
    state: str
    """Empty for one that runs or sleeps, as it should."""

    def __str__(self) -> str:
        who = f"process {self.pid}" + (f" ({self.name})" if self.name else "")
        if self.pid == os.getpid():
            return f"this process ({self.pid})"
        return f"{who}, which is {self.state}," if self.state else who

    @property
    def advice(self) -> str:
        """How to have it let go."""
        if self.state.startswith("stopped"):
            return f"kill -CONT {self.pid} lets it go on, kill -KILL {self.pid} ends it"
        return f"if it hangs, end it: kill {self.pid}"


def holder_of(lock: str) -> Holder | None:
    """The process with the lock on this whole file; None if nobody can be named."""
    return next((_process(pid) for pid, _ in _locks(lock, "FLOCK")), None)


def writer_of(journal: str) -> Holder | None:
    """The process that is in a writing transaction of this journal."""
    locks = _locks(f"{journal}-shm", "POSIX")
    return next((_process(pid) for pid, first in locks if first == WAL_WRITE_LOCK), None)


def _locks(path: str, kind: str) -> Iterator[tuple[int, int]]:
    """(process, first byte) of each writing lock of this kind on a file."""
    try:
        inode = Path(path).stat().st_ino
        lines = (PROC / "locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        # `1: FLOCK ADVISORY WRITE 27472 fe:00:2187348 0 EOF`; who waits has an arrow before that.
        if len(fields) != 8 or fields[1] != kind or fields[3] != "WRITE":
            continue
        pid, where = int(fields[4]), fields[5].rpartition(":")[2]
        if int(where) == inode and _has_open(pid, path):
            yield pid, int(fields[6])


def _has_open(pid: int, path: str) -> bool:
    """Inodes are unique on one file system only, and its number here is not always the one that
    files show: what the process has open decides, if this user may see it."""
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
        # `pid (name) state ...`, where the name may hold anything.
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        state = stat.rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return Holder(pid, "", "")
    return Holder(pid, name, STATES.get(state, ""))
