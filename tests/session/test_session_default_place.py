"""The default place of journals."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import platformdirs
import pytest

from cached_session import CachedSession, JournalError, SessionCache
from tests.session.session_support import Child, contents, messages

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the place and its modes are Linux's"
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a user data directory that does not exist yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "deep" / "data"))
    return tmp_path / "deep" / "data"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_the_default_journal_is_in_the_users_data_directory(data: Path) -> None:
    """The first call makes the file and its directory, and the constructor does not."""
    session = CachedSession("s")
    place = Path(platformdirs.user_data_dir("cached_session")) / "sessions.db"
    assert place.is_relative_to(data)
    assert not data.exists()
    await session.add_items(messages("a"))
    assert place.is_file()
    assert session.status().journal == str(place)
    await session.close()
    async with SessionCache() as cache:
        assert [info.session_id for info in await cache.sessions()] == ["s"]


async def test_without_xdg_it_is_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HOME` decides where `XDG_DATA_HOME` is not set."""
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with CachedSession("s") as session:
        await session.add_items(messages("a"))
    assert (tmp_path / ".local/share/cached_session/sessions.db").is_file()


async def test_a_directory_named_with_a_slash_is_the_same(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spelling of the directory in the environment does not matter."""
    monkeypatch.setenv("XDG_DATA_HOME", f"{data}//")
    async with CachedSession("s") as session:
        await session.add_items(messages("a"))
    assert (data / "cached_session/sessions.db").is_file()


async def test_other_users_cannot_read_it(data: Path) -> None:
    """The directory, the file and SQLite's files beside it are private to the owner."""
    before = os.umask(0)
    try:
        async with CachedSession("s") as session:
            await session.add_items(messages("secret"))
            directory = data / "cached_session"
            assert mode(directory) == 0o700
            files = sorted(path.name for path in directory.iterdir())
            assert files == ["sessions.db", "sessions.db-shm", "sessions.db-wal"]
            assert {mode(directory / name) for name in files} == {0o600}
    finally:
        os.umask(before)


async def test_a_journal_elsewhere_is_private_as_well(journal: Path) -> None:
    """A file at a path that the owner chose is private too, and so is the target of a dangling
    link."""
    before = os.umask(0)
    try:
        link = journal.with_name("link.db")
        link.symlink_to(journal.with_name("target.db"))
        for path in (journal, link):
            async with CachedSession("s", journal=path) as session:
                await session.add_items(messages("secret"))
                assert mode(path) == 0o600
    finally:
        os.umask(before)


async def test_an_existing_file_keeps_its_mode(journal: Path) -> None:
    """A user who shares a journal on purpose can go on sharing it."""
    journal.touch()
    journal.chmod(0o640)
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages("a"))
    assert mode(journal) == 0o640


async def test_a_default_place_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file is in the directory's place, the error names the path and the remedy."""
    (tmp_path / "taken").write_text("x")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "taken"))
    session = CachedSession("s")
    with pytest.raises(JournalError, match=r"taken/cached_session/sessions\.db.*another path"):
        await session.get_items()
    await session.close()


async def test_processes_share_the_default_place(data: Path) -> None:
    """A child process of the same user finds the same history."""
    async with CachedSession("s") as session:
        await session.add_items(messages("a"))
        code = """
        async def main():
            async with CachedSession("s") as session:
                report(*contents(await session.get_items()))
                await session.add_items(messages("b"))
        asyncio.run(main())
        """
        with Child(code, env={"XDG_DATA_HOME": str(data)}) as child:
            assert child.end() == [["a"]]
        assert contents(await session.get_items()) == ["a", "b"]
