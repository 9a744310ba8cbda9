"""LlamaIndex's chat store, with LlamaIndex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage, ImageBlock, MessageRole, MockLLM, TextBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import FunctionTool

from cached_session import SessionCache, UnreadableItem, WouldBlock
from cached_session.adapters import Bridge
from cached_session.adapters.llama_index import CachedChatStore
from cached_session.devserver import DevServer
from tests.adapters.turn_shape import turn_shape

CONVERSATION = [
    ChatMessage("You are brief.", role=MessageRole.SYSTEM),
    ChatMessage(
        role=MessageRole.USER,
        blocks=[
            TextBlock(text="Where is this?"),
            ImageBlock(image=b"\x89PNG\r\n\x1a\n\x00\xff", image_mimetype="image/png"),
        ],
    ),
    ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[],
        additional_kwargs={
            "tool_calls": [
                {"id": "call-1", "function": {"name": "find", "arguments": '{"what": "bag"}'}}
            ]
        },
    ),
    ChatMessage("In Ōsaka", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": "call-1"}),
    ChatMessage("It is in Ōsaka. 🧳", role=MessageRole.ASSISTANT),
]
EXCHANGE = CONVERSATION[1:]
WITH_TOOL = ["user", "assistant", "tool", "assistant"]


def said(*words: str) -> list[ChatMessage]:
    return [ChatMessage(word, role=MessageRole.USER) for word in words]


def words(messages: list[ChatMessage] | None) -> list[str | None]:
    return [message.content for message in messages or []]


async def test_messages_of_every_kind_are_restored_equal() -> None:
    """Text, images, tool calls and results are restored unchanged."""
    async with SessionCache(":memory:") as cache:
        store = CachedChatStore(cache)
        for message in CONVERSATION:
            await store.async_add_message("user-1", message)
        found = await store.aget_messages("user-1")
        assert found == CONVERSATION
        items: list[Any] = await cache.session("user-1").get_items()
        assert [(item["role"], item["content"]) for item in items] == [
            ("system", "You are brief."),
            ("user", "Where is this?\n[image]"),
            ("assistant", 'find({"what": "bag"})'),
            ("tool", "In Ōsaka"),
            ("assistant", "It is in Ōsaka. 🧳"),
        ]


async def test_a_store_behaves_like_simple_chat_store() -> None:
    """Every method returns what `SimpleChatStore` returns, step by step. A chat without messages
    does not exist."""
    from llama_index.core.storage.chat_store import SimpleChatStore

    async with SessionCache(":memory:") as cache:
        ours, theirs = CachedChatStore(cache), SimpleChatStore()

        async def both(name: str, *arguments: Any) -> None:
            sync_name = name.removeprefix("async_") if "async_" in name else name[1:]
            expected = getattr(theirs, sync_name)(*arguments)
            assert await getattr(ours, name)(*arguments) == expected
            for key in theirs.get_keys():
                assert await ours.aget_messages(key) == theirs.get_messages(key)

        await both("aget_messages", "nobody")
        await both("adelete_messages", "nobody")
        await both("adelete_message", "nobody", 0)
        await both("adelete_last_message", "nobody")
        await both("async_add_message", "a", said("one")[0])
        await both("aset_messages", "a", said("one", "two", "three", "four", "five"))
        await both("aset_messages", "b", said("other"))
        await both("adelete_message", "a", 1)
        await both("adelete_message", "a", -1)
        await both("adelete_message", "a", 9)
        await both("adelete_last_message", "a")
        await both("aset_messages", "a", said("one", "zwei", "drei"))
        await both("aset_messages", "a", said("eins"))
        assert sorted(await ours.aget_keys()) == sorted(theirs.get_keys()) == ["a", "b"]
        await both("adelete_messages", "a")
        assert await ours.aget_keys() == theirs.get_keys() == ["b"]


async def test_setting_messages_writes_only_the_difference() -> None:
    """A common beginning is neither removed nor written again, and the rest is one operation."""
    async with SessionCache(":memory:") as cache:
        store, session = CachedChatStore(cache), cache.session("a")
        await store.aset_messages("a", said("one", "two"))
        before = await session.entries()
        await store.aset_messages("a", said("one", "two"))
        await store.aset_messages("a", said("one", "two", "three", "four"))
        after = await session.entries()
        assert [(e.writer, e.counter, e.index) for e in after[:2]] == [
            (e.writer, e.counter, e.index) for e in before
        ]
        assert session.status().pending == 2


async def test_keys_lists_only_chats_of_llama_index() -> None:
    """Other sessions in the same journal are neither listed nor read as chats."""
    async with SessionCache(":memory:") as cache:
        store = CachedChatStore(cache)
        await cache.session("sdk").add_items([{"role": "user", "content": "Hi"}])
        await store.async_add_message("a", said("one")[0])
        assert await store.aget_keys() == ["a"]
        for call in (
            store.aget_messages("sdk"),
            store.aset_messages("sdk", said("x")),
            store.adelete_message("sdk", 0),
            store.adelete_last_message("sdk"),
            store.adelete_messages("sdk"),
        ):
            with pytest.raises(UnreadableItem, match="the Agents SDK"):
                await call
        assert len(await cache.session("sdk").get_items()) == 1


def test_a_chat_engine_uses_the_store(
    device: Callable[[str], SessionCache], bridge: Bridge
) -> None:
    """LlamaIndex's own engine and memory work over the store synchronously, and it syncs."""
    with bridge.enter(device("phone")) as cache:
        store = CachedChatStore(cache, bridge=bridge)

        def engine() -> SimpleChatEngine:
            memory = ChatMemoryBuffer.from_defaults(
                token_limit=10_000,
                chat_store=store,
                chat_store_key="user-1",
                tokenizer_fn=str.split,
            )
            return SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)

        first = engine().chat("My name is Ada").response
        second = engine().chat("What is my name?")
        assert "My name is Ada" in second.response
        assert words(engine().chat_history) == [
            "My name is Ada",
            first,
            "What is my name?",
            second.response,
        ]
        bridge.run(cache.flush, 30)
        engine().reset()
        assert store.get_messages("user-1") == []
        assert store.get_keys() == []
        store.set_messages("user-1", said("one", "two", "three"))
        assert words([store.delete_message("user-1", 1), store.delete_last_message("user-1")]) == [  # type: ignore[list-item]
            "two",
            "three",
        ]
        store.add_message("user-1", said("four")[0])
        assert words(store.delete_messages("user-1")) == ["one", "four"]


