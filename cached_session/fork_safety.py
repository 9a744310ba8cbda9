"""Locks that are acquired before a fork, so that the child process does not inherit them locked.

A child has only the thread that forked. A lock that another thread held at that moment is never
released there. SQLite protects its memory and its list of open files with locks that all
connections share. Without this module the child's first connection could hang forever, whichever
file it opens.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["wait_for"]

LOCK_SECONDS = 1.0
"""Longest wait for each lock. A thread that waits for a locked database file keeps its lock longer,
but then it sleeps and holds none of SQLite's locks."""
ATTEMPT_SECONDS = 0.05
"""Length of one attempt. If the whole machine is suspended for longer than `LOCK_SECONDS`, that
uses up one attempt only, and the thread with the lock still has the others to release it."""


class _Lock(Protocol):
    """A lock of `threading`: ``Lock`` or ``RLock``."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...
    def release(self) -> None: ...


_locks: weakref.WeakKeyDictionary[object, tuple[_Lock, ...]] = weakref.WeakKeyDictionary()
_guard = threading.Lock()
_held: list[_Lock] = []


def wait_for(owner: object, *locks: _Lock) -> None:
    """Acquire these locks before each fork, in this order, as long as ``owner`` exists.

    Owners are handled in the order of their calls. While a thread holds one of the locks it must
    not call this function: a fork that waits for the lock would block it.
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
