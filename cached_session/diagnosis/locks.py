"""Checks of the journal's locks: the process that syncs it, and a write transaction that hangs."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from cached_session.diagnosis.finding import Finding
from cached_session.diagnosis.lock_holders import holder_of, writer_of

__all__ = ["check_locks"]

WRITE_SECONDS = 1.0
"""Longest wait for the write lock. A normal transaction takes milliseconds."""


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
    uri = f"{Path(path).absolute().as_uri()}?mode=rw"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=WRITE_SECONDS, isolation_level=None)
        ) as conn:
            conn.execute("BEGIN IMMEDIATE")
            conn.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" not in str(error):
            return []  # other checks report a full disk and file modes
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
    return []
