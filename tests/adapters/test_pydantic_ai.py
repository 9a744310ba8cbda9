"""Pydantic AI's message history, with Pydantic AI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    BinaryContent,
    DeferredToolRequests,
    DeferredToolResults,
    ImageUrl,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from cached_session import CachedSession, SessionCache, UnreadableItem
from cached_session.adapters import Bridge
from cached_session.adapters.pydantic_ai import CachedMessageHistory
from cached_session.devserver import DevServer
from tests.adapters.turn_shape import turn_shape

CONVERSATION: list[ModelMessage] = [
    ModelRequest([SystemPromptPart("Be brief."), UserPromptPart("Where is my bag?")]),
    ModelResponse(
        [ThinkingPart("Look it up."), ToolCallPart("find", {"what": "bag"}, "call-1")],
        model_name="fake",
    ),
    ModelRequest([ToolReturnPart("find", {"place": "Ōsaka", "at": [1, None]}, "call-1")]),
    ModelResponse([TextPart("In Ōsaka. 🧳")]),
    ModelRequest(
        [
            UserPromptPart(
                [
                    "And this?",
                    ImageUrl("https://example.org/a.png"),
                    BinaryContent(b"\x00\xff\x10", media_type="image/png"),
                ]
            )
        ],
        instructions="Answer in English.",
    ),
]


async def test_messages_of_every_kind_are_restored_equal() -> None:
    """Prompts, reasoning, tool calls, results, images, instructions and times are restored."""
    async with CachedSession("a", journal=":memory:") as session:
        history = CachedMessageHistory(session)
        await history.add(CONVERSATION)
        found = await history.messages()
    as_json, of_json = ModelMessagesTypeAdapter.dump_json, ModelMessagesTypeAdapter.validate_json
    assert found[:-1] == CONVERSATION[:-1]
    assert found == of_json(
        as_json(CONVERSATION)
    )  # Pydantic AI itself restores the bytes as an image.
    (prompt,) = found[-1].parts
    assert prompt.content[2].data == b"\x00\xff\x10"  # type: ignore[union-attr,index]


async def test_items_show_role_and_text() -> None:
    """Each message is one item with its role and its text, which people and search can read."""
    async with CachedSession("a", journal=":memory:") as session:
        await CachedMessageHistory(session).add(CONVERSATION)
        items: list[Any] = await session.get_items()
        assert [(item["role"], item["content"]) for item in items] == [
            ("user", "Be brief.\nWhere is my bag?"),
            ("assistant", 'Look it up.\nfind({"what": "bag"})'),
            ("tool", '{"place": "Ōsaka", "at": [1, null]}'),
            ("assistant", "In Ōsaka. 🧳"),
            ("user", "And this?\n[image-url]\n[binary]"),
        ]
        assert [entry.rank for entry in await session.search("bag")] == [1, 0]


async def test_an_agent_continues_a_stored_conversation(
    device: Callable[[str], SessionCache],
) -> None:
    """`agent.run(message_history=...)` works with its own test model and tools, and a run is one
    batch."""
    agent = Agent(TestModel())

    @agent.tool_plain
    def lookup(city: str) -> str:
        return f"{city}: sunny"

    async with device("phone") as cache:
        session = cache.session("user-1")
        history = CachedMessageHistory(session)
        for words in ("Hello", "And tomorrow?"):
            before = await history.messages()
            result = await agent.run(words, message_history=before)
            await history.add(result.new_messages())
            assert await history.messages() == result.all_messages()
        batches = {(entry.writer, entry.counter) for entry in await session.entries()}
        assert len(batches) == 2
        parts = [part for message in await history.messages() for part in message.parts]
    assert [part.content for part in parts if isinstance(part, UserPromptPart)] == [
        "Hello",
        "And tomorrow?",
    ]
    assert any(isinstance(part, ToolReturnPart) for part in parts)


async def test_a_streamed_run_is_stored(device: Callable[[str], SessionCache]) -> None:
    """After the text of `run_stream` has been read, `new_messages()` returns the run."""
    agent = Agent(TestModel(custom_output_text="It is sunny."))
    async with device("phone") as cache:
        history = CachedMessageHistory(cache.session("user-1"))
        for words in ("Hello", "And tomorrow?"):
            before = await history.messages()
            async with agent.run_stream(words, message_history=before) as result:
                pieces = [piece async for piece in result.stream_text(delta=True)]
            assert "".join(pieces) == "It is sunny."
            await history.add(result.new_messages())
            assert await history.messages() == result.all_messages()
        assert len(await history.messages()) == 4


@pytest.fixture
def loop() -> Iterator[None]:
    """Make the loop that `run_sync` uses, and close it afterwards."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


