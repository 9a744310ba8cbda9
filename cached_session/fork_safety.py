"""Locks that are acquired before a fork, so that the child process does not inherit them locked.

A child process has only the thread that forked. A lock that another thread held during the fork is
never released in the child. SQLite protects its memory and its list of open files with locks that
all connections share. Without this module, the child's first connection to any file could hang
forever.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["wait_for"]

LOCK_SECONDS = 1.0
"""Maximum number of seconds to wait for each lock. A thread that waits for a locked database file
may hold its lock for longer, but that thread sleeps and holds none of SQLite's locks."""
ATTEMPT_SECONDS = 0.05
"""Duration of one attempt to acquire a lock, in seconds. If the whole machine is suspended for
longer than `LOCK_SECONDS`, only one attempt is used up. The thread with the lock can release it
during the other attempts."""


class _Lock(Protocol):
    """A lock of `threading`: ``Lock`` or ``RLock``."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...
    def release(self) -> None: ...


_locks: weakref.WeakKeyDictionary[object, tuple[_Lock, ...]] = weakref.WeakKeyDictionary()
_guard = threading.Lock()
_held: list[_Lock] = []


def wait_for(owner: object, *locks: _Lock) -> None:
    """Acquire these locks before each fork, in this order, as long as ``owner`` exists.

    The owners' locks are acquired in the order of the calls. A thread that holds one of the locks
    must not call this function: a fork that waits for the lock would block the thread.
    """
    with _guard:
        _locks[owner] = locks


def _acquire_all() -> None:
    _guard.acquire()
    for locks in list(_locks.values()):
        _held.extend(lock for lock in locks if _acquire(lock))


def _acquire(lock: _Lock) -> bool:
    attempts = round(LOCK_SECONDS / ATTEMPT_SECONDS)
    return any(lock.acquire(timeout=ATTEMPT_SECONDS) for _ in range(attempts))


def _release_all() -> None:
    while _held:
        _held.pop().release()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_acquire_all, after_in_parent=_release_all, after_in_child=_release_all
    )
