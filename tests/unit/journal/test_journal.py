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
    """What any other process sees."""
    with closing(sqlite3.connect(path)) as conn:
        return keys(conn)


class Gatekeeper:
    """A job that holds the writing thread until it is let go, so that others queue up behind."""

    def __init__(self, journal: Journal) -> None:
        self.statements: list[str] = []
        self._entered, self._leave = threading.Event(), threading.Event()
        journal.write_soon(asyncio.get_running_loop(), self._hold)
        # Only then: what is handed in before the thread has the gate would be of the gate's group.
        assert self._entered.wait(120)

    def _hold(self, conn: sqlite3.Connection) -> None:
        self._entered.set()
        assert self._leave.wait(120)
        conn.set_trace_callback(self.statements.append)

    def let_go(self) -> None:
        self._leave.set()

    def commits(self) -> int:
        """Commits since the gate opened, its own left out."""
        return self.statements.count("COMMIT") - 1


async def behind_a_gate(journal: Journal, jobs: list[Job]) -> tuple[list[Any], Gatekeeper]:
    gate = Gatekeeper(journal)
    futures = [journal.write_soon(asyncio.get_running_loop(), job) for job in jobs]
    gate.let_go()
    return await asyncio.gather(*futures, return_exceptions=True), gate


async def test_jobs_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    """Any number of waiting writes up to the bound costs one commit, in the order handed in."""
    async with opened(tmp_path / "j.db") as journal:
        order: list[int] = []
        jobs = [lambda conn, n=n: order.append(n) or n for n in range(100)]
        results, gate = await behind_a_gate(journal, jobs)
        assert results == order == list(range(100))
        assert gate.commits() == 1


async def test_a_group_is_bounded(tmp_path: Path) -> None:
    """No more than the bound share a commit, so that the first never waits for all."""
    async with opened(tmp_path / "j.db") as journal:
        jobs = [setting(f"{n:04d}") for n in range(2 * GROUP_MOST + 1)]
        results, gate = await behind_a_gate(journal, jobs)
        assert set(results) == {1}
        assert gate.commits() == 3
        assert len(on_disk(tmp_path / "j.db")) == 2 * GROUP_MOST + 1


