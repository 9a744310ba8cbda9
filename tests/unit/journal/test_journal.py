# What is tested is files and processes: looking at them on the loop is all the same here.
# ruff: noqa: ASYNC220
from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from cached_session.errors import (
    CachedSessionError,
    InvalidArgument,
    JournalCorrupt,
    JournalError,
    JournalFull,
    JournalTooNew,
    SessionClosed,
)
from cached_session.journal.journal import Journal, journal_error
from cached_session.journal.tables import schema
from cached_session.journal.writer import DELIVERED_MOST, GROUP_MOST

Job = Callable[[sqlite3.Connection], Any]
KEYS = "SELECT key FROM meta WHERE key <> 'search_index' ORDER BY key"


@asynccontextmanager
async def opened(path: Path | str, **options: Any) -> AsyncIterator[Journal]:
    journal = Journal(path, **options)
    try:
        yield journal
    finally:
        await journal.close()


def setting(key: str, value: str = "x") -> Job:
    return lambda conn: conn.execute("INSERT INTO meta VALUES (?, ?)", (key, value)).rowcount


def keys(conn: sqlite3.Connection) -> list[str]:
    rows = conn.execute(KEYS)
    return [key for (key,) in rows]


def on_disk(path: Path) -> list[str]:
    """Return the items that another process sees."""
    with closing(sqlite3.connect(path)) as conn:
        return keys(conn)


