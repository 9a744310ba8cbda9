"""Where sessions are kept if nobody says otherwise."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import platformdirs
import pytest

from cached_session import CachedSession, JournalError, SessionCache
from tests.session.session_support import Child, said, words

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the place and its modes are Linux's"
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user data directory that does not exist yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "deep" / "data"))
    return tmp_path / "deep" / "data"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_default_journal_is_in_the_users_data_directory(data: Path) -> None:
    """It is made with its directory at the first call, and not before."""
    session = CachedSession("s")
    place = Path(platformdirs.user_data_dir("cached_session")) / "sessions.db"
    assert place.is_relative_to(data)
    assert not data.exists()
    await session.add_items(said("a"))
    assert place.is_file()
    assert session.status().journal == str(place)
    await session.close()
    async with SessionCache() as cache:
        assert await cache.sessions() == ["s"]


async def test_without_xdg_it_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``HOME`` decides where ``XDG_DATA_HOME`` does not."""
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with CachedSession("s") as session:
        await session.add_items(said("a"))
    assert (tmp_path / ".local/share/cached_session/sessions.db").is_file()


async def test_a_directory_named_with_a_slash_is_the_same(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How the environment spells the directory does not matter."""
    monkeypatch.setenv("XDG_DATA_HOME", f"{data}//")
    async with CachedSession("s") as session:
        await session.add_items(said("a"))
    assert (data / "cached_session/sessions.db").is_file()


async def test_nobody_else_may_read_it(data: Path) -> None:
    """The directory, the file and what SQLite puts beside it are the owner's only."""
    before = os.umask(0)
    try:
        async with CachedSession("s") as session:
            await session.add_items(said("secret"))
            directory = data / "cached_session"
            assert mode(directory) == 0o700
            files = sorted(path.name for path in directory.iterdir())
            assert files == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
            assert {mode(directory / name) for name in files} == {0o600}
    finally:
        os.umask(before)


async def test_a_journal_elsewhere_is_private_as_well(journal: Path) -> None:
    """Also a file that its owner placed, and the target of a link that led nowhere yet."""
    before = os.umask(0)
    try:
        link = journal.with_name("link.db")
        link.symlink_to(journal.with_name("target.db"))
        for path in (journal, link):
            async with CachedSession("s", journal=path) as session:
                await session.add_items(said("secret"))
                assert mode(path) == 0o600
    finally:
        os.umask(before)


async def test_a_file_that_was_there_keeps_its_mode(journal: Path) -> None:
    """Whoever shares a journal on purpose may go on doing so."""
    journal.touch()
    journal.chmod(0o640)
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a"))
    assert mode(journal) == 0o640


async def test_a_default_place_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the directory should be: the error names the path and the way out."""
    (tmp_path / "taken").write_text("x")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "taken"))
    session = CachedSession("s")
    with pytest.raises(JournalError, match=r"taken/cached_session/sessions\.db.*another path"):
        await session.get_items()
    await session.close()


async def test_processes_share_the_default_place(data: Path) -> None:
    """A child of the same user finds the same history."""
    async with CachedSession("s") as session:
        await session.add_items(said("a"))
        code = """
        async def main():
            async with CachedSession("s") as session:
                tell(*words(await session.get_items()))
                await session.add_items(said("b"))
        asyncio.run(main())
        """
        with Child(code, env={"XDG_DATA_HOME": str(data)}) as child:
            assert child.end() == [["a"]]
        assert words(await session.get_items()) == ["a", "b"]
