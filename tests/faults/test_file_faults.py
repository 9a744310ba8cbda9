"""External changes to the files of a journal, on the real file system."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cached_session import CachedSession, JournalCorrupt, JournalError, JournalFull, diagnose
from tests.faults.children import journal_of_killed_process
from tests.faults.workload import text_message, words

NOBODY = 65534


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Skip a test about file modes for root, to whom modes do not apply."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def checked_directory() -> Iterator[Path]:
    """Return a directory in which file modes are enforced."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


async def add_with_retries(session: CachedSession, word: str) -> list[JournalError]:
    """Add an item, with as many retries as damage may need, and return the errors of the failed
    attempts."""
    errors: list[JournalError] = []
    for _ in range(4):
        try:
            await session.add_items(text_message(word))
        except JournalError as error:
            errors.append(error)
        else:
            return errors
    raise AssertionError(f"it never went on: {errors}")


async def texts_after_recovery(session: CachedSession) -> list[str]:
    """Return the texts of a session whose first read may detect damage."""
    try:
        return await words(session)
    except JournalCorrupt:
        return await words(session)


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as conn:
        return bool(conn.execute("PRAGMA integrity_check").fetchone() == ("ok",))


# -- read-only files ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the file", "the directory", "both"])
async def test_a_read_only_journal_raises_until_it_is_writable(
    checked_directory: Path, what: str
) -> None:
    """Each write to a read-only journal raises JournalError, and the same session works once the
    mode is corrected."""
    journal = checked_directory / "agent.db"
    with unprivileged():
        async with CachedSession("s", journal=journal) as session:
            await session.add_items(text_message("a"))
        file, directory = what != "the directory", what != "the file"
        journal.chmod(0o444 if file else 0o600)
        checked_directory.chmod(0o555 if directory else 0o700)
        session = CachedSession("s", journal=journal)
        try:
            for _ in range(2):
                with pytest.raises(JournalError, match=r"read-only|cannot be opened"):
                    await session.add_items(text_message("refused"))
        finally:
            checked_directory.chmod(0o700)
            journal.chmod(0o600)
        await session.add_items(text_message("b"))
        assert await words(session) == ["a", "b"]
        await session.close()
        assert is_sound(journal)


async def test_mode_changes_under_an_open_session_lose_nothing(checked_directory: Path) -> None:
    """Acknowledged items are readable again as soon as the modes allow it."""
    journal = checked_directory / "agent.db"
    state = ["a"]
    with unprivileged():
        session = CachedSession("s", journal=journal)
        await session.add_items(text_message("a"))
        journal.chmod(0o444)
        checked_directory.chmod(0o555)
        try:
            for word in "bc":
                try:
                    await session.add_items(text_message(word))
                except JournalError:
                    continue
                state.append(word)
            await session.close()
        finally:
            checked_directory.chmod(0o700)
            journal.chmod(0o600)
        async with CachedSession("s", journal=journal) as again:
            assert await words(again) == state
            await again.add_items(text_message("d"))
            assert await words(again) == [*state, "d"]


# -- full disks --------------------------------------------------------------------------------