class Blocker:
    """A job that occupies the writing thread until it is released, so that others wait behind
    it."""

    def __init__(self, journal: Journal) -> None:
        self.statements: list[str] = []
        self._entered, self._leave = threading.Event(), threading.Event()
        journal.write_soon(asyncio.get_running_loop(), self._hold)
        # A job that is handed in earlier would be in the group of this one.
        assert self._entered.wait(120)

    def _hold(self, conn: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._leave.wait(120)
        conn.set_trace_callback(self.statements.append)

    def release(self) -> None:
        self._leave.set()

    def commits(self) -> int:
        """Return the number of commits since the release, without the blocker's own."""
        return self.statements.count("COMMIT") - 1


async def run_behind_a_blocker(journal: Journal, jobs: list[Job]) -> tuple[list[Any], Blocker]:
    blocker = Blocker(journal)
    futures = [journal.write_soon(asyncio.get_running_loop(), job) for job in jobs]
    blocker.release()
    return await asyncio.gather(*futures, return_exceptions=True), blocker


async def test_jobs_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    """Waiting writes, up to the limit, cost one commit and run in the order of their calls."""
    async with opened(tmp_path / "j.db") as journal:
        order: list[int] = []
        jobs = [lambda conn, n=n: order.append(n) or n for n in range(100)]
        results, blocker = await run_behind_a_blocker(journal, jobs)
        assert results == order == list(range(100))
        assert blocker.commits() == 1


async def test_a_group_is_bounded(tmp_path: Path) -> None:
    """No more jobs than the limit share a commit, so that the first one does not wait for all."""
    async with opened(tmp_path / "j.db") as journal:
        jobs = [setting(f"{n:04d}") for n in range(2 * GROUP_MOST + 1)]
        results, blocker = await run_behind_a_blocker(journal, jobs)
        assert set(results) == {1}
        assert blocker.commits() == 3
        assert len(on_disk(tmp_path / "j.db")) == 2 * GROUP_MOST + 1


async def test_callers_of_a_group_are_woken_in_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of several loops share a commit: a closed loop does not delay the others, and other
    tasks run between the callers that are woken."""
    gone, here = asyncio.new_event_loop(), asyncio.get_running_loop()
    delivered: list[int] = []
    soon = here.call_soon_threadsafe

    def counted(callback: Callable[..., Any], *arguments: Any, **more: Any) -> asyncio.Handle:
        delivered.append(len(arguments[0]))
        return soon(callback, *arguments, **more)

    async with opened(tmp_path / "j.db") as journal:
        blocker = Blocker(journal)
        journal.write_soon(gone, setting("gone"))
        gone.close()
        doing = [
            journal.write_soon(here, setting(f"{n:04d}")) for n in range(2 * DELIVERED_MOST + 1)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(here, "call_soon_threadsafe", counted)
            blocker.release()
            assert set(await asyncio.gather(*doing)) == {1}
        assert blocker.commits() == 1
        assert delivered == [
            1,
            DELIVERED_MOST,
            DELIVERED_MOST,
            1,
        ]  # the first is the blocker itself
        assert len(on_disk(tmp_path / "j.db")) == 2 * DELIVERED_MOST + 2


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("bad", [0, 1, 2])
async def test_a_failing_job_does_not_affect_others(
    tmp_path: Path, bad: int, threaded: bool
) -> None:
    """It gets its own error and has no effect, and the others of its group are committed once
    each."""

    def failing(conn: sqlite3.Connection) -> None:
        setting("half")(conn)
        raise InvalidArgument("mine")

    async with opened(tmp_path / "j.db", threaded=threaded) as journal:
        jobs: list[Job] = [setting("a"), setting("b")]
        jobs.insert(bad, failing)
        if threaded:
            results, _ = await run_behind_a_blocker(journal, jobs)
        else:
            results = await asyncio.gather(*map(journal.write, jobs), return_exceptions=True)
        assert isinstance(results.pop(bad), InvalidArgument)
        assert results == [1, 1]
        assert on_disk(tmp_path / "j.db") == ["a", "b"]


async def test_a_sqlite_error_of_a_job_is_a_journal_error(tmp_path: Path) -> None:
    """The error of SQLite is the cause of the JournalError."""
    async with opened(tmp_path / "j.db") as journal:
        await journal.write(setting("a"))
        with pytest.raises(JournalError, match=r"j\.db") as caught:
            await journal.write(setting("a"))
        assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
        with pytest.raises(JournalError):
            await journal.read(lambda conn: conn.execute("SELECT nonsense"))
        assert await journal.read(keys) == ["a"]


async def test_a_returned_write_is_seen_by_the_next_read(tmp_path: Path) -> None:
    """Short reads, reads in threads, reads in slices and other processes see an acknowledged
    write."""
    path = tmp_path / "j.db"
    async with opened(path) as journal:
        for n in range(3):
            await journal.write(setting(str(n)))
            expected = [str(m) for m in range(n + 1)]
            assert await journal.read(keys) == expected
            assert await journal.read_aside(keys) == expected
            async with journal.rows(KEYS, ()) as fetch:
                assert [row[0] for row in await fetch(100)] == expected
            assert on_disk(path) == expected


async def test_readers_cannot_write(tmp_path: Path) -> None:
    """A query that would change something is refused: only jobs write."""
    async with opened(tmp_path / "j.db") as journal:
        for read in (journal.read, journal.read_aside):
            with pytest.raises(JournalError, match="read-only"):
                await read(setting("a"))


@pytest.mark.parametrize("committed", [True, False])
async def test_a_cancelled_write_is_atomic(tmp_path: Path, committed: bool) -> None:
    """The cancellation waits for the outcome of the job, and the journal stays usable."""
    started = threading.Event()
    leave = threading.Event()

    def slow(conn: sqlite3.Connection) -> None:
        setting("first")(conn)
        started.set()
        assert leave.wait(120)
        setting("second")(conn)
        if not committed:
            raise InvalidArgument("no")

    async with opened(tmp_path / "j.db") as journal:
        await journal.open()
        task = asyncio.ensure_future(journal.write(slow))
        await asyncio.to_thread(started.wait, 120)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await journal.read(keys) == (["first", "second"] if committed else [])
        await journal.write(setting("third"))


async def test_a_lock_that_stays_is_a_journal_error(tmp_path: Path) -> None:
    """If another process holds the file beyond the busy timeout, a write is refused and stores
    nothing, and reads work."""
    path = tmp_path / "j.db"
    holder = (
        "import sqlite3, sys\n"
        "conn = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "conn.execute('BEGIN IMMEDIATE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    async with opened(path, busy_timeout=0.05) as journal:
        await journal.write(setting("before"))
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(JournalError, match="locked by another program") as caught:
                await journal.write(setting("refused"))
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert await journal.read(keys) == ["before"]
            process.communicate("\n")
        await journal.write(setting("later"))
        assert await journal.read(keys) == ["before", "later"]


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE theirs (x)")
        conn.commit()


def _foreign_by_version(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 7")


def _foreign_by_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA application_id = 42")


def _versioned(version: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            schema.prepare(conn, str(path))
            setting("kept")(conn)
            conn.execute(f"PRAGMA user_version = {version}")

    return make


REFUSED: dict[str, tuple[Callable[[Path], Any], type[CachedSessionError], str]] = {
    "another program's database": (_foreign, JournalError, "of another program"),
    "a database with a version": (_foreign_by_version, JournalError, "of another program"),
    "a database with an owner": (_foreign_by_application, JournalError, "of another program"),
    "a text file": (lambda p: p.write_text("dear diary, " * 500), JournalError, "not a journal"),
    "a short text file": (lambda p: p.write_text("hello"), JournalError, "not a journal"),
    "a newer format": (_versioned(schema.FORMAT + 1), JournalTooNew, "upgrade"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_foreign_file_is_refused_and_unchanged(tmp_path: Path, name: str) -> None:
    """Each call raises an error that says what to do, and the file keeps its bytes."""
    make, kind, message = REFUSED[name]
    path = tmp_path / "file.db"
    make(path)
    before = path.read_bytes()
    journal = Journal(path, busy_timeout=0.1)
    for call in (
        journal.open,
        lambda: journal.write(setting("x")),
        lambda: journal.read(keys),
        lambda: journal.read_aside(keys),
    ):
        with pytest.raises(kind, match=message) as caught:
            await call()
        assert type(caught.value) is kind
        assert str(path) in str(caught.value)
    assert not journal.is_open
    await journal.close()
    assert path.read_bytes() == before
    assert [child.name for child in tmp_path.iterdir()] == ["file.db"]


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory at the file's path is a JournalError and is not changed."""
    async with opened(tmp_path) as journal:
        with pytest.raises(JournalError, match="cannot be opened"):
            await journal.open()
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_directory_is_refused_until_it_exists(tmp_path: Path) -> None:
    """No directory is made for the user, and the same journal opens once it exists."""
    path = tmp_path / "not" / "there" / "j.db"
    async with opened(path) as journal:
        for _ in range(2):
            with pytest.raises(JournalError, match="check that its directory exists"):
                await journal.write(setting("x"))
        assert list(tmp_path.iterdir()) == []
        path.parent.mkdir(parents=True)
        await journal.write(setting("x"))
        assert await journal.read(keys) == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="modes are a POSIX matter")
