"""The Agents SDK's own `Runner` and session wrappers over a `CachedSession`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, SessionSettings, SQLiteSession, function_tool
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.session.session_support import ScriptedModel, contents, messages

SCRIPT: list[Any] = [
    ("weather", {"city": "Köln"}),
    "It rains in Köln.",
    "Take an umbrella.",
    ("weather", {"city": "Rom"}),
    "Rom is dry.",
]
ANSWERS = ["It rains in Köln.", "Take an umbrella.", "Rom is dry."]
QUESTIONS = ["Weather in Köln?", "What shall I do?", "And Rom?"]


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"weather of {city}"


def kinds(items: list[Any]) -> list[str]:
    """Return the kind of each item."""
    return [item.get("role") or item["type"] for item in items]


WHOLE = (
    "user function_call function_call_output assistant user assistant "
    "user function_call function_call_output assistant"
).split()


async def talk(session: Any, *, streamed: bool = False) -> ScriptedModel:
    """Run three turns, two of them with a tool."""
    model = ScriptedModel(*SCRIPT)
    agent = Agent(name="guide", model=model, tools=[weather])
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        if streamed:
            run: Any = Runner.run_streamed(agent, question, session=session)
            async for _ in run.stream_events():
                pass
        else:
            run = await Runner.run(agent, question, session=session)
        assert run.final_output == answer
    return model


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
async def test_a_conversation_is_stored_and_fed_back(place: str, streamed: bool) -> None:
    """Turns, tool calls and tool outputs are in the session and in the model's next input."""
    async with CachedSession("s", journal=place) as session:
        model = await talk(session, streamed=streamed)
        items: list[Any] = await session.get_items()
        assert kinds(items) == WHOLE
        assert items[2]["output"] == "weather of Köln"
        assert items[1]["call_id"] == items[2]["call_id"]
        assert [len(seen) for seen in model.seen] == [1, 3, 5, 7, 9]
        assert kinds(model.seen[-1]) == WHOLE[:-1]


@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
async def test_the_model_gets_the_same_input_as_with_the_sdks_session(
    place: str, streamed: bool
) -> None:
    """Each input equals the one with SQLiteSession, item by item."""
    theirs = SQLiteSession("s")
    async with CachedSession("s", journal=place) as ours:
        one = await talk(ours, streamed=streamed)
        other = await talk(theirs, streamed=streamed)
        assert one.seen == other.seen
        assert json.dumps(await ours.get_items()) == json.dumps(await theirs.get_items())
    theirs.close()


async def test_a_conversation_goes_on_after_a_restart(journal: Path) -> None:
    """The session of a new process gives the model the earlier history."""
    async with CachedSession("s", journal=journal) as session:
        await Runner.run(Agent(name="a", model=ScriptedModel("one")), "first", session=session)
    model = ScriptedModel("two")
    async with CachedSession("s", journal=journal) as session:
        await Runner.run(Agent(name="a", model=model), "second", session=session)
    assert kinds(model.seen[0]) == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    "settings", [SessionSettings(limit=2), {"limit": 2}], ids=["object", "dict"]
)
async def test_a_runner_obeys_the_sessions_limit(place: str, settings: Any) -> None:
    """`session_settings` limit what a turn reads, and everything stays stored."""
    async with CachedSession("s", journal=place, session_settings=settings) as session:
        model = ScriptedModel("1", "2", "3")
        agent = Agent(name="a", model=model)
        for question in "abc":
            await Runner.run(agent, question, session=session)
        assert [len(seen) for seen in model.seen] == [1, 3, 3]
        assert len(await session.get_items(99)) == 6


async def test_a_runs_own_limit_overrides_the_sessions(place: str) -> None:
    """`RunConfig(session_settings=...)` applies to that run."""
    async with CachedSession("s", journal=place, session_settings={"limit": 2}) as session:
        await session.add_items(messages("a", "b", "c"))
        model = ScriptedModel("1")
        config = RunConfig(session_settings=SessionSettings(limit=1))
        await Runner.run(Agent(name="a", model=model), "q", session=session, run_config=config)
        assert contents(model.seen[0]) == ["c", "q"]