async def test_an_asynchronous_engine_needs_no_bridge(
    device: Callable[[str], SessionCache],
) -> None:
    """`achat` awaits the store on its own loop, where a synchronous call is refused."""
    async with device("phone") as cache:
        store = CachedChatStore(cache)
        memory = ChatMemoryBuffer.from_defaults(
            token_limit=10_000, chat_store=store, chat_store_key="a", tokenizer_fn=str.split
        )
        engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)
        await engine.achat("Hello")
        assert len(await store.aget_messages("a")) == 2
        with pytest.raises(WouldBlock):
            store.get_messages("a")


async def test_a_streamed_answer_is_stored(device: Callable[[str], SessionCache]) -> None:
    """`astream_chat` writes the answer after its stream has been read."""
    async with device("phone") as cache:
        store = CachedChatStore(cache)
        memory = ChatMemoryBuffer.from_defaults(
            token_limit=10_000, chat_store=store, chat_store_key="a", tokenizer_fn=str.split
        )
        engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)
        answer = await engine.astream_chat("Hello")
        streamed = "".join([piece async for piece in answer.async_response_gen()])
        assert words(await store.aget_messages("a")) == ["Hello", streamed.strip()]


def test_a_synchronous_streamed_answer_is_stored(
    device: Callable[[str], SessionCache], bridge: Bridge
) -> None:
    """`stream_chat` writes from its own thread, and waits for the bridge there."""
    with bridge.enter(device("phone")) as cache:
        store = CachedChatStore(cache, bridge=bridge)
        memory = ChatMemoryBuffer.from_defaults(
            token_limit=10_000, chat_store=store, chat_store_key="a", tokenizer_fn=str.split
        )
        engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)
        streamed = "".join(engine.stream_chat("Hello").response_gen)
        assert words(store.get_messages("a")) == ["Hello", streamed.strip()]