async def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    """The journal, its write-ahead log and its index have mode 0600 under any umask, and an
    existing file keeps its mode."""
    path = tmp_path / "j.db"
    before = os.umask(0)
    try:
        async with opened(path) as journal:
            await journal.write(setting("x"))
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
        assert modes == dict.fromkeys(["j.db", "j.db-wal", "j.db-shm"], 0o600)
    finally:
        os.umask(before)
    path.chmod(0o640)
    async with opened(path) as journal:
        await journal.write(setting("y"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.promise(number=1)
@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
async def test_durability_follows_the_option(tmp_path: Path, durability: str, level: int) -> None:
    """The writing connection is in WAL mode and syncs as the option says."""
    async with opened(tmp_path / "j.db", durability=durability) as journal:
        found = await journal.write(
            lambda conn: [
                conn.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ]
        )
    assert found == ["wal", level]


async def test_closing_commits_waiting_jobs(tmp_path: Path) -> None:
    """Later calls are refused, the log is checkpointed, and closing again does nothing."""
    path = tmp_path / "j.db"
    journal = Journal(path)
    loop = asyncio.get_running_loop()
    futures = [journal.write_soon(loop, setting(str(n))) for n in range(5)]
    await journal.close()
    assert [await future for future in futures] == [1] * 5
    await journal.close()
    journal.close_blocking()
    for call in (journal.open, lambda: journal.write(keys), lambda: journal.read(keys)):
        with pytest.raises(SessionClosed):
            await call()
    assert [child.name for child in tmp_path.iterdir()] == ["j.db"]
    assert on_disk(path) == ["0", "1", "2", "3", "4"]
    assert "cached-session-journal" not in {thread.name for thread in threading.enumerate()}


async def test_a_journal_that_was_never_used_leaves_no_file(tmp_path: Path) -> None:
    """Making and closing a journal does no I/O."""
    journal = Journal(tmp_path / "j.db")
    await journal.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_in_memory_is_one_connection() -> None:
    """In memory, every kind of read sees the same data, and nothing remains after the object."""
    async with opened(":memory:") as journal:
        await journal.write(setting("x"))
        assert await journal.read(keys) == await journal.read_aside(keys) == ["x"]
        async with journal.rows(KEYS, ()) as fetch:
            assert await fetch(1) == [("x",)]
            assert await fetch(1) == []
    async with opened(":memory:") as journal:
        await journal.open()
        assert await journal.read(keys) == []


async def test_two_journals_can_make_one_file(tmp_path: Path) -> None:
    """Concurrent first openings of a file agree on one schema and lose nothing."""
    path = tmp_path / "j.db"
    journals = [Journal(path) for _ in range(4)]
    await asyncio.gather(*(j.write(setting(str(n))) for n, j in enumerate(journals)))
    for journal in journals:
        assert await journal.read(keys) == ["0", "1", "2", "3"]
    for journal in journals:
        await journal.close()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite3.OperationalError("database or disk is full"), JournalFull),
        (sqlite3.DatabaseError("database disk image is malformed"), JournalCorrupt),
        (sqlite3.DatabaseError("file is not a database"), JournalError),
        (sqlite3.OperationalError("database is locked"), JournalError),
        (sqlite3.OperationalError("attempt to write a readonly database"), JournalError),
        (sqlite3.OperationalError("unable to open database file"), JournalError),
        (sqlite3.OperationalError("disk I/O error"), JournalError),
        (sqlite3.IntegrityError("UNIQUE constraint failed"), JournalCorrupt),
        (TypeError("'<' not supported between instances of 'str' and 'int'"), JournalCorrupt),
        (OverflowError("Python int too large to convert to SQLite INTEGER"), JournalCorrupt),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), JournalCorrupt),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), JournalError),
    ],
)
def test_each_error_has_its_class(error: Exception, kind: type) -> None:
    """Errors are divided by what the caller can do, name the file and keep their cause."""
    mapped = journal_error(error, "/some/j.db")
    assert type(mapped) is kind
    assert mapped.__cause__ is error
    assert "/some/j.db" in str(mapped)


async def test_an_error_of_the_library_is_not_damage(tmp_path: Path) -> None:
    """No cell of a journal leads to such an error. The writer keeps its file and its id."""
    replaced: list[None] = []
    journal = Journal(tmp_path / "j.db", on_replaced=lambda: (replaced.append(None), ("a", "b"))[1])
    for error in (KeyError("typo"), IndexError("typo"), AttributeError("typo")):

        def fail(conn: sqlite3.Connection, error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error), match="typo"):
            await journal.write(fail)
        with pytest.raises(type(error), match="typo"):
            await journal.read(fail)
    assert await journal.read(lambda conn: conn.execute("SELECT 1").fetchone()) == (1,)
    await journal.close()
    assert replaced == []
    assert [path.name for path in tmp_path.iterdir()] == ["j.db"]


def test_other_errors_pass_unchanged() -> None:
    """An error of the library, or one that is not about a file, is not wrapped."""
    for error in (InvalidArgument("x"), SessionClosed("x"), RuntimeError("x"), MemoryError()):
        assert journal_error(error, "j") is error
