"""Who uses the journal right now: which process syncs it, and whether one keeps others waiting."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout

from cached_session.diagnosis.finding import Finding
from cached_session.diagnosis.holders import holder_of, writer_of

__all__ = ["in_use"]

WRITE_SECONDS = 1.0
"""A transaction takes milliseconds; whoever holds the lock for longer keeps everybody waiting."""


def in_use(path: str) -> list[Finding]:
    """Take each lock for a moment, and say who has it if it cannot be had."""
    return [_replicator(path), *_writing(path)]


def _replicator(path: str) -> Finding:
    lock = f"{os.path.realpath(path)}.lock"
    if not Path(lock).exists():
        return Finding("replicator", "ok", "none has run yet")
    try:
        with FileLock(lock, timeout=0, mode=0o600):
            return Finding("replicator", "ok", "no process syncs this journal right now")
    except Timeout:
        holder = holder_of(lock)
    except OSError as error:
        return Finding(
            "replicator", "warn", f"{lock} cannot be locked: {error}", "check its owner and mode"
        )
    said = f"{holder or 'another process'} syncs this journal"
    if holder is not None and holder.state:
        return Finding(
            "replicator", "warn", said, f"{holder.advice}; cached-session sync sends meanwhile"
        )
    return Finding("replicator", "ok", said)


def _writing(path: str) -> list[Finding]:
    uri = f"{Path(path).absolute().as_uri()}?mode=rw"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=WRITE_SECONDS, isolation_level=None)
        ) as conn:
            conn.execute("BEGIN IMMEDIATE")
            conn.execute("ROLLBACK")
    except sqlite3.Error as error:
        if "locked" not in str(error):
            return []  # a full disk, a mode: each has a finding of its own
        holder = writer_of(os.path.realpath(path))
        said = f"{holder or 'another process'} is writing for longer than {WRITE_SECONDS:g} s"
        return [
            Finding(
                "lock",
                "fail",
                f"{said}: every other write waits, and fails in the end",
                holder.advice
                if holder is not None
                else "find it (a backup? a database browser? a process that hangs?) and end it",
            )
        ]
    return []