async def test_a_file_size_limit_raises_and_loses_nothing(journal: Path) -> None:
    """A write beyond the system's file size limit stores nothing, and writes work again under a
    higher limit."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            with pytest.raises(JournalError):
                await session.add_items(text_message("x" * 3_000_000))
            assert await words(session) == ["a"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await session.add_items(text_message("b"))
        assert await words(session) == ["a", "b"]
    assert is_sound(journal)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of one MiB for at most ten files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=11", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here ({mounted.stderr.strip()}); see test_nth_file")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


async def test_a_full_disk_raises_and_works_again_with_space(small_disk: Path) -> None:
    """On a full file system of one MiB writes raise JournalFull, reads work, and the same session
    writes again once a file is deleted."""
    journal, ballast = small_disk / "agent.db", small_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    state: list[str] = []
    async with CachedSession("s", journal=journal) as session:

        async def fill() -> None:
            for number in range(1000):
                word = f"{number} {'x' * 5000}"
                await session.add_items(text_message(word))
                state.append(word)

        with pytest.raises(JournalFull, match="free some space"):
            await fill()
        assert len(state) > 5
        with pytest.raises(JournalFull):
            await session.add_items(text_message("x" * 100_000))
        assert await words(session) == state
        ballast.unlink()
        await session.add_items(text_message("b"))
        assert await words(session) == [*state, "b"]
    assert is_sound(journal)
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == [*state, "b"]


@pytest.mark.parametrize("free", [0, 4096, 16_384, 32_768, 40_960, "no name"])
async def test_a_disk_without_space_for_the_log_raises_journal_full(
    small_disk: Path, free: int | str
) -> None:
    """A call raises JournalFull when SQLite cannot create its log and does not report why. The same
    session works again once there is space."""
    journal, ballast = small_disk / "agent.db", small_disk / "ballast"
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    others = [ballast]
    if isinstance(free, str):
        others = [small_disk / f"{number}" for number in range(9)]
        for other in others:
            other.touch()
    else:
        disk = os.statvfs(small_disk)
        ballast.write_bytes(b"x" * (disk.f_bavail * disk.f_frsize - free))
    session = CachedSession("s", journal=journal)
    kept = []
    for number in range(20):
        try:
            await session.add_items(text_message(f"{number}"))
        except JournalError as error:
            assert type(error) is JournalFull  # noqa: PT017 - each of them
            wanted = "delete some files" if free == "no name" else "free some space"
            assert wanted in str(error)  # noqa: PT017
            continue
        kept.append(f"{number}")
    assert len(kept) < 20
    for other in others:
        other.unlink()
    await session.add_items(text_message("b"))
    assert await words(session) == ["a", *kept, "b"]
    await session.close()
    assert is_sound(journal)


async def test_a_full_disk_is_not_reported_as_damage(small_disk: Path) -> None:
    """Doctor advises to free space, and not to repair the file."""
    journal, ballast = small_disk / "agent.db", small_disk / "ballast"
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    disk = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (disk.f_bavail * disk.f_frsize))
    found = {finding.check: finding for finding in await diagnose(journal)}
    assert "is full" in found["journal"].message
    assert "free some space" in found["journal"].advice
    assert found["disk"].level == "fail"


# -- truncated files ---------------------------------------------------------------------------


async def test_a_truncated_file_keeps_what_is_left(journal: Path) -> None:
    """After a closed journal was truncated, calls work after at most two errors, show a subset of
    the old items in the old order, and keep the truncated file."""
    state = [f"{number} {'x' * 500}" for number in range(40)]
    async with CachedSession("s", journal=journal) as session:
        for word in state:
            await session.add_items(text_message(word))
    whole = journal.read_bytes()
    cuts = [1, 50, 99, 100, 511, 512, 4095, *range(4096, len(whole), 4096 * 2 + 1000)]
    kept = 0
    for cut in cuts:
        torn = journal.with_name(f"{cut}.db")
        torn.write_bytes(whole[:cut])
        async with CachedSession("s", journal=torn) as session:
            await add_with_retries(session, "on")
            found = await texts_after_recovery(session)
            assert found[-1] == "on"
            assert found[:-1] == [word for word in state if word in found], cut
            kept += len(found) - 1
            if cut < 512:
                # SQLite takes so short a file for an empty one.
                continue
            asides = [one for one in torn.parent.glob(f"{cut}.db.damaged-*") if one.suffix != ""]
            files = {one for one in asides if not one.name.endswith(("-wal", "-shm"))}
            # SQLite fills a last page that was cut with zeros. If these are in a payload only, one
            # item is left out, and the file is used further.
            was_in_payload = len(whole) - cut < 500 and len(state) - (len(found) - 1) == 1
            assert len(files) == (0 if was_in_payload else 1), cut
        assert is_sound(torn)
    assert kept > 10


async def test_a_file_truncated_under_a_session_is_recovered(journal: Path) -> None:
    """Calls raise only JournalErrors until the damage is recovered, and later writes are kept."""
    async with CachedSession("s", journal=journal) as session:
        for number in range(40):
            await session.add_items(text_message(f"{number} {'x' * 500}"))
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("in the log"))
        os.truncate(journal, 4096 * 5)
        for word in "ab":
            await add_with_retries(session, word)
        assert (await texts_after_recovery(session))[-2:] == ["a", "b"]
        assert session.status().salvaged is not None
    async with CachedSession("s", journal=journal) as session:
        assert (await words(session))[-2:] == ["a", "b"]
    assert is_sound(journal)


# -- log files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["as it was", "gone", "garbage", "empty", "zeros"])
async def test_a_log_left_by_a_killed_process_is_read(journal: Path, index: str) -> None:
    """The items in the log of a killed process are there, whatever state the index of the log is
    in."""
    journal_of_killed_process(journal, "a", "b", "c")
    log, shm = Path(f"{journal}-wal"), Path(f"{journal}-shm")
    assert log.stat().st_size > 0
    if index == "gone":
        shm.unlink()
    elif index != "as it was":
        size = shm.stat().st_size
        shm.write_bytes({"garbage": b"\xa5" * size, "empty": b"", "zeros": bytes(size)}[index])
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == ["a", "b", "c"]
        await session.add_items(text_message("d"))
        assert await words(session) == ["a", "b", "c", "d"]
    assert is_sound(journal)


async def test_a_log_of_another_file_is_recovered_from(journal: Path) -> None:
    """SQLite selects a log by its name. When the log belongs to another file, the result is shown
    or recovered, and calls work."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(text_message("a"))
    other = journal.with_name("other.db")
    journal_of_killed_process(other, *(f"theirs {number}" for number in range(5)))
    shutil.copyfile(f"{other}-wal", f"{journal}-wal")
    async with CachedSession("s", journal=journal) as session:
        await add_with_retries(session, "on")
        assert (await words(session))[-1] == "on"
    assert is_sound(journal)
    async with CachedSession("s", journal=journal) as session:
        assert (await words(session))[-1] == "on"
