from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, InvalidArgument, JournalFull, SyncOptions
from cached_session.devserver import DevServer
from cached_session.journal.tables import outbox
from tests.session.session_support import Child, said, words

pytestmark = pytest.mark.promise(number=10)

NOBODY = "http://127.0.0.1:1"
"""Where no server listens."""


def limited(journal: Path | str, url: str = NOBODY, **options: Any) -> CachedSession:
    """A session with limits, over a server that takes nothing unless another is named."""
    return CachedSession.from_url(
        "limits",
        url=url,
        journal=journal,
        hydrate=False,
        options=SyncOptions(close_timeout=0.1, **{"when_full": "reject", **options}),
    )


async def test_more_than_the_limit_is_refused_whole(place: str) -> None:
    """At `max_pending_items` a batch is refused with nothing of it stored; what fits goes on."""
    async with limited(place, max_pending_items=4) as session:
        await session.add_items(said(1, 2, 3))
        with pytest.raises(JournalFull, match="max_pending_items=4"):
            await session.add_items(said(4, 5))
        assert words(await session.get_items()) == ["1", "2", "3"]
        await session.add_items(said(4))
        assert words(await session.get_items()) == ["1", "2", "3", "4"]
        assert session.status().items == 4


async def test_removing_unsent_items_makes_room(place: str) -> None:
    """Pops and clears are never refused, and what they removed unsent takes no room any more."""
    async with limited(place, max_pending_items=2) as session:
        await session.add_items(said(1, 2))
        assert await session.pop_item() == said(2)[0]
        await session.add_items(said(3))
        with pytest.raises(JournalFull):
            await session.add_items(said(4))
        await session.clear_session()
        await session.add_items(said(5, 6))
        assert words(await session.get_items()) == ["5", "6"]


async def test_bytes_are_limited_too(place: str) -> None:
    """`max_pending_bytes` counts payloads as UTF-8: a three-byte letter weighs three."""
    async with limited(place, max_pending_bytes=1000) as session:
        await session.add_items(said("x" * 500))
        with pytest.raises(JournalFull, match="max_pending_bytes=1000"):
            await session.add_items(said("語" * 160))
        await session.add_items(said("x" * 160))
        assert session.status().items == 2


async def test_a_batch_that_can_never_fit_is_refused_at_once(place: str) -> None:
    """Waiting is of no use for a batch larger than the limit itself: no hour is waited."""
    async with limited(
        place, max_pending_items=2, when_full="block", full_timeout=3600.0
    ) as session:
        with pytest.raises(JournalFull, match="split it"):
            await session.add_items(said(1, 2, 3))
        assert await session.get_items() == []


async def test_blocking_ends_in_a_refusal(place: str) -> None:
    """With nobody to take anything, a blocked add gives up after `full_timeout`, nothing stored."""
    async with limited(place, max_pending_items=1, when_full="block", full_timeout=0.2) as session:
        await session.add_items(said(1))
        with pytest.raises(JournalFull, match="no room"):
            await session.add_items(said(2))
        assert words(await session.get_items()) == ["1"]


async def test_a_blocked_add_goes_on_when_the_server_has_taken_something(
    journal: Path, server: DevServer
) -> None:
    """A writer faster than the server is slowed to its pace, and everything arrives in order."""
    options = {"max_pending_items": 5, "when_full": "block", "full_timeout": 60.0}
    most = 0
    async with limited(journal, server.url, **options) as session:

        async def talk() -> None:
            nonlocal most
            for number in range(60):
                await session.add_items(said(number))
                most = max(most, session.status().pending)

        with server.faults.unavailable(0, route="POST /v1/memories/store/batch"):
            changes = session.changes()
            talking = asyncio.ensure_future(talk())
            while (await anext(changes)).pending < 5:
                pass
        await talking
        await session.flush(timeout=60)
        assert words(await session.get_items()) == [str(number) for number in range(60)]
    assert most == 5


async def test_another_process_counts(journal: Path) -> None:
    """The limit is the journal's: what another process wrote and has not sent fills it too."""
    async with limited(journal, max_pending_items=3) as session:
        await session.add_items(said("here"))
        code = """
        async def main():
            async with CachedSession("limits", journal=sys.argv[1]) as session:
                await session.add_items(said("there", "too"))
                tell("done")
        asyncio.run(main())
        """
        with Child(code, journal) as child:
            assert child.told() == ["done"]
            child.end()
        with pytest.raises(JournalFull):
            await session.add_items(said("one too many"))
        assert words(await session.get_items()) == ["here", "there", "too"]


async def test_what_asks_for_no_room_takes_room_all_the_same(journal: Path) -> None:
    """An import has no limit, and what is parked holds nothing up. What the one has brought, and
    what of the other is tried again, is unsent, and those who have a limit find less room."""
    async with limited(journal, max_pending_items=4) as session:
        await session.add_items(said(1))
        await session.import_items(said(2, 3), source="another store")
        with pytest.raises(JournalFull):
            await session.add_items(said(4, 5))
        await session.add_items(said(4))
        engine = await session._ready()
        await engine.journal.write(lambda conn: outbox.park(conn, 1, "refused"))
        with pytest.raises(JournalFull):
            await session.add_items(said(5, 6))
        assert await session.retry_parked() == 1
        with pytest.raises(JournalFull):
            await session.add_items(said(5))
        assert words(await session.get_items()) == ["1", "2", "3", "4"]


async def test_a_local_session_has_no_outbox_to_fill(place: str) -> None:
    """Without a server nothing waits for one: the limits do not apply."""
    options = SyncOptions(max_pending_items=1, when_full="reject")
    async with CachedSession("local", journal=place, options=options) as session:
        for number in range(3):
            await session.add_items(said(number))
        assert session.status().items == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_pending_items": 0},
        {"max_pending_bytes": -1},
        {"max_pending_items": 1.5},
        {"when_full": "drop"},
        {"full_timeout": float("inf")},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """A limit is a whole number from 1, or None; nothing is ever dropped silently."""
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        SyncOptions(**wrong)
