"""A fork waits until no other thread is where the child could not go on.

The child has only the thread that forked; a lock that another one held at that moment is never let
go of there. SQLite guards its memory and its list of open files with locks that all connections
share: the first one that the child makes would hang for ever, whichever file it opens.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol

__all__ = ["wait_for"]

PATIENCE = 1.0
"""Seconds for each lock. A thread that waits for a locked file keeps its own for longer: then it
sleeps, and holds none of SQLite's."""
SLICE = 0.05
"""Seconds of it at a time: a machine that stands still for longer than the patience lasts uses up
one slice, and whoever has the lock still gets the rest to let it go."""


class _Lock(Protocol):
    """Of `threading`: a lock, or one that its thread may take again."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...
    def release(self) -> None: ...


_locks: weakref.WeakKeyDictionary[object, tuple[_Lock, ...]] = weakref.WeakKeyDictionary()
_guard = threading.Lock()
_held: list[_Lock] = []


def wait_for(owner: object, *locks: _Lock) -> None:
    """Take these before each fork, in this order, as long as their owner lives; owners in the order
    in which they said so. Not for a lock under which somebody else may become an owner."""
    with _guard:
        _locks[owner] = locks


def _hold() -> None:
    _guard.acquire()
    for locks in list(_locks.values()):
        _held.extend(lock for lock in locks if _is_taken(lock))


def _is_taken(lock: _Lock) -> bool:
    return any(lock.acquire(timeout=SLICE) for _ in range(round(PATIENCE / SLICE)))


def _let_go() -> None:
    while _held:
        _held.pop().release()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_let_go)
