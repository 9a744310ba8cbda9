"""The Agents SDK's compaction over a session: the summary replaces exactly what it covers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, Runner, SessionSettings
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.session.session_support import ScriptedModel, messages

KEY = "a key for tests, of any length at all"


class Compactor:
    """A client that returns a summary, after it has done something else."""

    def __init__(self, during: Callable[[], Awaitable[object]] | None = None) -> None:
        self.inputs: list[list[Any]] = []
        self.responses = self
        self._during = during

    async def compact(self, **arguments: Any) -> Any:
        self.inputs.append(arguments["input"])
        if self._during is not None:
            await self._during()
        output = [
            {"type": "message", "role": "user", "content": "summary"},
            {"type": "compaction", "id": "cmp_1", "encrypted_content": "xyz"},
        ]
        return SimpleNamespace(output=output, usage=None)


def compacting(session: Any, client: Any, most: int) -> Any:
    """Return a session that compacts when it sees ``most`` items."""
    return OpenAIResponsesCompactionSession(
        "s",
        session,
        client=client,
        compaction_mode="input",
        should_trigger_compaction=lambda context: len(context["session_items"]) >= most,
    )


async def ask(session: Any, turns: int) -> None:
    """Run some turns of one question and one answer."""
    agent = Agent(name="a", model=ScriptedModel(*[f"a{turn}" for turn in range(turns)]))
    for turn in range(turns):
        await Runner.run(agent, f"q{turn}", session=session)


def said(items: list[Any]) -> list[str]:
    """Return the text of each item, or its type."""
    found = []
    for item in items:
        content = item.get("content")
        text = content[0]["text"] if isinstance(content, list) else content
        found.append(text or item["type"])
    return found


async def test_a_compaction_under_a_limit_keeps_what_the_model_has_not_seen(place: str) -> None:
    """The summary covers the items that the limit shows; the older ones stay, and in order."""
    limit = SessionSettings(limit=6)
    async with CachedSession("s", journal=place, session_settings=limit) as session:
        await session.add_items(messages(*range(40)))
        client = Compactor()
        await ask(compacting(session, client, 6), 1)
        assert len(client.inputs) == 1
        seen = said(client.inputs[0])
        assert seen[-2:] == ["q0", "a0"]
        kept = [str(number) for number in range(40) if str(number) not in seen]
        assert said(await session.get_items(100)) == [*kept, "summary", "compaction"]


async def test_a_compaction_on_request_under_a_limit_removes_what_it_covers(place: str) -> None:
    """The items that the limit hides are in no summary, so they stay."""
    limit = SessionSettings(limit=3)
    async with CachedSession("s", journal=place, session_settings=limit) as session:
        await session.add_items(messages(*range(6)))
        client = Compactor()
        await compacting(session, client, 0).run_compaction({"force": True})
        assert said(client.inputs[0]) == ["3", "4", "5"]
        assert said(await session.get_items(100)) == ["0", "1", "2", "summary", "compaction"]


@pytest.mark.parametrize("automatic", [True, False])
async def test_an_item_that_arrives_meanwhile_survives(journal: Path, automatic: bool) -> None:
    """Another handle appends while the server summarizes. Nothing is lost in either case, and the
    next compaction covers the item."""
    async with CachedSession("s", journal=journal) as session:
        async with CachedSession("s", journal=journal) as other:
            await session.add_items(messages("old"))
            client = Compactor(lambda: other.add_items(messages("from elsewhere")))
            wrapped = compacting(session, client, 3)
            if automatic:
                await ask(wrapped, 1)
                assert said(await other.get_items()) == ["old", "q0", "a0", "from elsewhere"]
            else:
                await wrapped.run_compaction({"force": True})
                left = ["summary", "compaction", "from elsewhere"]
                assert said(await other.get_items()) == left
            assert len(client.inputs) == 1


async def test_two_compactions_side_by_side_keep_apart(journal: Path) -> None:
    """Each replaces what it has read itself, although both use one session object."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages("old"))
        begun, on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            begun.set()
            await on.wait()

        slow = compacting(session, Compactor(wait), 0)
        running = asyncio.create_task(slow.run_compaction({"force": True}))
        await begun.wait()
        await session.add_items(messages("new"))
        await session._read_compaction_items(None)  # the other one has read the new item
        on.set()
        await running
        assert said(await session.get_items()) == ["summary", "compaction", "new"]


