"""What befalls the files of a journal from outside, with the real file system."""

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
from tests.faults.children import left_by_a_killed
from tests.faults.workload import said, words

NOBODY = 65534


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@contextmanager
def unprivileged() -> Iterator[None]:
    """Modes mean nothing to root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in which modes count."""
    with tempfile.TemporaryDirectory() as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


async def tried(session: CachedSession, word: str) -> list[JournalError]:
    """Add a word, trying again as often as damage may take; the errors on the way."""
    errors: list[JournalError] = []
    for _ in range(4):
        try:
            await session.add_items(said(word))
        except JournalError as error:
            errors.append(error)
        else:
            return errors
    raise AssertionError(f"it never went on: {errors}")


async def shown(session: CachedSession) -> list[str]:
    """The words of a session whose damage a first look may have to meet."""
    try:
        return await words(session)
    except JournalCorrupt:
        return await words(session)


def is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as conn:
        return bool(conn.execute("PRAGMA integrity_check").fetchone() == ("ok",))


# -- not to be written to --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["the file", "the directory", "both"])
async def test_a_read_only_journal_says_so_and_goes_on_when_it_is_not(
    place: Path, what: str
) -> None:
    """Found on opening: each write is a JournalError; once the mode is right the same session goes
    on."""
    journal = place / "agent.db"
    with unprivileged():
        async with CachedSession("s", journal=journal) as session:
            await session.add_items(said("a"))
        file, directory = what != "the directory", what != "the file"
        journal.chmod(0o444 if file else 0o600)
        place.chmod(0o555 if directory else 0o700)
        session = CachedSession("s", journal=journal)
        try:
            for _ in range(2):
                with pytest.raises(JournalError, match=r"read-only|cannot be opened"):
                    await session.add_items(said("refused"))
        finally:
            place.chmod(0o700)
            journal.chmod(0o600)
        await session.add_items(said("b"))
        assert await words(session) == ["a", "b"]
        await session.close()
        assert is_sound(journal)


async def test_modes_that_change_under_a_session_lose_nothing(place: Path) -> None:
    """Whatever is allowed any more: what was acknowledged is there when it is allowed again."""
    journal = place / "agent.db"
    state = ["a"]
    with unprivileged():
        session = CachedSession("s", journal=journal)
        await session.add_items(said("a"))
        journal.chmod(0o444)
        place.chmod(0o555)
        try:
            for word in "bc":
                try:
                    await session.add_items(said(word))
                except JournalError:
                    continue
                state.append(word)
            await session.close()
        finally:
            place.chmod(0o700)
            journal.chmod(0o600)
        async with CachedSession("s", journal=journal) as again:
            assert await words(again) == state
            await again.add_items(said("d"))
            assert await words(again) == [*state, "d"]


# -- no room ---------------------------------------------------------------------------------------


async def test_a_limit_on_file_sizes_is_an_error_and_no_loss(journal: Path) -> None:
    """What the system refuses to write is not stored; with a higher limit it goes on."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a"))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            with pytest.raises(JournalError):
                await session.add_items(said("x" * 3_000_000))
            assert await words(session) == ["a"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await session.add_items(said("b"))
        assert await words(session) == ["a", "b"]
    assert is_sound(journal)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a mebibyte, with room for ten files."""
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


async def test_a_disk_that_is_full_says_so_and_goes_on_with_room(small_disk: Path) -> None:
    """A real one of a mebibyte: JournalFull, what was acknowledged can be read meanwhile, and with
    a file less the same session takes more."""
    journal, ballast = small_disk / "agent.db", small_disk / "ballast"
    ballast.write_bytes(b"x" * 300_000)
    state: list[str] = []
    async with CachedSession("s", journal=journal) as session:

        async def fill() -> None:
            for number in range(1000):
                word = f"{number} {'x' * 5000}"
                await session.add_items(said(word))
                state.append(word)

        with pytest.raises(JournalFull, match="free some space"):
            await fill()
        assert len(state) > 5
        with pytest.raises(JournalFull):
            await session.add_items(said("x" * 100_000))
        assert await words(session) == state
        ballast.unlink()
        await session.add_items(said("b"))
        assert await words(session) == [*state, "b"]
    assert is_sound(journal)
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == [*state, "b"]


