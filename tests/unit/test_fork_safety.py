"""A fork waits for whoever is where the child could not go on."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
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
    """Somebody who has a lock."""


def in_child(check: Callable[[], bool]) -> bool:
    """What a check says in a child that is forked now."""
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
    """In the parent and in the child."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 60.0)
    owner, lock, taken, done = Owner(), threading.Lock(), threading.Event(), list[bool]()
    fork_safety.wait_for(owner, lock)

    def work() -> None:
        with lock:
            taken.set()
            time.sleep(0.2)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    taken.wait()
    assert in_child(lambda: done == [True] and not lock.locked())
    assert not lock.locked()
    thread.join()


def test_what_is_never_let_go_of_delays_a_fork_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the child finds it taken, as it would have."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 0.05)
    owner, lock = Owner(), threading.Lock()
    fork_safety.wait_for(owner, lock)
    with lock:
        assert in_child(lock.locked)
        assert lock.locked()
    assert in_child(lambda: not lock.locked())


def test_a_stall_of_the_machine_is_not_taken_for_patience() -> None:
    """A wait that ended because nothing ran is followed by another one."""

    class Stalled:
        """Its holder gets no time to let it go before the first wait is over."""

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


def test_nobody_waits_for_what_has_gone() -> None:
    """A lock is waited for as long as its owner lives."""
    owner, lock = Owner(), threading.Lock()
    fork_safety.wait_for(owner, lock)
    del owner
    with lock:
        assert lock not in [one for locks in fork_safety._locks.values() for one in locks]


async def test_no_child_is_forked_in_the_middle_of_a_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's own locks are taken in it, and the child could open no journal at all."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 60.0)
    journal = Journal(tmp_path / "j.db")
    begun, done = threading.Event(), list[bool]()

    def work(conn: sqlite3.Connection) -> None:
        conn.execute("SELECT count(*) FROM sessions").fetchone()
        begun.set()
        time.sleep(0.2)
        done.append(True)

    await journal.open()
    writing = threading.Thread(target=lambda: journal.write_blocking(work))
    writing.start()
    begun.wait()
    assert in_child(lambda: done == [True])
    writing.join()
    await journal.close()


def locks_of(owner: object) -> list[fork_safety._Lock]:
    return [lock for name, lock in vars(owner).items() if name in ("_guard", "_state")]


@pytest.mark.parametrize(
    "make", [Bridge, Notifier, lambda: Journal(":memory:")._writer, lambda: engine(":memory:")]
)
def test_what_a_child_may_call_is_free_in_it(
    make: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a thread of the parent was in the middle of: a bridge starts anew, and an inherited
    session closes, or says that it cannot be used."""
    monkeypatch.setattr(fork_safety, "LOCK_SECONDS", 60.0)
    owner = make()
    (lock,) = locks_of(owner)
    taken = threading.Event()

    def work() -> None:
        with lock:  # type: ignore[attr-defined]
            taken.set()
            time.sleep(0.2)

    thread = threading.Thread(target=work)
    thread.start()
    taken.wait()
    assert in_child(lambda: lock.acquire(timeout=5.0))
    thread.join()


def engine(path: str) -> Engine:
    return Engine(path, SyncOptions(), Runtime())


def test_a_child_that_closes_leaves_the_parents_lock_alone(tmp_path: Path) -> None:
    """A lock of a file is shared with the child: to let go of it there is to let go of it here."""
    path = tmp_path / "j.db"
    parents = engine(str(path))
    parents.join(None)
    lock = parents._lock_file()
    assert lock is not None
    with lock:
        assert in_child(lambda: asyncio.run(parents.release(None)) is None)
        with pytest.raises(Timeout):
            FileLock(f"{path}.lock").acquire(blocking=False)