async def test_each_loop_of_a_group_is_told_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of several event loops share a commit: a loop that is gone keeps no other from being
    told, and between its callers everybody else on a loop gets a turn."""
    gone, here = asyncio.new_event_loop(), asyncio.get_running_loop()
    told: list[int] = []
    soon = here.call_soon_threadsafe

    def counted(callback: Callable[..., Any], *arguments: Any, **more: Any) -> asyncio.Handle:
        told.append(len(arguments[0]))
        return soon(callback, *arguments, **more)

    async with opened(tmp_path / "j.db") as journal:
        gate = Gatekeeper(journal)
        journal.write_soon(gone, setting("gone"))
        gone.close()
        doing = [
            journal.write_soon(here, setting(f"{n:04d}")) for n in range(2 * DELIVERED_MOST + 1)
        ]
        with monkeypatch.context() as patch:
            patch.setattr(here, "call_soon_threadsafe", counted)
            gate.let_go()
            assert set(await asyncio.gather(*doing)) == {1}
        assert gate.commits() == 1
        assert told == [1, DELIVERED_MOST, DELIVERED_MOST, 1]  # the first of them is the gate's own
        assert len(on_disk(tmp_path / "j.db")) == 2 * DELIVERED_MOST + 2


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("bad", [0, 1, 2])
async def test_a_failing_job_harms_no_other(tmp_path: Path, bad: int, threaded: bool) -> None:
    """One job of a group that fails gets its own error and leaves nothing behind; the others are
    committed once each."""

    def failing(conn: sqlite3.Connection) -> None:
        setting("half")(conn)
        raise InvalidArgument("mine")

    async with opened(tmp_path / "j.db", threaded=threaded) as journal:
        jobs: list[Job] = [setting("a"), setting("b")]
        jobs.insert(bad, failing)
        if threaded:
            results, _ = await behind_a_gate(journal, jobs)
        else:
            results = await asyncio.gather(*map(journal.write, jobs), return_exceptions=True)
        assert isinstance(results.pop(bad), InvalidArgument)
        assert results == [1, 1]
        assert on_disk(tmp_path / "j.db") == ["a", "b"]


async def test_a_sqlite_error_of_a_job_comes_as_ours(tmp_path: Path) -> None:
    """Whatever SQLite raises inside a job leaves the journal as a JournalError with its cause."""
    async with opened(tmp_path / "j.db") as journal:
        await journal.write(setting("a"))
        with pytest.raises(JournalError, match=r"j\.db") as caught:
            await journal.write(setting("a"))
        assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
        with pytest.raises(JournalError):
            await journal.read(lambda conn: conn.execute("SELECT nonsense"))
        assert await journal.read(keys) == ["a"]


async def test_a_returned_write_is_seen_by_the_next_read(tmp_path: Path) -> None:
    """Short reads, reads aside and reads in slices all see what has been acknowledged, and so does
    another process."""
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
async def test_a_cancelled_write_is_entirely_in_or_out(tmp_path: Path, committed: bool) -> None:
    """Cancelling waits for the outcome of the job and then goes on; the journal stays usable."""
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
    """While another process holds the file past the busy timeout, a write is refused as ours and
    stores nothing, reads go on, and after that all is well."""
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
async def test_what_is_no_journal_of_ours_is_refused_untouched(tmp_path: Path, name: str) -> None:
    """Each wrong file gets the error that says what to do, on every call, and keeps its bytes."""
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
    """A directory in the place of the file is a JournalError, and stays as it was."""
    async with opened(tmp_path) as journal:
        with pytest.raises(JournalError, match="cannot be opened"):
            await journal.open()
    assert list(tmp_path.iterdir()) == []


async def test_a_missing_directory_is_refused_until_it_is_there(tmp_path: Path) -> None:
    """No directory is made for the user; once it exists the same journal opens."""
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
    """The journal, its write-ahead log and its index are made with mode 0600, whatever the
    umask; a file that exists keeps its mode."""
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
async def test_durability_is_what_was_asked_for(
    tmp_path: Path, durability: str, level: int
) -> None:
    """The connection that writes is in WAL mode and syncs as the option says."""
    async with opened(tmp_path / "j.db", durability=durability) as journal:
        found = await journal.write(
            lambda conn: [
                conn.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous")
            ]
        )
    assert found == ["wal", level]


async def test_closing_finishes_what_was_handed_in(tmp_path: Path) -> None:
    """Jobs that wait when the journal is closed are committed first; later calls are refused, the
    log is folded in, and closing again does nothing."""
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
    """Making and closing a journal does no I/O at all."""
    journal = Journal(tmp_path / "j.db")
    await journal.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_in_memory_is_one_connection() -> None:
    """In memory every kind of read sees the same data, and nothing outlives the object."""
    async with opened(":memory:") as journal:
        await journal.write(setting("x"))
        assert await journal.read(keys) == await journal.read_aside(keys) == ["x"]
        async with journal.rows(KEYS, ()) as fetch:
            assert await fetch(1) == [("x",)]
            assert await fetch(1) == []
    async with opened(":memory:") as journal:
        await journal.open()
        assert await journal.read(keys) == []


async def test_two_journals_may_make_one_file(tmp_path: Path) -> None:
    """Openings that meet at the first moment of a file agree on one schema and lose nothing."""
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
        (KeyError("full"), JournalCorrupt),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), JournalCorrupt),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), JournalError),
    ],
)
def test_every_error_has_its_place(error: Exception, kind: type) -> None:
    """Errors are split by what the caller can do, name the file and keep their cause. Those of
    Python speak of a cell that holds what none can, but for a text that cannot be written."""
    mapped = journal_error(error, "/some/j.db")
    assert type(mapped) is kind
    assert mapped.__cause__ is error
    assert "/some/j.db" in str(mapped)


def test_other_errors_pass_unchanged() -> None:
    """What is ours already, or speaks of no file at all, is not wrapped."""
    for error in (InvalidArgument("x"), SessionClosed("x"), RuntimeError("x"), MemoryError()):
        assert journal_error(error, "j") is error