async def test_a_run_that_fails_leaves_a_session_that_works(place: str) -> None:
    """The model's error is raised, and the next turn works."""
    async with CachedSession("s", journal=place) as session:
        with pytest.raises(IndexError):
            await Runner.run(Agent(name="a", model=ScriptedModel()), "first", session=session)
        model = ScriptedModel("two")
        await Runner.run(Agent(name="a", model=model), "second", session=session)
        assert kinds(await session.get_items())[-2:] == ["user", "assistant"]


async def test_an_answer_is_undone_by_pops(place: str) -> None:
    """A turn is corrected in the SDK's way: pop the answer and the question, and ask again."""
    async with CachedSession("s", journal=place) as session:
        model = ScriptedModel("wrong", "right")
        agent = Agent(name="a", model=model)
        await Runner.run(agent, "2 + 2?", session=session)
        await session.pop_item()
        await session.pop_item()
        await Runner.run(agent, "2 + 3?", session=session)
        assert model.seen[1] == messages("2 + 3?")


async def test_a_conversation_reaches_another_device(journal: Path, server: DevServer) -> None:
    """A Runner on another device continues the conversation."""
    async with CachedSession.from_url("s", url=server.url, journal=journal) as here:
        await talk(here)
        await here.flush(timeout=60)
        model = ScriptedModel("on")
        async with CachedSession.from_url("s", url=server.url, journal=":memory:") as there:
            await there.sync(timeout=60)
            await Runner.run(Agent(name="a", model=model), "go on", session=there)
            await there.flush(timeout=60)
        assert kinds(model.seen[0]) == [*WHOLE, "user"]
        await here.sync(timeout=60)
        assert kinds(await here.get_items()) == [*WHOLE, "user", "assistant"]


async def test_an_encrypted_session_can_wrap_a_session(journal: Path) -> None:
    """The conversation works, and the journal contains no plain text of it."""
    async with CachedSession("s", journal=journal) as session:
        wrapped = EncryptedSession("s", session, encryption_key="a key for a test", ttl=600)
        model = await talk(wrapped)
        assert kinds(model.seen[-1]) == WHOLE[:-1]
        assert kinds(await wrapped.get_items()) == WHOLE
        assert kinds(await wrapped.get_items(2)) == WHOLE[-2:]
        assert (await wrapped.pop_item() or {}).get("role") == "assistant"
        assert all(
            set(item) == {"__enc__", "v", "kid", "payload"} for item in await session.get_items()
        )
        await wrapped.clear_session()
        assert await session.get_items() == []
    assert b"umbrella" not in journal.read_bytes()


class FakeResponses:
    """A client that compacts any conversation to two items."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.responses = self

    async def compact(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        return SimpleNamespace(
            output=[
                {"type": "message", "role": "user", "content": "summary"},
                {"type": "compaction", "id": "cmp_1", "encrypted_content": "xyz"},
            ],
            usage=None,
        )


async def test_a_compacting_session_can_wrap_a_session(place: str) -> None:
    """A manual compaction replaces the stored history by the server's answer."""
    async with CachedSession("s", journal=place) as session:
        client: Any = FakeResponses()
        wrapped = OpenAIResponsesCompactionSession("s", session, client=client)
        await wrapped.add_items(messages(*range(20)))
        await wrapped.run_compaction({"force": True, "compaction_mode": "input"})
        assert len(client.calls) == 1
        assert len(client.calls[0]["input"]) == 20
        stored: list[Any] = await session.get_items()
        assert [item["type"] for item in stored] == ["message", "compaction"]
        assert await wrapped.get_items() == stored
        await wrapped.add_items(messages("on"))
        assert len(await session.get_items()) == 3


async def test_a_runner_works_over_a_compacting_session(place: str) -> None:
    """Turns pass through the wrapper to the session."""
    async with CachedSession("s", journal=place) as session:
        client: Any = FakeResponses()
        wrapped = OpenAIResponsesCompactionSession(
            "s", session, client=client, should_trigger_compaction=lambda _: False
        )
        await talk(wrapped)
        assert kinds(await session.get_items()) == WHOLE
        assert client.calls == []
