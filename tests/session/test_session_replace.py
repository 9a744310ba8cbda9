"""`replace_items`: named items go, others come, in one transaction, and it merges."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached_session import CachedSession, InvalidArgument, SyncOptions
from cached_session.devserver import DevServer
from tests.session.session_support import said, words


async def test_named_items_go_and_new_ones_stand_at_the_end(place: str) -> None:
    """Any item can be named, also one of a batch; the rest stays in its order."""
    async with CachedSession("a", journal=place) as session:
        await session.add_items(said("one", "two", "three"))
        await session.add_items(said("four"))
        await session.get_items()  # a tail is warm
        entries = await session.entries()
        await session.replace_items([entries[1], entries[3]], said("five", "six"))
        assert words(await session.get_items()) == ["one", "three", "five", "six"]
        assert [entry.rank for entry in await session.entries()] == [0, 1, 2, 3]
        assert words(await session.get_items(2)) == ["five", "six"]


async def test_removing_alone_appends_nothing(place: str) -> None:
    """Without items, the named ones go; what is gone already is passed over."""
    async with CachedSession("a", journal=place) as session:
        await session.add_items(said("one", "two"))
        first, second = await session.entries()
        await session.replace_items([first])
        await session.replace_items([first])
        assert words(await session.get_items()) == ["two"]
        assert session.status().pending == 2
        await session.replace_items([first, second])
        assert await session.get_items() == []


async def test_naming_nothing_is_adding(place: str) -> None:
    """No entries: an append; neither entries nor items: nothing at all."""
    async with CachedSession("a", journal=place) as session:
        await session.replace_items([], said("one"))
        await session.replace_items([], [])
        assert words(await session.get_items()) == ["one"]
        assert session.status().pending == 1


async def test_a_refused_batch_removes_nothing(place: str) -> None:
    """What JSON cannot carry, or what is no entry, leaves everything as it was."""
    async with CachedSession("a", journal=place) as session:
        await session.add_items(said("one"))
        entries = await session.entries()
        with pytest.raises(InvalidArgument):
            await session.replace_items(entries, [{"role": "user", "content": object()}])  # type: ignore[list-item]
        with pytest.raises(InvalidArgument, match="is no Entry"):
            await session.replace_items(await session.get_items(), said("two"))  # type: ignore[arg-type]
        assert words(await session.get_items()) == ["one"]


async def test_a_full_outbox_refuses_all_of_it(server: DevServer, journal: Path) -> None:
    """Limits hold for it too: the batch finds no room, and nothing was removed."""
    options = SyncOptions(max_pending_items=2, when_full="reject")
    server.stop()
    async with CachedSession.from_url(
        "a", url=server.url, journal=journal, options=options
    ) as session:
        await session.add_items(said("one", "two"))
        with pytest.raises(Exception, match="finds no room"):
            await session.replace_items(await session.entries(), said("three"))
        assert words(await session.get_items()) == ["one", "two"]


async def test_two_devices_replace_apart_and_agree(server: DevServer, tmp_path: Path) -> None:
    """Both remove the same item and one more; each item is gone once, what was added stays."""
    async with (
        CachedSession.from_url("a", url=server.url, journal=tmp_path / "one.db") as phone,
        CachedSession.from_url("a", url=server.url, journal=tmp_path / "two.db") as laptop,
    ):
        await phone.add_items(said("one", "two", "three"))
        await phone.flush(timeout=30)
        await laptop.sync(timeout=30)
        server.stop()
        on_phone, on_laptop = await phone.entries(), await laptop.entries()
        await phone.replace_items([on_phone[0], on_phone[1]], said("phone"))
        await laptop.replace_items([on_laptop[1], on_laptop[2]], said("laptop"))
        server.start()
        for device in (phone, laptop, phone):
            await device.sync(timeout=30)
        here = words(await phone.get_items())
        assert sorted(here) == ["laptop", "phone"]
        assert here == words(await laptop.get_items())
        assert phone.status().pending == laptop.status().pending == 0
