from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, InvalidArgument, JournalFull, SyncOptions
from cached_session.devserver import DevServer
from cached_session.journal.tables import outbox
from tests.session.session_support import Child, contents, messages

pytestmark = pytest.mark.promise(number=10)

NOBODY = "http://127.0.0.1:1"
"""Where no server listens."""


def limited(journal: Path | str, url: str = NOBODY, **options: Any) -> CachedSession:
    """Return a session with limits, over a server that accepts nothing unless another is named."""
    return CachedSession.from_url(
        "limits",
        url=url,
        journal=journal,
        hydrate=False,
        options=SyncOptions(close_timeout=0.1, **{"when_full": "reject", **options}),
    )


async def test_a_batch_above_the_limit_is_refused_whole(place: str) -> None:
    """At `max_pending_items` nothing of the batch is stored, and a batch that fits still is."""
    async with limited(place, max_pending_items=4) as session:
        await session.add_items(messages(1, 2, 3))
        with pytest.raises(JournalFull, match="max_pending_items=4"):
            await session.add_items(messages(4, 5))
        assert contents(await session.get_items()) == ["1", "2", "3"]
        await session.add_items(messages(4))
        assert contents(await session.get_items()) == ["1", "2", "3", "4"]
        assert session.status().items == 4


async def test_removing_unsent_items_frees_quota(place: str) -> None:
    """Pops and clears are never refused, and items that they remove unsent no longer count."""
    async with limited(place, max_pending_items=2) as session:
        await session.add_items(messages(1, 2))
        assert await session.pop_item() == messages(2)[0]
        await session.add_items(messages(3))
        with pytest.raises(JournalFull):
            await session.add_items(messages(4))
        await session.clear_session()
        await session.add_items(messages(5, 6))
        assert contents(await session.get_items()) == ["5", "6"]


async def test_bytes_are_limited_too(place: str) -> None:
    """`max_pending_bytes` counts payloads as UTF-8: a three-byte letter counts as three."""
    async with limited(place, max_pending_bytes=1000) as session:
        await session.add_items(messages("x" * 500))
        with pytest.raises(JournalFull, match="max_pending_bytes=1000"):
            await session.add_items(messages("語" * 160))
        await session.add_items(messages("x" * 160))
        assert session.status().items == 2


async def test_a_batch_that_can_never_fit_is_refused_immediately(place: str) -> None:
    """A batch above the limit itself cannot fit later, so the call does not wait."""
    async with limited(
        place, max_pending_items=2, when_full="block", full_timeout=3600.0
    ) as session:
        with pytest.raises(JournalFull, match="split it"):
            await session.add_items(messages(1, 2, 3))
        assert await session.get_items() == []


async def test_a_blocked_add_is_refused_after_its_timeout(place: str) -> None:
    """If the server takes nothing, a blocked add gives up after `full_timeout` and stores
    nothing."""
    async with limited(place, max_pending_items=1, when_full="block", full_timeout=0.2) as session:
        await session.add_items(messages(1))
        with pytest.raises(JournalFull, match="too much is unsent"):
            await session.add_items(messages(2))
        assert contents(await session.get_items()) == ["1"]


async def test_a_blocked_add_goes_on_after_an_acknowledgement(
    journal: Path, server: DevServer
) -> None:
    """A writer that is faster than the server is slowed down, and everything arrives in order."""
    options = {"max_pending_items": 5, "when_full": "block", "full_timeout": 60.0}
    most = 0
    async with limited(journal, server.url, **options) as session:

        async def talk() -> None:
            nonlocal most
            for number in range(60):
                await session.add_items(messages(number))
                most = max(most, session.status().pending)

        with server.faults.unavailable(0, route="POST /v1/memories/store/batch"):
            changes = session.changes()
            talking = asyncio.ensure_future(talk())
            while (await anext(changes)).pending < 5:
                pass
        await talking
        await session.flush(timeout=60)
        assert contents(await session.get_items()) == [str(number) for number in range(60)]
    assert most == 5


async def test_items_of_another_process_count(journal: Path) -> None:
    """The limit is the journal's: unsent items of another process count as well."""
    async with limited(journal, max_pending_items=3) as session:
        await session.add_items(messages("here"))
        code = """
        async def main():
            async with CachedSession("limits", journal=sys.argv[1]) as session:
                await session.add_items(messages("there", "too"))
                report("done")
        asyncio.run(main())
        """
        with Child(code, journal) as child:
            assert child.read_line() == ["done"]
            child.end()
        with pytest.raises(JournalFull):
            await session.add_items(messages("one too many"))
        assert contents(await session.get_items()) == ["here", "there", "too"]


async def test_imports_and_retries_count_against_the_limit(journal: Path) -> None:
    """Imports are not limited and parked operations do not count, but imported and retried items
    use quota."""
    async with limited(journal, max_pending_items=4) as session:
        await session.add_items(messages(1))
        await session.import_items(messages(2, 3), source="another store")
        with pytest.raises(JournalFull):
            await session.add_items(messages(4, 5))
        await session.add_items(messages(4))
        engine = await session._ready()
        await engine.journal.write(lambda conn: outbox.park(conn, 1, "refused"))
        with pytest.raises(JournalFull):
            await session.add_items(messages(5, 6))
        assert await session.retry_parked() == 1
        with pytest.raises(JournalFull):
            await session.add_items(messages(5))
        assert contents(await session.get_items()) == ["1", "2", "3", "4"]


async def test_limits_do_not_apply_without_a_server(place: str) -> None:
    """A local session has nothing to send."""
    options = SyncOptions(max_pending_items=1, when_full="reject")
    async with CachedSession("local", journal=place, options=options) as session:
        for number in range(3):
            await session.add_items(messages(number))
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
def test_invalid_limits_are_refused(wrong: dict[str, Any]) -> None:
    """A limit is a whole number from 1, or None."""
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        SyncOptions(**wrong)
