"""Checks of the journal's locks: the process that syncs it, and a write transaction that hangs."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from cached_session.diagnosis.finding import Finding
from cached_session.diagnosis.lock_holders import holder_of, writer_of
from cached_session.journal.inspection import is_write_locked

__all__ = ["check_locks"]

WRITE_SECONDS = 1.0
"""Maximum number of seconds to wait for the write lock. A normal transaction takes milliseconds."""


def check_locks(path: str) -> list[Finding]:
    """Try to acquire each lock, and report the process that holds it."""
    return [_check_replicator(path), *_check_write_lock(path)]


def _check_replicator(path: str) -> Finding:
    lock = f"{os.path.realpath(path)}.lock"
    if not Path(lock).exists():
        return Finding("replicator", "ok", "no process has synced this journal yet")
    try:
        with FileLock(lock, timeout=0, mode=0o600):
            return Finding("replicator", "ok", "no process syncs this journal now")
    except Timeout:
        holder = holder_of(lock)
    except OSError as error:
        return Finding(
            "replicator", "warn", f"{lock} cannot be locked: {error}", "check its owner and mode"
        )
    message = f"{holder or 'another process'} syncs this journal"
    if holder is not None and holder.state:
        return Finding(
            "replicator",
            "warn",
            message,
            f"{holder.advice}; until then, cached-session sync sends what is pending",
        )
    return Finding("replicator", "ok", message)


def _check_write_lock(path: str) -> list[Finding]:
    if not is_write_locked(path, WRITE_SECONDS):
        return []
    holder = writer_of(os.path.realpath(path))
    message = f"{holder or 'another process'} has the write lock for over {WRITE_SECONDS:g} s"
    return [
        Finding(
            "lock",
            "fail",
            f"{message}: all other writes wait, then fail",
            holder.advice
            if holder is not None
            else "find it (a backup, a database browser, a process that hangs) and end it",
        )
    ]
