"""LangChain's chat message history, with LangChain."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory

from cached_session import CachedSession, InvalidArgument, SessionCache, UnreadableItem, WouldBlock
from cached_session.adapters import Bridge
from cached_session.adapters.langchain import CachedChatMessageHistory
from cached_session.devserver import DevServer
from tests.adapters.turn_shape import turn_shape

# LangChain plans to remove the interface in version 2, and warns once a process.
pytestmark = pytest.mark.filterwarnings("ignore:.*RunnableWithMessageHistory:DeprecationWarning")

CALL = {"name": "weather", "args": {"city": "Ōsaka"}, "id": "call-1", "type": "tool_call"}
CONVERSATION: list[BaseMessage] = [
    SystemMessage("You are brief."),
    HumanMessage(
        [
            {"type": "text", "text": "Where is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
        name="ada",
        id="m-1",
    ),
    AIMessage(
        "",
        tool_calls=[CALL],
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={"model": "fake", "score": 0.1, "big": 2**70},
    ),
    ToolMessage("Sunny", tool_call_id="call-1", artifact={"raw": [1, None]}, status="success"),
    AIMessage("It is sunny. 🌞"),
    ChatMessage("Aye", role="pirate"),
]


def in_memory() -> CachedSession:
    return CachedSession("user-1", journal=":memory:")


async def test_messages_of_every_kind_are_restored_equal() -> None:
    """Text, images, tool calls, results, ids, usage and provider fields are restored."""
    async with in_memory() as session:
        history = CachedChatMessageHistory(session)
        await history.aadd_messages(CONVERSATION)
        found = await history.aget_messages()
    assert found == CONVERSATION
    assert [type(message) for message in found] == [type(message) for message in CONVERSATION]


async def test_items_show_role_and_text() -> None:
    """Each message is one item with its role and its text, which people and search can read."""
    async with in_memory() as session:
        await CachedChatMessageHistory(session).aadd_messages(CONVERSATION)
        items: list[Any] = await session.get_items()
        assert [(item.get("role"), item["content"]) for item in items] == [
            ("system", "You are brief."),
            ("user", "Where is this?\n[image_url]"),
            ("assistant", 'weather({"city": "Ōsaka"})'),
            ("tool", "Sunny"),
            ("assistant", "It is sunny. 🌞"),
            (None, "Aye"),
        ]
        assert [entry.rank for entry in await session.search("sunny")] == [4, 3]


def test_the_command_line_shows_the_conversation(tmp_path: Path, bridge: Bridge) -> None:
    """`cached-session show` prints role and text, without the framework."""
    with bridge.enter(CachedSession("user-1", journal=tmp_path / "a.db")) as session:
        CachedChatMessageHistory(session, bridge=bridge).add_messages(CONVERSATION[:3])
    command = [sys.executable, "-m", "cached_session", "show", "user-1", "--journal"]
    done = subprocess.run([*command, tmp_path / "a.db"], capture_output=True, text=True, check=True)
    assert [line.split("  ")[-1].strip() for line in done.stdout.splitlines()] == [
        "system: You are brief.",
        "user: Where is this? [image_url]",
        'assistant: weather({"city": "Ōsaka"})',
    ]


async def test_messages_added_in_one_call_are_one_batch() -> None:
    """A turn becomes visible on another device completely or not at all."""
    async with in_memory() as session:
        await CachedChatMessageHistory(session).aadd_messages(CONVERSATION)
        assert len({(entry.writer, entry.counter) for entry in await session.entries()}) == 1


def recording_model(heard: list[list[str]]) -> Runnable[Any, Any]:
    """Make a model of LangChain's own that records its input."""
    model = GenericFakeChatModel(messages=iter(AIMessage(f"answer {n}") for n in range(9)))

    def listen(messages: list[BaseMessage]) -> list[BaseMessage]:
        heard.append([str(message.content) for message in messages])
        return messages

    return RunnableLambda(listen) | model