@pytest.mark.parametrize("free", [0, 4096, 16_384, 32_768, 40_960, "no name"])
async def test_no_room_for_the_log_is_a_full_disk_too(small_disk: Path, free: int | str) -> None:
    """Where SQLite cannot even make what it keeps beside the file, and does not say why, the call
    does: JournalFull; with room the same session goes on."""
    journal, ballast = small_disk / "agent.db", small_disk / "ballast"
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a"))
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
            await session.add_items(said(f"{number}"))
        except JournalError as error:
            assert type(error) is JournalFull  # noqa: PT017 - each of them
            wanted = "delete some files" if free == "no name" else "free some space"
            assert wanted in str(error)  # noqa: PT017
            continue
        kept.append(f"{number}")
    assert len(kept) < 20
    for other in others:
        other.unlink()
    await session.add_items(said("b"))
    assert await words(session) == ["a", *kept, "b"]
    await session.close()
    assert is_sound(journal)


async def test_a_full_disk_is_not_called_damage(small_disk: Path) -> None:
    """Whoever looks closer is told to free some space, and not to have the file mended."""
    journal, ballast = small_disk / "agent.db", small_disk / "ballast"
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a"))
    disk = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (disk.f_bavail * disk.f_frsize))
    found = {finding.check: finding for finding in await diagnose(journal)}
    assert "is full" in found["journal"].message
    assert "free some space" in found["journal"].advice
    assert found["disk"].level == "fail"


# -- cut short -------------------------------------------------------------------------------------


async def test_a_file_cut_anywhere_goes_on_with_what_is_left(journal: Path) -> None:
    """A closed journal, truncated: whatever is left, calls go on after an error or two, what they
    show was there before and in that order, and the cut file is kept."""
    state = [f"{number} {'x' * 500}" for number in range(40)]
    async with CachedSession("s", journal=journal) as session:
        for word in state:
            await session.add_items(said(word))
    whole = journal.read_bytes()
    cuts = [1, 50, 99, 100, 511, 512, 4095, *range(4096, len(whole), 4096 * 2 + 1000)]
    kept = 0
    for cut in cuts:
        torn = journal.with_name(f"{cut}.db")
        torn.write_bytes(whole[:cut])
        async with CachedSession("s", journal=torn) as session:
            await tried(session, "on")
            found = await shown(session)
            assert found[-1] == "on"
            assert found[:-1] == [word for word in state if word in found], cut
            kept += len(found) - 1
            if cut < 512:
                # SQLite takes so short a file for an empty one.
                continue
            asides = [one for one in torn.parent.glob(f"{cut}.db.damaged-*") if one.suffix != ""]
            assert len({one for one in asides if not one.name.endswith(("-wal", "-shm"))}) == 1
        assert is_sound(torn)
    assert kept > 10


async def test_a_file_cut_under_a_session_goes_on(journal: Path) -> None:
    """Errors are JournalErrors until the damage is mended; what is written then stays."""
    async with CachedSession("s", journal=journal) as session:
        for number in range(40):
            await session.add_items(said(f"{number} {'x' * 500}"))
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("in the log"))
        os.truncate(journal, 4096 * 5)
        for word in "ab":
            await tried(session, word)
        assert (await shown(session))[-2:] == ["a", "b"]
        assert session.status().salvaged is not None
    async with CachedSession("s", journal=journal) as session:
        assert (await words(session))[-2:] == ["a", "b"]
    assert is_sound(journal)


# -- logs of others --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["as it was", "gone", "garbage", "empty", "zeros"])
async def test_a_log_left_by_a_killed_process_is_read(journal: Path, index: str) -> None:
    """Its words are there, whatever has become of the index beside the log."""
    left_by_a_killed(journal, "a", "b", "c")
    log, shm = Path(f"{journal}-wal"), Path(f"{journal}-shm")
    assert log.stat().st_size > 0
    if index == "gone":
        shm.unlink()
    elif index != "as it was":
        size = shm.stat().st_size
        shm.write_bytes({"garbage": b"\xa5" * size, "empty": b"", "zeros": bytes(size)}[index])
    async with CachedSession("s", journal=journal) as session:
        assert await words(session) == ["a", "b", "c"]
        await session.add_items(said("d"))
        assert await words(session) == ["a", "b", "c", "d"]
    assert is_sound(journal)


async def test_a_log_of_another_file_is_survived(journal: Path) -> None:
    """SQLite takes a log by its name: what a wrong one makes of the file is shown or mended, and
    calls go on."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a"))
    other = journal.with_name("other.db")
    left_by_a_killed(other, *(f"theirs {number}" for number in range(5)))
    shutil.copyfile(f"{other}-wal", f"{journal}-wal")
    async with CachedSession("s", journal=journal) as session:
        await tried(session, "on")
        assert (await words(session))[-1] == "on"
    assert is_sound(journal)
    async with CachedSession("s", journal=journal) as session:
        assert (await words(session))[-1] == "on"