def test_a_synchronous_run_uses_a_bridge(
    device: Callable[[str], SessionCache], bridge: Bridge, loop: None
) -> None:
    """`run_sync` has its own loop, and the history is read and written over the bridge."""
    heard: list[int] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        heard.append(len(messages))
        return ModelResponse([TextPart("Hi")])

    agent = Agent(FunctionModel(answer))
    with bridge.enter(device("phone")) as cache:
        history = CachedMessageHistory(cache.session("user-1"))
        for _ in range(2):
            result = agent.run_sync("Hello", message_history=bridge.run(history.messages))
            bridge.run(history.add, result.new_messages())
        bridge.run(cache.flush, 30)
        assert len(bridge.run(history.messages)) == 4
        bridge.run(history.clear)
        assert bridge.run(history.messages) == []
    assert heard == [1, 3]


async def test_items_of_other_programs_raise_an_error() -> None:
    """Another adapter's item, and one in a form that the framework does not know, raise an
    error."""
    async with CachedSession("a", journal=":memory:") as session:
        history = CachedMessageHistory(session)
        await history.add(CONVERSATION[:1])
        (item,) = await session.get_items()
        foreign: Any = dict(item) | {"type": "langchain.message"}
        await session.add_items([foreign])
        with pytest.raises(UnreadableItem, match=r"another adapter \(langchain\.message\)"):
            await history.messages()
        await history.clear()
        broken: Any = dict(item) | {"message": {"kind": "telepathy", "parts": []}}
        await session.add_items([broken])
        with pytest.raises(UnreadableItem, match="telepathy"):
            await history.messages()


async def test_runs_of_two_devices_stay_complete(
    device: Callable[[str], SessionCache], server: DevServer
) -> None:
    """Concurrent runs of two agents stand one after the other, so that each tool call keeps its
    result."""
    agent = Agent(TestModel())

    @agent.tool_plain
    def lookup(city: str) -> str:
        return f"{city}: sunny"

    async with device("phone") as phone, device("laptop") as laptop:
        here = CachedMessageHistory(phone.session("trip"))
        there = CachedMessageHistory(laptop.session("trip"))
        server.stop()
        for history, words in ((here, "Oslo?"), (there, "Rome?"), (here, "And Paris?")):
            result = await agent.run(words, message_history=await history.messages())
            await history.add(result.new_messages())
        server.start()
        for cache in (phone, laptop, phone):
            await cache.sync(timeout=30)
        merged = await here.messages()
        assert merged == await there.messages()
    parts = [part for message in merged for part in message.parts]
    waiting = None
    for part in parts:
        if isinstance(part, ToolCallPart):
            assert waiting is None
            waiting = part.tool_call_id
        elif isinstance(part, ToolReturnPart):
            assert part.tool_call_id == waiting
            waiting = None
    prompts = [part.content for part in parts if isinstance(part, UserPromptPart)]
    assert prompts in (["Oslo?", "And Paris?", "Rome?"], ["Rome?", "Oslo?", "And Paris?"])


@pytest.mark.parametrize("where", ["restarted", "elsewhere"])
async def test_a_deferred_tools_result_joins_its_call(
    device: Callable[[str], SessionCache], where: str
) -> None:
    """Between the call and its approval the laptop takes a turn. The run goes on in a new process
    of the phone, or on the laptop."""
    agent = Agent(TestModel(), output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def pay(amount: int) -> str:
        return f"paid {amount}"

    async with device("phone") as phone, device("laptop") as laptop:
        history = CachedMessageHistory(phone.session("user-1"))
        first = await agent.run("Pay.")
        assert isinstance(first.output, DeferredToolRequests)
        await history.add(first.new_messages())
        await phone.sync(timeout=30)
        on_laptop = CachedMessageHistory(laptop.session("user-1"))
        assert len(await on_laptop.messages()) == 2
        await on_laptop.add([ModelRequest([UserPromptPart("?")]), ModelResponse([TextPart("!")])])
        await laptop.sync(timeout=30)
        await phone.sync(timeout=30)
        cache = phone if where == "restarted" else laptop
        resumed = CachedMessageHistory(cache.session("user-1"))
        approved = DeferredToolResults(
            approvals={call.tool_call_id: True for call in first.output.approvals}
        )
        second = await agent.run(
            message_history=first.all_messages(), deferred_tool_results=approved
        )
        await resumed.add(second.new_messages())
        for _ in range(2):
            await phone.sync(timeout=30)
            await laptop.sync(timeout=30)
        for each in (phone, laptop):
            assert await turn_shape(each.session("user-1")) == [
                ["user", "assistant", "tool", "assistant"],
                ["user", "assistant"],
            ]
