"""Strands' session repository, with Strands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from strands import Agent, tool
from strands.agent.conversation_manager import SlidingWindowConversationManager
from strands.models import Model
from strands.multiagent import GraphBuilder
from strands.session import RepositorySessionManager
from strands.types.exceptions import SessionException
from strands.types.session import Session, SessionAgent, SessionMessage, SessionType

from cached_session import SessionCache, UnreadableItem
from cached_session.adapters import Bridge
from cached_session.adapters.strands import CachedSessionRepository
from cached_session.devserver import DevServer
from cached_session.history.ids import agent_id
from tests.adapters.turn_shape import turn_shape

WITH_TOOL = ["user", "assistant", "tool", "assistant"]


class ScriptedModel(Model):
    """A model with scripted answers: a text, a tool call, or a guardrail intervention."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.heard: list[list[str]] = []

    def update_config(self, **model_config: Any) -> None:
        """Ignore the configuration."""

    def get_config(self) -> Any:
        return {}

    def structured_output(self, *arguments: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, messages: Any, *arguments: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self.heard.append(
            [block.get("text", "") for message in messages for block in message["content"]]
        )
        said = self.script.pop(0)
        yield {"messageStart": {"role": "assistant"}}
        if isinstance(said, dict) and "redact" in said:
            yield {"redactContent": {"redactUserContentMessage": said["redact"]}}
            said = "I cannot talk about that."
        if isinstance(said, str):
            yield {"contentBlockStart": {"start": {}}}
            yield {"contentBlockDelta": {"delta": {"text": said}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "end_turn"}}
        else:
            start = {"toolUse": {"name": said["tool"], "toolUseId": "call-1"}}
            yield {"contentBlockStart": {"start": start}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": said["input"]}}}}
            yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use"}}


@tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"{city}: sunny"


def agent(repository: CachedSessionRepository, model: Model, **more: Any) -> Agent:
    manager = RepositorySessionManager("user-1", session_repository=repository)
    return Agent(
        model=model, session_manager=manager, callback_handler=None, agent_id="helper", **more
    )


def texts(messages: Sequence[Any]) -> list[str]:
    return [
        block["text"] for message in messages for block in message["content"] if "text" in block
    ]


def a_message(words: str, number: int = 0) -> SessionMessage:
    return SessionMessage.from_message({"role": "user", "content": [{"text": words}]}, number)


@pytest.fixture
def repository(bridge: Bridge, device: Callable[[str], SessionCache]) -> Any:
    """Make a device's repository, on its own bridge."""
    with bridge.enter(device("phone")) as cache:
        yield CachedSessionRepository(cache, bridge=bridge)


def items(repository: CachedSessionRepository, bridge: Bridge) -> list[Any]:
    return bridge.run(repository._cache.session("user-1").get_items)


def test_an_agent_continues_a_stored_conversation(
    repository: CachedSessionRepository, bridge: Bridge
) -> None:
    """A second agent has the first one's messages and state, including tool calls."""
    first = agent(
        repository,
        ScriptedModel({"tool": "weather", "input": '{"city": "Ōsaka"}'}, "It is sunny."),
        tools=[weather],
        state={"mood": "good"},
    )
    first("How is the weather?")
    first.state.set("mood", "better")
    model = ScriptedModel("You asked for the weather.")
    second = agent(repository, model, tools=[weather])
    assert second.messages == first.messages
    second("What did I ask?")
    assert model.heard == [["How is the weather?", "", "", "It is sunny.", "What did I ask?"]]
    said = [item for item in items(repository, bridge) if item["type"] == "strands.message"]
    assert [(item["role"], item["content"]) for item in said] == [
        ("user", "How is the weather?"),
        ("assistant", 'weather({"city": "Ōsaka"})'),
        ("tool", "Ōsaka: sunny"),
        ("assistant", "It is sunny."),
        ("user", "What did I ask?"),
        ("assistant", "You asked for the weather."),
    ]


async def test_an_agent_in_a_running_loop_uses_the_repository(
    device: Callable[[str], SessionCache],
) -> None:
    """`invoke_async` calls the repository from its own loop, on which the cache is used too."""
    async with device("phone") as cache:
        with Bridge() as bridge:
            repository = CachedSessionRepository(cache, bridge=bridge)
            await agent(repository, ScriptedModel("Hello")).invoke_async("Hi")
            again = agent(repository, ScriptedModel())
            assert texts(again.messages) == ["Hi", "Hello"]
        await cache.flush(timeout=30)


async def test_a_streamed_answer_is_stored_and_a_window_is_restored(
    device: Callable[[str], SessionCache],
) -> None:
    """After `stream_async`, an agent with a sliding window starts with the window's messages, while
    the session has all."""
    async with device("phone") as cache:
        with Bridge() as bridge:
            repository = CachedSessionRepository(cache, bridge=bridge)
            window = SlidingWindowConversationManager(window_size=4)
            first = agent(
                repository, ScriptedModel("a", "b", "c", "d"), conversation_manager=window
            )
            for number in range(4):
                events = [event async for event in first.stream_async(f"q{number}")]
                assert [event["data"] for event in events if "data" in event] == ["abcd"[number]]
            window = SlidingWindowConversationManager(window_size=4)
            again = agent(repository, ScriptedModel(), conversation_manager=window)
            assert texts(again.messages) == texts(first.messages)
            assert len(again.messages) == 4
            whole = [one.message for one in repository.list_messages("user-1", "helper")]
            assert texts(whole) == ["q0", "a", "q1", "b", "q2", "c", "q3", "d"]


def test_state_is_stored_once_and_restored(
    repository: CachedSessionRepository, bridge: Bridge
) -> None:
    """Each new state replaces the one before, so that the history does not grow."""
    first = agent(repository, ScriptedModel("one", "two", "three"))
    for number in range(3):
        first.state.set("number", number)
        first("Go on")
    kinds = [item["type"] for item in items(repository, bridge)]
    assert kinds.count("strands.agent") == kinds.count("strands.session") == 1
    assert kinds.count("strands.message") == 6
    assert agent(repository, ScriptedModel()).state.get("number") == 2


def test_a_redacted_message_keeps_its_position_and_loses_its_text(
    repository: CachedSessionRepository, bridge: Bridge, server: DevServer
) -> None:
    """Text that a guardrail redacts is removed from the journal and from the server."""
    first = agent(repository, ScriptedModel({"redact": "(struck out)"}, "Good."))
    first("my password is swordfish")
    first("And now?")
    expected = ["(struck out)", "I cannot talk about that.", "And now?", "Good."]
    assert texts(first.messages) == expected
    assert texts(agent(repository, ScriptedModel()).messages) == expected
    assert "swordfish" not in str(items(repository, bridge))
    bridge.run(repository._cache.sync, 30)
    assert "swordfish" not in str(server.memories(agent_id("user-1")))


def test_a_message_in_the_middle_is_updated_in_place(
    repository: CachedSessionRepository,
) -> None:
    """An update is an item of its own at the position of the old one, and so are later updates."""
    repository.create_session(Session("user-1", SessionType.AGENT))
    for number, words in enumerate(["one", "two", "three"]):
        repository.create_message("user-1", "helper", a_message(words, number))
    for words in ("zwei", "deux"):
        (second,) = repository.list_messages("user-1", "helper", limit=1, offset=1)
        second.message = {"role": "user", "content": [{"text": words}]}
        repository.update_message("user-1", "helper", second)
    found = repository.list_messages("user-1", "helper")
    assert texts([one.to_message() for one in found]) == ["one", "deux", "three"]
    assert [one.message_id for one in found] == [0, 1, 2]
    read = repository.read_message("user-1", "helper", 1)
    assert read is not None
    assert read.to_message()["content"] == [{"text": "deux"}]
    assert repository.read_message("user-1", "helper", 3) is None
    assert repository.read_message("user-1", "helper", -1) is None
    with pytest.raises(SessionException, match="does not exist"):
        repository.update_message("user-1", "helper", a_message("nowhere", 1))


def test_redacted_text_is_stored_nowhere(
    repository: CachedSessionRepository, bridge: Bridge
) -> None:
    """Strands may pass the original beside its replacement, and only the replacement is stored."""
    repository.create_session(Session("user-1", SessionType.AGENT))
    message = a_message("swordfish")
    repository.create_message("user-1", "helper", message)
    message.redact_message = {"role": "user", "content": [{"text": "(struck out)"}]}
    repository.update_message("user-1", "helper", message)
    (found,) = repository.list_messages("user-1", "helper")
    assert texts([found.to_message()]) == ["(struck out)"]
    assert "swordfish" not in str(items(repository, bridge))


def test_images_are_restored_byte_for_byte(repository: CachedSessionRepository) -> None:
    """Binary content is stored in the form in which Strands itself serialises it."""
    picture: Any = {"image": {"format": "png", "source": {"bytes": b"\x00\xff\x10"}}}
    message = SessionMessage.from_message({"role": "user", "content": [picture]}, 0)
    repository.create_message("user-1", "helper", message)
    (found,) = repository.list_messages("user-1", "helper")
    assert found.to_message() == {"role": "user", "content": [picture]}


def test_a_repository_behaves_like_strands_own(
    repository: CachedSessionRepository, tmp_path: Any
) -> None:
    """Results for existing, missing and invalid sessions are those of `FileSessionManager`."""
    from strands.session import FileSessionManager

    other = FileSessionManager("elsewhere", storage_dir=str(tmp_path / "files"))
    for one in (repository, other):
        assert one.read_session("user-1") is None
        one.create_session(Session("user-1", SessionType.AGENT))
        read = one.read_session("user-1")
        assert read is not None
        assert read.session_id == "user-1"
        with pytest.raises(SessionException, match="already exists"):
            one.create_session(Session("user-1", SessionType.AGENT))
        assert one.read_agent("user-1", "helper") is None
        with pytest.raises(SessionException, match="does not exist"):
            one.update_agent("user-1", SessionAgent("helper", {}, {}))
        one.create_agent("user-1", SessionAgent("helper", {"a": 1}, {"b": [None]}))
        made = one.read_agent("user-1", "helper")
        assert made is not None
        one.update_agent("user-1", SessionAgent("helper", {"a": 2}, {}))
        changed = one.read_agent("user-1", "helper")
        assert changed is not None
        assert (made.state, changed.state) == ({"a": 1}, {"a": 2})
        assert made.conversation_manager_state == {"b": [None]}
        assert made.created_at == changed.created_at
        for number in range(4):
            one.create_message("user-1", "helper", a_message(str(number), number))
        one.create_agent("user-1", SessionAgent("other", {}, {}))
        assert one.list_messages("user-1", "other") == []
        page = one.list_messages("user-1", "helper", limit=2, offset=1)
        assert [(m.message_id, texts([m.to_message()])) for m in page] == [(1, ["1"]), (2, ["2"])]


def test_a_graph_of_agents_is_stored(repository: CachedSessionRepository) -> None:
    """The state of a multi-agent graph is stored and read as Strands serialises it."""
    manager = RepositorySessionManager("user-1", session_repository=repository)
    builder = GraphBuilder()
    builder.add_node(
        Agent(model=ScriptedModel("done"), callback_handler=None, agent_id="worker"), "work"
    )
    builder.set_entry_point("work")
    builder.set_session_manager(manager)
    builder.set_graph_id("graph-1")
    builder.set_max_node_executions(5)
    graph = builder.build()
    graph("Do it")
    state = repository.read_multi_agent("user-1", "graph-1")
    assert state is not None
    assert state["completed_nodes"] == ["work"]
    assert repository.read_multi_agent("user-1", "graph-2") is None


def test_items_of_other_programs_raise_an_error(
    repository: CachedSessionRepository, bridge: Bridge
) -> None:
    """A session that the Agents SDK has used is refused before anything is added to it."""
    session = repository._cache.session("user-1")
    bridge.run(session.add_items, [{"role": "user", "content": "Hi"}])
    with pytest.raises(UnreadableItem, match="the Agents SDK"):
        agent(repository, ScriptedModel())
    assert len(items(repository, bridge)) == 1


def test_agents_of_two_devices_agree(
    device: Callable[[str], SessionCache], server: DevServer, bridge: Bridge
) -> None:
    """Both devices begin the session separately and continue after a sync. One redacts a message
    that the other reads, and both number the messages equally."""
    with bridge.enter(device("phone")) as phone, bridge.enter(device("laptop")) as laptop:
        here = CachedSessionRepository(phone, bridge=bridge)
        there = CachedSessionRepository(laptop, bridge=bridge)
        server.stop()
        on_phone = agent(here, ScriptedModel("phone hears", {"redact": "(struck out)"}))
        on_laptop = agent(there, ScriptedModel("laptop hears", "laptop again"))
        on_phone("phone asks")
        on_laptop("laptop asks")
        server.start()
        sync_both(bridge, phone, laptop)
        on_phone("a secret")
        on_laptop("laptop goes on")
        sync_both(bridge, phone, laptop)
        ours, theirs = (
            [(one.message_id, one.to_message()) for one in r.list_messages("user-1", "helper")]
            for r in (here, there)
        )
        assert ours == theirs
        assert [number for number, _ in ours] == list(range(8))
        said = texts([message for _, message in ours])
        assert "a secret" not in said
        assert said.index("(struck out)") + 1 == said.index("I cannot talk about that.")
        assert texts(agent(here, ScriptedModel()).messages) == said


def test_an_invocation_with_a_tool_is_one_turn(
    repository: CachedSessionRepository, bridge: Bridge
) -> None:
    """Strands stores each message and each state separately. State is no turn of its own."""
    first = agent(
        repository,
        ScriptedModel({"tool": "weather", "input": '{"city": "Ōsaka"}'}, "Sunny.", "Bye."),
        tools=[weather],
    )
    first("How is the weather?")
    first.state.set("mood", "better")
    first("Bye?")
    session = repository._cache.session("user-1")
    assert bridge.run(turn_shape, session) == [WITH_TOOL, ["user", "assistant"]]
    assert len(bridge.run(session.turns)) <= 3, (
        "at most one turn of state, before the first message"
    )


def test_a_result_stays_with_its_call_while_another_device_speaks(
    device: Callable[[str], SessionCache], bridge: Bridge
) -> None:
    """The laptop takes a turn while the phone's tool runs. No device reads an interrupted call."""
    with bridge.enter(device("phone")) as phone, bridge.enter(device("laptop")) as laptop:
        here = CachedSessionRepository(phone, bridge=bridge)
        there = CachedSessionRepository(laptop, bridge=bridge)
        agent(here, ScriptedModel("Hello."))("Hi")
        sync_both(bridge, phone, laptop)
        on_laptop = agent(there, ScriptedModel("Laptop hears."))

        @tool
        def transfer(amount: int) -> str:
            """Transfer an amount."""
            sync_both(bridge, phone, laptop)
            on_laptop("Laptop asks.")
            sync_both(bridge, laptop, phone)
            return f"transferred {amount}"

        script = {"tool": "transfer", "input": '{"amount": 5}'}
        agent(here, ScriptedModel(script, "Done."), tools=[transfer])("Transfer 5.")
        sync_both(bridge, phone, laptop)
        for cache in (phone, laptop):
            assert bridge.run(turn_shape, cache.session("user-1")) == [
                ["user", "assistant"],
                WITH_TOOL,
                ["user", "assistant"],
            ]
        restored = agent(there, ScriptedModel()).messages
        (result,) = results(restored)
        assert (result["status"], result["content"]) == ("success", [{"text": "transferred 5"}])


def test_a_result_stays_with_its_call_after_a_restart(
    device: Callable[[str], SessionCache], bridge: Bridge
) -> None:
    """The messages around it are those of another agent and of another process."""
    with bridge.enter(device("phone")) as cache:
        before = CachedSessionRepository(cache, bridge=bridge)
        before.create_session(Session("user-1", SessionType.AGENT))
        before.create_message("user-1", "helper", a_message("Transfer 5."))
        before.create_message("user-1", "helper", a_call("call-1"))
        after = CachedSessionRepository(cache, bridge=bridge)
        after.create_message("user-1", "other", a_message("Between."))
        after.create_message("user-1", "helper", a_result("call-1"))
        after.create_message("user-1", "helper", an_answer("Done."))
        after.create_message("user-1", "other", an_answer("Here."))
        assert bridge.run(turn_shape, cache.session("user-1")) == [WITH_TOOL, ["user", "assistant"]]


def test_a_redacted_message_stays_in_its_turn(
    repository: CachedSessionRepository, bridge: Bridge
) -> None:
    """So nothing of another device comes between it and the answer."""
    first = agent(repository, ScriptedModel({"redact": "(struck out)"}, "Good."))
    first("my password is swordfish")
    first("And now?")
    session = repository._cache.session("user-1")
    assert [sorted(turn) for turn in bridge.run(turn_shape, session)] == [["assistant", "user"]] * 2


def a_call(call_id: str) -> SessionMessage:
    use: Any = {"toolUse": {"toolUseId": call_id, "name": "transfer", "input": {}}}
    return SessionMessage.from_message({"role": "assistant", "content": [use]}, 0)


def a_result(call_id: str) -> SessionMessage:
    result: Any = {"toolUseId": call_id, "status": "success", "content": [{"text": "done"}]}
    return SessionMessage.from_message({"role": "user", "content": [{"toolResult": result}]}, 0)


def an_answer(words: str) -> SessionMessage:
    return SessionMessage.from_message({"role": "assistant", "content": [{"text": words}]}, 0)


def results(messages: Sequence[Any]) -> list[Any]:
    blocks = [block for message in messages for block in message["content"]]
    return [block["toolResult"] for block in blocks if "toolResult" in block]


def sync_both(bridge: Bridge, *caches: SessionCache) -> None:
    for cache in (*caches, caches[0]):
        bridge.run(cache.sync, 30)