async def test_a_compaction_never_clears(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The items are replaced in one transaction, so a kill leaves the old or the new history."""

    async def clear(self: CachedSession) -> None:
        raise AssertionError("the session was cleared")

    monkeypatch.setattr(CachedSession, "clear_session", clear)
    async with CachedSession("s", journal=place) as session:
        await ask(compacting(session, Compactor(), 4), 2)
        assert said(await session.get_items()) == ["summary", "compaction"]
        await compacting(session, Compactor(), 0).run_compaction({"force": True})
        assert said(await session.get_items()) == ["summary", "compaction"]


@pytest.mark.parametrize("outside", [True, False])
async def test_an_encrypted_session_is_compacted(place: str, outside: bool) -> None:
    """The order of the two wrappers does not matter; nothing is stored in clear."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("in clear, so hidden"))
        client = Compactor()
        if outside:
            inner = compacting(session, client, 4)
            wrapped: Any = EncryptedSession("s", inner, encryption_key=KEY, ttl=600)
        else:
            inner = EncryptedSession("s", session, encryption_key=KEY, ttl=600)  # type: ignore[arg-type]
            wrapped = compacting(inner, client, 4)
        await ask(wrapped, 2)
        assert said(await wrapped.get_items()) == ["summary", "compaction"]
        stored: list[Any] = await session.get_items()
        assert stored[0] == messages("in clear, so hidden")[0]
        assert [item.get("__enc__") for item in stored[1:]] == [1, 1]


async def test_expired_items_go_with_a_compaction(place: str) -> None:
    """The oldest items for which the wrapper says so are removed in the same transaction, up to the
    first one that stays."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("old", "old", "keep", "old", "last"))
        snapshot = await session._get_compaction_snapshot(
            1, prune_prefix=lambda item: item["content"] == "old"
        )
        assert snapshot is not None
        assert not snapshot.complete
        assert await snapshot.replace_suffix(0, messages("summary"))
        assert said(await session.get_items()) == ["keep", "old", "summary"]


async def test_a_snapshot_knows_if_it_is_complete(place: str) -> None:
    """It is complete if it has every item, also if the limit is just reached."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("a", "b"))
        found = [await session._get_compaction_snapshot(limit) for limit in (1, 2, 3)]
        assert [each.complete for each in found if each] == [False, True, True]
        assert [said(each.items) for each in found if each] == [["b"], ["a", "b"], ["a", "b"]]


async def test_a_subclass_is_compacted_by_its_own_methods(place: str) -> None:
    """Its items may be converted, so the hooks of the base class would bypass it."""

    class Converting(CachedSession):
        pass

    async with Converting("s", journal=place) as session:
        await session.add_items(messages("a"))
        assert await session._get_compaction_snapshot(1) is None
        assert not await session._atomic_replace_items(messages("b"))
        assert said(await session.get_items()) == ["a"]


async def test_two_devices_that_compact_at_once_lose_nothing(tmp_path: Path) -> None:
    """Both summaries stay, and so does an item that neither has covered."""
    with DevServer() as server:
        phone = CachedSession.from_url("s", url=server.url, journal=tmp_path / "phone.db")
        laptop = CachedSession.from_url("s", url=server.url, journal=tmp_path / "laptop.db")
        async with phone, laptop:
            await phone.add_items(messages("shared", "too"))
            await phone.sync(30)
            await laptop.sync(30)
            await compacting(phone, Compactor(), 0).run_compaction({"force": True})
            await compacting(laptop, Compactor(), 0).run_compaction({"force": True})
            await laptop.add_items(messages("later"))
            for device in (phone, laptop, phone):
                await device.sync(30)
            both = [said(await device.get_items()) for device in (phone, laptop)]
        assert both[0] == both[1]
        assert sorted(both[0]) == ["compaction", "compaction", "later", "summary", "summary"]
