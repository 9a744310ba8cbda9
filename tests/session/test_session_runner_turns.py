"""The Agents SDK's own `Runner`: every run is one turn, and its history stays acceptable."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    RunState,
    function_tool,
)
from agents.memory import OpenAIResponsesCompactionSession
from agents.models.chatcmpl_converter import Converter

from cached_session import CachedSession
from tests.session.session_support import ScriptedModel
from tests.session.turn_support import answer, kind, shape, turns_of, user

pytestmark = pytest.mark.promise(number=5)

WITH_TOOL = "user function_call function_call_output assistant"


@function_tool
def look(city: str) -> str:
    """Look at a city."""
    return f"look of {city}"


@function_tool(needs_approval=True)
def pay(amount: int) -> str:
    """Pay an amount."""
    return f"paid {amount}"


def agent(*answers: Any, **more: Any) -> Agent[Any]:
    """Return an agent with a scripted model and both tools."""
    return Agent(name="a", model=ScriptedModel(*answers), tools=[look, pay], **more)


async def run(some: Agent[Any], question: Any, session: Any, *, streamed: bool = False) -> Any:
    """Run an agent to its end."""
    if not streamed:
        return await Runner.run(some, question, session=session)
    result = Runner.run_streamed(some, question, session=session)
    async for _ in result.stream_events():
        pass
    return result


def assert_accepted(items: list[Any]) -> None:
    """Assert that a chat-completions model accepts a history: outputs directly follow calls."""
    waiting: set[str] = set()
    for message in Converter.items_to_messages(items):
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, items
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, f"{message} is between a call and its output"
        if message["role"] == "assistant":
            waiting = {call["id"] for call in message.get("tool_calls") or ()}


async def resumed(state: str, some: Agent[Any], session: Any, *, streamed: bool) -> Any:
    """Approve everything that a stored state waits for, and go on with it."""
    loaded = await RunState.from_json(some, state)
    for interruption in loaded.get_interruptions():
        loaded.approve(interruption)
    return await run(some, loaded, session, streamed=streamed)


@pytest.fixture(params=[False, True], ids=["run", "streamed"])
def streamed(request: pytest.FixtureRequest) -> bool:
    """Return whether runs are streamed."""
    return bool(request.param)


async def test_a_run_is_a_turn(place: str, streamed: bool) -> None:
    """The runs use two tools, one tool and no tool."""
    async with CachedSession("s", journal=place) as session:
        some = agent(("look", {"city": "A"}), ("look", {"city": "B"}), "1", "2")
        await run(some, "first", session, streamed=streamed)
        await run(some, "second", session, streamed=streamed)
        steps = "function_call function_call_output "
        assert await shape(session) == [f"user {steps}{steps}assistant", "user assistant"]


async def test_runs_side_by_side_are_turns_of_their_own(place: str, streamed: bool) -> None:
    """The runs wait for each other in their tools, so that their batches alternate."""
    barrier: list[asyncio.Event] = []

    @function_tool
    async def wait() -> str:
        """Wait until every run is here."""
        mine = asyncio.Event()
        barrier.append(mine)
        if len(barrier) == 3:
            for each in barrier:
                each.set()
        await mine.wait()
        return "ok"

    async with CachedSession("s", journal=place) as session:
        await run(agent("0"), "before", session, streamed=streamed)
        models = [ScriptedModel(("wait", {}), f"answer {n}") for n in range(3)]
        await asyncio.gather(
            *(
                run(
                    Agent(name="a", model=models[n], tools=[wait]),
                    f"question {n}",
                    session,
                    streamed=streamed,
                )
                for n in range(3)
            )
        )
        assert await shape(session) == ["user assistant", *[WITH_TOOL] * 3]
        for turn in (await turns_of(session))[1:]:
            question, *_, last = (str(entry.item) for entry in turn)
            number = question.partition("question ")[2][0]
            assert f"answer {number}" in last


async def test_a_hand_off_stays_in_the_turn(place: str, streamed: bool) -> None:
    """The other agent answers."""
    async with CachedSession("s", journal=place) as session:
        expert = Agent(name="expert", model=ScriptedModel("I know."))
        first = Agent(
            name="first", model=ScriptedModel(("transfer_to_expert", {})), handoffs=[expert]
        )
        await run(first, "who knows?", session, streamed=streamed)
        assert await shape(session) == [WITH_TOOL]


async def test_a_guardrail_that_trips_leaves_a_question(place: str, streamed: bool) -> None:
    """The next run is a turn of its own."""

    async def refuse(*_: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    async with CachedSession("s", journal=place) as session:
        guarded = agent("never", input_guardrails=[InputGuardrail(guardrail_function=refuse)])
        with pytest.raises(InputGuardrailTripwireTriggered):
            await run(guarded, "bad", session, streamed=streamed)
        await run(agent("fine"), "good", session, streamed=streamed)
        assert (await shape(session))[-1] == "user assistant"
        assert len(await shape(session)) == len(await session.get_items()) - 1


@pytest.mark.parametrize("restart", [False, True], ids=["alive", "restarted"])
async def test_an_approved_call_stays_in_its_turn(
    journal: Path, streamed: bool, restart: bool
) -> None:
    """Another turn is between the call and its approval."""
    some = agent(("pay", {"amount": 5}), "Paid.")
    session = CachedSession("s", journal=journal)
    state = (await run(some, "please pay", session, streamed=streamed)).to_state().to_json()
    if restart:
        await session.close()
    async with CachedSession("s", journal=journal) as other:
        await run(agent("Sunny."), "weather?", other, streamed=streamed)
    if restart:
        session = CachedSession("s", journal=journal)
    async with session:
        result = await resumed(state, some, session, streamed=streamed)
        assert result.final_output == "Paid."
        assert await shape(session) == [WITH_TOOL, "user assistant"]
        assert_accepted(await session.get_items())
        model = ScriptedModel("on")
        await run(Agent(name="a", model=model), "go on", session)
        assert [kind(item) for item in model.seen[0]] == [
            *WITH_TOOL.split(),
            *"user assistant user".split(),
        ]


async def test_a_cancelled_run_leaves_a_turn_that_nothing_joins(place: str) -> None:
    """The next run is a turn of its own, and its history is accepted."""
    began = asyncio.Event()

    @function_tool
    async def hang() -> str:
        """Never return."""
        began.set()
        await asyncio.Event().wait()
        return ""

    async with CachedSession("s", journal=place) as session:
        hanging = Agent(name="a", model=ScriptedModel(("hang", {})), tools=[hang])
        task = asyncio.create_task(run(hanging, "hang", session, streamed=True))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        model = ScriptedModel("fine")
        await run(Agent(name="a", model=model), "next", session)
        assert (await shape(session))[-1] == "user assistant"
        assert_accepted(model.seen[0])


async def test_a_nested_run_over_the_same_session_is_its_own_turn(place: str) -> None:
    """An agent as a tool stores its messages while the outer run waits."""
    inner = agent("inner answer")

    async with CachedSession("s", journal=place) as session:

        @function_tool
        async def ask() -> str:
            """Ask another agent."""
            return str((await Runner.run(inner, "inner", session=session)).final_output)

        outer = Agent(name="outer", model=ScriptedModel(("ask", {}), "outer answer"), tools=[ask])
        await run(outer, "outer", session)
        assert await shape(session) == [WITH_TOOL, "user assistant"]


async def test_a_question_that_is_asked_again_opens_a_turn(place: str) -> None:
    """A retry pops the question and the answer, and stores them again."""
    async with CachedSession("s", journal=place) as session:
        some = agent("wrong", "right")
        await run(some, "2 + 2?", session)
        await session.pop_item()
        await session.pop_item()
        await run(some, "2 + 2?", session)
        assert await shape(session) == ["user assistant"]


async def test_a_run_over_a_wrapper_is_a_turn(place: str, streamed: bool) -> None:
    """The SDK's compacting session passes each batch on."""
    async with CachedSession("s", journal=place) as session:
        client: Any = None
        wrapped = OpenAIResponsesCompactionSession(
            "s", session, client=client, should_trigger_compaction=lambda _: False
        )
        some = agent(("look", {"city": "A"}), "1", ("look", {"city": "B"}), "2")
        for _ in range(2):
            await run(some, "?", wrapped, streamed=streamed)
        assert await shape(session) == [WITH_TOOL] * 2


async def test_a_run_in_a_block_joins_the_rest_of_the_block(place: str, streamed: bool) -> None:
    """A program stores a note of its own with the run."""
    async with CachedSession("s", journal=place) as session:
        async with session.turn():
            await session.add_items([user("note")])
            await run(agent("fine"), "?", session, streamed=streamed)
            await session.add_items([answer("and a note")])
        assert await shape(session) == ["user user assistant assistant"]


def test_a_run_of_the_synchronous_runner_is_a_turn(journal: Path) -> None:
    """`Runner.run_sync` has an event loop of its own."""
    session = CachedSession("s", journal=journal)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        some = agent(("look", {"city": "A"}), "1", "2")
        for question in "ab":
            Runner.run_sync(some, question, session=session, run_config=RunConfig())
        assert loop.run_until_complete(shape(session)) == [WITH_TOOL, "user assistant"]
        loop.run_until_complete(session.close())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
