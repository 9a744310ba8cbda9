"""Title, metadata and lists of sessions, and paging through entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, InvalidArgument, SessionCache, SessionInfo
from cached_session.devserver import DevServer
from tests.session.session_support import contents, messages


async def test_title_and_metadata_are_stored(tmp_path: Path) -> None:
    """Each call changes only what it names. None removes a value, and a clear removes none."""
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        assert await session.info() == SessionInfo("s")
        await session.update_info(title="A trip", color="red", places=["Rome", {"n": 1}])
        await session.update_info(color="blue")
        await session.add_items(messages("hello"))
        await session.clear_session()
        info = await session.info()
        assert (info.title, info.metadata) == (
            "A trip",
            {"color": "blue", "places": ["Rome", {"n": 1}]},
        )
        await session.update_info(title=None, places=None)
        info = await session.info()
        assert (info.title, info.metadata) == (None, {"color": "blue"})
        await session.update_info()
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        assert (await session.info()).metadata == {"color": "blue"}


async def test_title_and_metadata_reach_other_devices(tmp_path: Path) -> None:
    """The last change counts on each device."""
    with DevServer() as server:
        one = CachedSession.from_url("s", url=server.url, journal=tmp_path / "one.db")
        two = CachedSession.from_url("s", url=server.url, journal=tmp_path / "two.db")
        await one.update_info(title="first", color="red")
        await one.sync(20)
        await two.sync(20)
        assert (await two.info()).title == "first"
        await two.update_info(title="second")
        await two.sync(20)
        await one.sync(20)
        for session in (one, two):
            info = await session.info()
            assert (info.title, info.metadata, info.sync_state) == (
                "second",
                {"color": "red"},
                "synced",
            )
            await session.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": 7},
        {"title": ["a"]},
        {"color": {1, 2}},
        {"color": float("nan")},
        {"x" * 300: 1},
        {"color": "x" * (1 << 20)},
        {"good": 1, "bad": object()},
    ],
    ids=["number", "list", "set", "nan", "long name", "megabyte", "one of two"],
)
async def test_what_cannot_be_stored_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Nothing of the call is stored."""
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        await session.update_info(title="kept")
        with pytest.raises(InvalidArgument):
            await session.update_info(**wrong)
        info = await session.info()
        assert (info.title, dict(info.metadata)) == ("kept", {})


async def test_sessions_are_listed_with_what_they_are(tmp_path: Path) -> None:
    """The latest active session is first. A session that was only read is not listed, and a prefix
    has its own list."""
    async with (
        SessionCache(tmp_path / "a.db") as cache,
        SessionCache(tmp_path / "a.db", key_prefix="shop") as shop,
    ):
        await cache.session("mistyped").get_items()
        for name in ("one", "two", "three"):
            await cache.session(name).add_items(messages(f"{name} a", f"{name} b"))
        await cache.session("one").add_items(messages("later"))
        await cache.session("two").update_info(title="The second", pinned=True)
        await cache.session("described").update_info(title="empty")
        await shop.session("one").add_items(messages("of the shop"))
        found = await cache.sessions()
        assert found[0].session_id == "one"
        assert {info.session_id: (info.items, info.title) for info in found} == {
            "one": (3, None),
            "two": (2, "The second"),
            "three": (2, None),
            "described": (0, "empty"),
        }
        assert {info.sync_state for info in found} == {"pending"}
        last = [info.last_activity for info in found]
        assert last[-1] is None
        (only,) = await shop.sessions()
        assert (only.session_id, only.key_prefix, only.items) == ("one", "shop", 1)


@pytest.mark.promise(number=10)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_pages_backwards_are_the_whole_history(tmp_path: Path, size: int) -> None:
    """Each page ends before the entry that it is given, also inside a batch, and the ranks are
    those of the whole list."""
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        for number in range(6):
            await session.add_items(messages(*(f"{number}.{at}" for at in range(number))))
        await session.replace_items([(await session.entries())[4]])
        whole = await session.entries()
        pages, before = [], None
        while page := await session.entries(size, before):
            pages.append(page)
            before = page[0]
        assert [entry for page in reversed(pages) for entry in page] == whole
        assert all(len(page) == size for page in pages[:-1])
        assert await session.entries(before=whole[0]) == []
        assert await session.entries(0, before=whole[3]) == []


async def test_a_removed_entry_is_still_a_place(tmp_path: Path) -> None:
    """Paging goes on from it. What is no entry is refused."""
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        await session.add_items(messages("a", "b", "c"))
        _, second, _ = await session.entries()
        await session.replace_items([second])
        assert contents([entry.item for entry in await session.entries(5, second)]) == ["a"]
        with pytest.raises(InvalidArgument):
            await session.entries(5, before=3)  # type: ignore[arg-type]