# LlamaIndex reads every attribute of its agents, including those that Pydantic has deprecated.
@pytest.mark.filterwarnings("ignore:The `__fields:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Accessing the .model_:DeprecationWarning")
async def test_an_agent_with_tools_uses_the_store(device: Callable[[str], SessionCache]) -> None:
    """After `FunctionAgent.run(memory=...)` question, call, result and answer are in the chat, in
    order, as one turn. The next run, of another agent, reads them."""

    def seats(flight: str = "X1") -> str:
        return f"{flight}: 12A"

    def memory(store: CachedChatStore) -> ChatMemoryBuffer:
        return ChatMemoryBuffer.from_defaults(
            token_limit=10_000, chat_store=store, chat_store_key="a", tokenizer_fn=str.split
        )

    async with device("phone") as cache:
        store = CachedChatStore(cache)
        for question in ("Any seats?", "And now?"):
            agent = FunctionAgent(
                tools=[FunctionTool.from_defaults(seats)], llm=MockFunctionCallingLLM()
            )
            await agent.run(question, memory=memory(store))
        roles = [message.role.value for message in await store.aget_messages("a")]
        said = words(await store.aget_messages("a"))
        items = await cache.session("a").get_items()
        shape = await turn_shape(cache.session("a"))
    assert shape == [WITH_TOOL, ["user", "assistant"]]
    # This model calls no tool when it sees a result: the second run saw the first one's.
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [said[0], said[2], said[4]] == ["Any seats?", "X1: 12A", "And now?"]
    assert "seats(" in str(items[1])


async def test_devices_that_set_and_delete_separately_agree(
    device: Callable[[str], SessionCache], server: DevServer
) -> None:
    """Two lists with a common beginning have it once. A message deleted by its index on one device
    is deleted on the other, and concurrent additions survive."""
    async with device("phone") as phone, device("laptop") as laptop:
        here, there = CachedChatStore(phone), CachedChatStore(laptop)
        await here.aset_messages("a", said("one", "two", "three"))
        await phone.flush(timeout=30)
        assert words(await there.aget_messages("a")) == ["one", "two", "three"]
        server.stop()
        await here.aset_messages("a", said("one", "two", "phone"))
        await there.async_add_message("a", said("laptop")[0])
        await there.adelete_message("a", 0)
        server.start()
        for cache in (phone, laptop, phone):
            await cache.sync(timeout=30)
        merged = words(await here.aget_messages("a"))
        assert merged == words(await there.aget_messages("a"))
        assert merged[0] == "two"
        assert sorted(merged[1:]) == ["laptop", "phone"]  # type: ignore[type-var]


@pytest.mark.parametrize("call", ["asynchronous", "synchronous"])
def test_messages_that_are_stored_one_at_a_time_are_one_turn(
    device: Callable[[str], SessionCache], bridge: Bridge, call: str
) -> None:
    """Another device takes a whole turn between any two of them."""
    with bridge.enter(device("phone")) as phone, bridge.enter(device("laptop")) as laptop:
        store, other = CachedChatStore(phone, bridge=bridge), CachedChatStore(laptop, bridge=bridge)
        for message in EXCHANGE:
            if call == "synchronous":
                store.add_message("user-1", message)
            else:
                bridge.run(store.async_add_message, "user-1", message)
            bridge.run(phone.sync, 30)
            other.add_message("user-1", ChatMessage("?", role=MessageRole.USER))
            other.add_message("user-1", ChatMessage("!", role=MessageRole.ASSISTANT))
            bridge.run(laptop.sync, 30)
            bridge.run(phone.sync, 30)
        for cache in (phone, laptop):
            shape = bridge.run(turn_shape, cache.session("user-1"))
            assert shape == [WITH_TOOL, *[["user", "assistant"]] * 4]


async def test_a_tool_message_joins_its_call_after_a_restart(
    device: Callable[[str], SessionCache],
) -> None:
    """A store of a new process goes on with the call."""
    async with device("phone") as cache:
        before = CachedChatStore(cache)
        for message in EXCHANGE[:2]:
            await before.async_add_message("user-1", message)
        after = CachedChatStore(cache)
        await after.async_add_message("user-1", ChatMessage("?", role=MessageRole.USER))
        await after.async_add_message("user-1", ChatMessage("!", role=MessageRole.ASSISTANT))
        for message in EXCHANGE[2:]:
            await after.async_add_message("user-1", message)
        assert await turn_shape(cache.session("user-1")) == [WITH_TOOL, ["user", "assistant"]]