async def test_runnable_with_message_history_uses_the_session(
    device: Callable[[str], SessionCache],
) -> None:
    """LangChain's own runnable reads and writes the session asynchronously, one session an id."""
    heard: list[list[str]] = []
    async with device("phone") as cache:
        chain = RunnableWithMessageHistory(
            recording_model(heard),
            lambda session_id: CachedChatMessageHistory(cache.session(session_id)),
        )
        for user, words in [("ada", "one"), ("bob", "two"), ("ada", "three")]:
            await chain.ainvoke(
                [HumanMessage(words)], config={"configurable": {"session_id": user}}
            )
        said = [str(m.content) for m in await chain.get_session_history("ada").aget_messages()]
    assert heard == [["one"], ["two"], ["one", "answer 0", "three"]]
    assert said == ["one", "answer 0", "three", "answer 2"]


async def test_a_streamed_answer_is_stored(device: Callable[[str], SessionCache]) -> None:
    """`astream` yields pieces, and the history has one message of them after the end of the
    stream."""
    ada: Any = {"configurable": {"session_id": "ada"}}
    async with device("phone") as cache:
        history = CachedChatMessageHistory(cache.session("ada"))
        chain = RunnableWithMessageHistory(recording_model([]), lambda session_id: history)
        pieces = []
        async for chunk in chain.astream([HumanMessage("one")], config=ada):
            assert await history.aget_messages() == []
            pieces.append(chunk.content)
        assert pieces == ["answer", " ", "0"]
        kept = await history.aget_messages()
        assert [str(message.content) for message in kept] == ["one", "answer 0"]
        roles = [item["role"] for item in await cache.session("ada").get_items()]  # type: ignore[typeddict-item]
        assert roles == ["user", "assistant"]


def test_synchronous_code_uses_the_bridge(
    device: Callable[[str], SessionCache], bridge: Bridge
) -> None:
    """`invoke` works over the bridge, and the session syncs in the bridge's thread."""
    heard: list[list[str]] = []
    with bridge.enter(device("phone")) as cache:
        chain = RunnableWithMessageHistory(
            recording_model(heard),
            lambda session_id: CachedChatMessageHistory(cache.session(session_id), bridge=bridge),
        )
        ada: Any = {"configurable": {"session_id": "ada"}}
        chain.invoke([HumanMessage("one")], config=ada)
        assert "".join(chunk.content for chunk in chain.stream("two", config=ada)) == "answer 1"
        history = chain.get_session_history("ada")
        assert [m.content for m in history.messages] == ["one", "answer 0", "two", "answer 1"]
        assert str(history).splitlines()[0] == "Human: one"
        bridge.run(cache.flush, 30)
        history.clear()
        assert history.messages == []
        history.add_user_message("again")
        assert [m.content for m in history.messages] == ["again"]
    assert heard == [["one"], ["one", "answer 0", "two"]]


async def test_a_synchronous_method_in_a_running_loop_is_refused() -> None:
    """The error names the asynchronous method, and the loop is not blocked."""
    async with in_memory() as session:
        history = CachedChatMessageHistory(session)
        with pytest.raises(WouldBlock, match="await the asynchronous method"):
            _ = history.messages
        with pytest.raises(WouldBlock):
            history.add_messages([HumanMessage("Hi")])
        with pytest.raises(WouldBlock):
            history.clear()
        assert await session.get_items() == []


async def test_items_of_other_programs_raise_an_error() -> None:
    """Items of the Agents SDK in the session raise an error that names them, and stay."""
    async with in_memory() as session:
        await session.add_items([{"role": "user", "content": "Hi"}])
        with pytest.raises(UnreadableItem, match=r"item of the Agents SDK .*langchain\.message"):
            await CachedChatMessageHistory(session).aget_messages()
        assert len(await session.get_items()) == 1


async def test_a_message_that_langchain_cannot_read_back_is_refused() -> None:
    """Such a message would make the whole history unreadable."""

    class Gesture(BaseMessage):
        type: str = "gesture"

    async with in_memory() as session:
        history = CachedChatMessageHistory(session)
        with pytest.raises(InvalidArgument, match="cannot read back"):
            await history.aadd_messages([HumanMessage("Hi"), Gesture(content="nods")])
        with pytest.raises(InvalidArgument):
            await history.aadd_messages([HumanMessage("Hi", additional_kwargs={"x": object()})])
        assert await history.aget_messages() == []


