"""Locks that are acquired before a fork, so that the child does not inherit them locked."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from cached_session import SyncOptions, fork_safety
from cached_session.adapters.bridge import Bridge
from cached_session.engine.engine import Engine
from cached_session.engine.notifier import Notifier
from cached_session.journal.journal import Journal
from cached_session.runtime import Runtime

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here")


class Owner:
    """An object that has a lock."""


class WatchedLock:
    """A lock that reports when a fork begins to wait for it."""

    def __init__(self, lock: fork_safety._Lock) -> None:
        self._lock = lock
        self.is_awaited = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if blocking and timeout:
            self.is_awaited.set()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()


def watch(owner: object, lock: fork_safety._Lock) -> WatchedLock:
    """Acquire a watched lock before each fork, in place of the one lock of its owner."""
    watched = WatchedLock(lock)
    fork_safety.wait_for(owner, watched)
    return watched


@contextmanager
def in_thread(work: Callable[[], None], watched: WatchedLock) -> Iterator[None]:
    """Run work that waits for a fork in another thread, and end it when no fork has waited."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        watched.is_awaited.set()
        thread.join()


def in_child(check: Callable[[], bool]) -> bool:
    """Return the result of a check in a child that is forked now."""
    with warnings.catch_warnings():
        # From Python 3.12 on: that there are threads is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os._exit(0 if check() else 1)
    return os.waitpid(child, 0)[1] == 0


def test_a_fork_waits_until_a_lock_is_free_and_leaves_it_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock is free in the parent and in the child."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 60.0)
    owner, lock, taken, done = Owner(), threading.Lock(), threading.Event(), list[bool]()
    watched = watch(owner, lock)

    def work() -> None:
        with lock:
            taken.set()
            watched.is_awaited.wait()
            done.append(True)

    with in_thread(work, watched):
        taken.wait()
        assert in_child(lambda: done == [True] and not lock.locked())
        assert not lock.locked()


def test_a_lock_that_is_never_released_only_delays_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork goes on after `LOCK_SECONDS`, and the child inherits the lock locked."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 0.05)
    owner, lock = Owner(), threading.Lock()
    fork_safety.wait_for(owner, lock)
    with lock:
        assert in_child(lock.locked)
        assert lock.locked()
    assert in_child(lambda: not lock.locked())


def test_a_fork_waits_again_after_a_stall_of_the_machine() -> None:
    """A suspended machine uses up one attempt only; the next one acquires the lock."""

    class Stalled:
        """A lock whose holder cannot release it before the first attempt is over."""

        waits = 0
        released = False

        def acquire(self, timeout: float) -> bool:
            self.waits += 1
            return self.waits == 2

        def release(self) -> None:
            self.released = True

    owner, lock = Owner(), Stalled()
    fork_safety.wait_for(owner, lock)  # type: ignore[arg-type]
    assert in_child(lambda: lock.waits == 2 and lock.released)
    assert lock.released


def test_a_lock_is_forgotten_with_its_owner() -> None:
    """A fork waits for a lock only as long as the lock's owner exists."""
    owner, lock = Owner(), threading.Lock()
    fork_safety.wait_for(owner, lock)
    del owner
    with lock:
        assert lock not in [one for locks in fork_safety._locks.values() for one in locks]


async def test_no_child_is_forked_in_the_middle_of_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that is forked inside one inherits locks of SQLite and cannot open a journal."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 60.0)
    journal = Journal(tmp_path / "j.db")
    begun, done = threading.Event(), list[bool]()
    await journal.open()
    watched = watch(journal._connections, journal._connections.writing)

    def work(conn: sqlite3.Connection) -> None:
        conn.execute("SELECT count(*) FROM sessions").fetchone()
        begun.set()
        watched.is_awaited.wait()
        done.append(True)

    with in_thread(lambda: journal.write_blocking(work), watched):
        begun.wait()
        assert in_child(lambda: done == [True])
    await journal.close()


def locks_of(owner: object) -> list[fork_safety._Lock]:
    """Return the lock that an object acquires before each fork."""
    return [lock for name, lock in vars(owner).items() if name in ("_guard", "_state")]


@pytest.mark.parametrize(
    "make", [Bridge, Notifier, lambda: Journal(":memory:")._writer, lambda: engine(":memory:")]
)
def test_the_locks_of_inherited_objects_are_free_in_a_child(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that another thread of the parent held at the fork is free in the child."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 60.0)
    owner = make()
    (lock,) = locks_of(owner)
    watched, taken = watch(owner, lock), threading.Event()

    def work() -> None:
        with lock:  # type: ignore[attr-defined]
            taken.set()
            watched.is_awaited.wait()

    with in_thread(work, watched):
        taken.wait()
        assert in_child(lambda: lock.acquire(timeout=5.0))


def engine(path: str) -> Engine:
    return Engine(path, SyncOptions(), Runtime())


def test_a_close_in_a_child_keeps_the_parents_file_lock(tmp_path: Path) -> None:
    """Parent and child share a file lock, so the child must not release it."""
    path = tmp_path / "j.db"
    parents = engine(str(path))
    parents.join(None)
    lock = parents._lock_file()
    assert lock is not None
    with lock:
        assert in_child(lambda: asyncio.run(parents.release(None)) is None)
        with pytest.raises(Timeout):
            FileLock(f"{path}.lock").acquire(blocking=False)
