"""`replace_items`: it removes named items and adds others in one transaction that merges."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached_session import CachedSession, InvalidArgument, SyncOptions
from cached_session.devserver import DevServer
from tests.session.session_support import contents, messages


async def test_named_items_are_removed_and_new_ones_appended(place: str) -> None:
    """Any item can be named, also one inside a batch, and the others keep their order."""
    async with CachedSession("a", journal=place) as session:
        await session.add_items(messages("one", "two", "three"))
        await session.add_items(messages("four"))
        await session.get_items()  # a tail is warm
        entries = await session.entries()
        await session.replace_items([entries[1], entries[3]], messages("five", "six"))
        assert contents(await session.get_items()) == ["one", "three", "five", "six"]
        assert [entry.rank for entry in await session.entries()] == [0, 1, 2, 3]
        assert contents(await session.get_items(2)) == ["five", "six"]


async def test_removing_alone_appends_nothing(place: str) -> None:
    """Without new items the named ones are removed, and those already gone are ignored."""
    async with CachedSession("a", journal=place) as session:
        await session.add_items(messages("one", "two"))
        first, second = await session.entries()
        await session.replace_items([first])
        await session.replace_items([first])
        assert contents(await session.get_items()) == ["two"]
        assert session.status().pending == 2
        await session.replace_items([first, second])
        assert await session.get_items() == []


async def test_without_entries_items_are_appended(place: str) -> None:
    """Without entries it is an append, and without entries and items it does nothing."""
    async with CachedSession("a", journal=place) as session:
        await session.replace_items([], messages("one"))
        await session.replace_items([], [])
        assert contents(await session.get_items()) == ["one"]
        assert session.status().pending == 1


async def test_a_refused_batch_removes_nothing(place: str) -> None:
    """An item that JSON cannot represent or an invalid entry leaves everything unchanged."""
    async with CachedSession("a", journal=place) as session:
        await session.add_items(messages("one"))
        entries = await session.entries()
        with pytest.raises(InvalidArgument):
            await session.replace_items(entries, [{"role": "user", "content": object()}])  # type: ignore[list-item]
        with pytest.raises(InvalidArgument, match="is not an Entry"):
            await session.replace_items(await session.get_items(), messages("two"))  # type: ignore[arg-type]
        assert contents(await session.get_items()) == ["one"]


async def test_a_full_outbox_refuses_all_of_it(server: DevServer, journal: Path) -> None:
    """A batch above the quota is refused, and nothing is removed."""
    options = SyncOptions(max_pending_items=2, when_full="reject")
    server.stop()
    async with CachedSession.from_url(
        "a", url=server.url, journal=journal, options=options
    ) as session:
        await session.add_items(messages("one", "two"))
        with pytest.raises(Exception, match="too much is unsent"):
            await session.replace_items(await session.entries(), messages("three"))
        assert contents(await session.get_items()) == ["one", "two"]


async def test_two_devices_replace_apart_and_agree(server: DevServer, tmp_path: Path) -> None:
    """Both remove the same item and another: each item is removed once, and all new items stay."""
    async with (
        CachedSession.from_url("a", url=server.url, journal=tmp_path / "one.db") as phone,
        CachedSession.from_url("a", url=server.url, journal=tmp_path / "two.db") as laptop,
    ):
        await phone.add_items(messages("one", "two", "three"))
        await phone.flush(timeout=30)
        await laptop.sync(timeout=30)
        server.stop()
        on_phone, on_laptop = await phone.entries(), await laptop.entries()
        await phone.replace_items([on_phone[0], on_phone[1]], messages("phone"))
        await laptop.replace_items([on_laptop[1], on_laptop[2]], messages("laptop"))
        server.start()
        for device in (phone, laptop, phone):
            await device.sync(timeout=30)
        here = contents(await phone.get_items())
        assert sorted(here) == ["laptop", "phone"]
        assert here == contents(await laptop.get_items())
        assert phone.status().pending == laptop.status().pending == 0
