"""Checks of the journal file: integrity, free disk space, access modes, damaged files."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

from cached_session.diagnosis.finding import Finding
from cached_session.errors import CachedSessionError, JournalFull, JournalTooNew
from cached_session.humanize import size
from cached_session.journal.inspection import inspect_file

__all__ = ["check_file", "unusable"]

LOW_DISK = 1024**3
"""Number of free bytes on the disk below which a warning is reported. The write-ahead log can grow
temporarily."""
NO_DISK = 64 * 1024**2
"""Number of free bytes on the disk below which writes are about to fail."""


def check_file(path: str) -> list[Finding]:
    """Check the file without opening it as a journal, because opening can replace a damaged
    file."""
    file = Path(path)
    if not file.exists():
        return [
            Finding(
                "journal",
                "fail",
                f"there is no journal at {path}",
                "pass another path; the first write to a session creates the journal",
            )
        ]
    return [
        _check_integrity(path),
        _check_disk(file),
        _check_modes(file),
        *_check_damaged_files(file),
    ]


def _check_integrity(path: str) -> Finding:
    try:
        problems, version, is_current = inspect_file(path)
    except CachedSessionError as error:
        return unusable(error)
    if problems:
        return Finding(
            "journal",
            "fail",
            f"{path} is damaged: {' '.join('; '.join(problems).split())[:200]}",
            "cached-session compact sets it aside and copies what can be read to a new file; a "
            "sync fetches the rest from the server; cached-session status then shows what was lost",
        )
    form = f"format {version}" if is_current else f"format {version}, to be migrated when opened"
    return Finding("journal", "ok", f"{path} is intact ({form})")


def unusable(error: CachedSessionError) -> Finding:
    """Report an error that makes the journal unusable."""
    advice = "fix the cause, or pass another journal"
    if isinstance(error, JournalTooNew):
        advice = "upgrade cached-session; the file is unchanged"
    elif isinstance(error, JournalFull):
        advice = "free some space; all writes that have returned are stored"
    return Finding("journal", "fail", str(error), advice)


def _check_disk(file: Path) -> Finding:
    usage = shutil.disk_usage(file.parent)
    used = sum(
        part.stat().st_size
        for suffix in ("", "-wal", "-shm")
        if (part := file.with_name(file.name + suffix)).exists()
    )
    message = f"the journal uses {size(used)}, {size(usage.free)} are free"
    if usage.free < NO_DISK:
        return Finding("disk", "fail", message, "free some space: writes are about to fail")
    if usage.free < max(LOW_DISK, 2 * used):
        return Finding("disk", "warn", message, "free some space, or compact the journal")
    return Finding("disk", "ok", message)


def _check_modes(file: Path) -> Finding:
    if os.name != "posix":
        return Finding("access", "ok", "not checked: this system has no POSIX file modes")
    readable = [
        part
        for suffix in ("", "-wal", "-shm")
        if (part := file.with_name(file.name + suffix)).exists()
        and stat.S_IMODE(part.stat().st_mode) & 0o077
    ]
    if readable:
        names = " ".join(part.name for part in readable)
        paths = " ".join(shlex.quote(str(part.absolute())) for part in readable)
        return Finding(
            "access",
            "warn",
            f"other users of this machine may access {names}",
            f"chmod 600 {paths}",
        )
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
        return Finding(
            "access",
            "fail",
            "this user may not write to the journal",
            "check the file's owner and mode",
        )
    return Finding("access", "ok", "only its owner can access the journal")


def _check_damaged_files(file: Path) -> list[Finding]:
    """Report damaged files that were set aside and still exist."""
    known = {file.name + suffix for suffix in ("", "-wal", "-shm", "-journal", ".lock")}
    damaged = sorted(
        other.name
        for other in file.parent.glob(f"{_escape_glob(file.name)}?*")
        if other.name not in known
        and ("damaged" in other.name or "corrupt" in other.name)
        and not other.name.endswith(("-wal", "-shm"))
    )
    if not damaged:
        return []
    return [
        Finding(
            "set aside",
            "warn",
            f"a damaged journal was set aside: {', '.join(damaged)}",
            "check the history, then delete the file with its -wal and -shm; until then it is the "
            "only copy of the rows that could not be recovered",
        )
    ]


def _escape_glob(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