async def test_a_stored_message_of_an_unknown_type_raises_a_clear_error() -> None:
    """A message of a later LangChain raises an error with its reason, and not an exception of
    LangChain's."""
    async with in_memory() as session:
        history = CachedChatMessageHistory(session)
        await history.aadd_messages([HumanMessage("Hi")])
        (item,) = await session.get_items()
        item["message"]["type"] = "hologram"  # type: ignore[index,typeddict-unknown-key,typeddict-item]
        await session.add_items([item])
        with pytest.raises(UnreadableItem, match="hologram"):
            await history.aget_messages()


async def test_the_limit_of_the_session_applies() -> None:
    """The latest messages are returned, in order, up to the session's own limit."""
    session = CachedSession("a", journal=":memory:", session_settings={"limit": 2})
    async with session:
        history = CachedChatMessageHistory(session)
        await history.aadd_messages(CONVERSATION)
        assert await history.aget_messages() == CONVERSATION[-2:]


async def test_two_devices_agree_after_an_outage(
    device: Callable[[str], SessionCache], server: DevServer
) -> None:
    """Both devices work without a server, and afterwards show one history with complete turns."""

    def turn(words: str) -> list[BaseMessage]:
        return [HumanMessage(words), AIMessage(f"heard {words}")]

    async with device("phone") as phone, device("laptop") as laptop:
        here = CachedChatMessageHistory(phone.session("trip"))
        there = CachedChatMessageHistory(laptop.session("trip"))
        await here.aadd_messages(turn("Oslo"))
        await phone.flush(timeout=30)
        assert await there.aget_messages() == turn("Oslo")
        server.stop()
        await here.aadd_messages(turn("by train"))
        await there.aadd_messages(turn("on Friday"))
        assert await here.aget_messages() == turn("Oslo") + turn("by train")
        assert phone.status().pending == 1
        server.start()
        for cache in (phone, laptop, phone):
            await cache.sync(timeout=30)
        said = await here.aget_messages()
        assert said == await there.aget_messages()
        assert said[:2] == turn("Oslo")
        assert said[2:] in (
            turn("by train") + turn("on Friday"),
            turn("on Friday") + turn("by train"),
        )
        await there.aclear()
        await laptop.flush(timeout=30)
        await phone.sync(timeout=30)
        assert await here.aget_messages() == []


async def test_messages_that_are_added_one_at_a_time_are_one_turn(
    device: Callable[[str], SessionCache],
) -> None:
    """Another history of the session takes a turn in between. A tool message joins its call, also
    in a history of a new process."""
    async with device("phone") as cache:
        history = CachedChatMessageHistory(cache.session("user-1"))
        other = CachedChatMessageHistory(cache.session("user-1"))
        await history.aadd_messages([HumanMessage("Weather?")])
        await other.aadd_messages([HumanMessage("?"), AIMessage("!")])
        await history.aadd_messages([AIMessage("", tool_calls=[CALL])])
        resumed = CachedChatMessageHistory(cache.session("user-1"))
        await resumed.aadd_messages([ToolMessage("Sunny", tool_call_id="call-1")])
        await resumed.aadd_messages([AIMessage("It is sunny.")])
        assert await turn_shape(cache.session("user-1")) == [
            ["user", "assistant", "tool", "assistant"],
            ["user", "assistant"],
        ]


def test_synchronous_calls_are_one_turn(
    device: Callable[[str], SessionCache], bridge: Bridge
) -> None:
    """`add_user_message` and `add_ai_message` run in separate tasks of the bridge."""
    with bridge.enter(device("phone")) as cache:
        session = cache.session("user-1")
        history = CachedChatMessageHistory(session, bridge=bridge)
        for _ in range(2):
            history.add_user_message("Weather?")
            history.add_ai_message("Sunny.")
        assert bridge.run(turn_shape, session) == [["user", "assistant"]] * 2
