"""Two devices, each with the Agents SDK's own `Runner`, over one session: first separate, then
synced."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, ModelResponse, RunConfig, Runner, Usage, function_tool
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession
from agents.models.interface import Model
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.replication.devices import (
    AGENT,
    PATIENCE,
    QUICK,
    Devices,
    replicated_fields,
    sync_all,
    wait_until,
)

QUIET = RunConfig(tracing_disabled=True)
DAY = 86400
TURNS: list[list[int]] = [[0], [1, 0], [2, 1, 0]]
"""Numbers of tool calls in each answer of a turn. A reasoning item precedes each answer."""


class ThinkingModel(Model):
    """A model whose answers begin with a reasoning item, followed by tool calls or text. Every item
    has the name of its turn, and a reasoning item also names the items that follow it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.turn = 0
        self.step = 0
        self.seen: list[list[Any]] = []

    @property
    def turn_name(self) -> str:
        return f"turn-{self.name}{self.turn}"

    async def get_response(
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        return ModelResponse(output=self._answer(input), usage=Usage(), response_id=None)

    async def stream_response(
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        response = Response(
            id=f"resp_{self.name}_{len(self.seen)}",
            created_at=0,
            model="thinker",
            object="response",
            output=self._answer(input),
            parallel_tool_calls=True,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(
            response=response, sequence_number=0, type="response.completed"
        )

    def _answer(self, given: Any) -> list[Any]:
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        self.seen.append(json.loads(json.dumps(items)))
        calls = TURNS[self.turn % len(TURNS)][self.step]
        self.step += 1
        label = f"{self.turn_name}-{self.step}"
        thought = ResponseReasoningItem(id=f"rs_{label}", summary=[], type="reasoning")
        if not calls:
            text = ResponseOutputText(
                text=f"done {self.turn_name}", type="output_text", annotations=[]
            )
            return [
                thought,
                ResponseOutputMessage(
                    id=f"msg_{label}",
                    content=[text],
                    role="assistant",
                    status="completed",
                    type="message",
                ),
            ]
        return [
            thought,
            *(
                ResponseFunctionToolCall(
                    id=f"fc_{label}" if not number else f"fc_{label}_{number}",
                    call_id=f"call_{label}_{number}",
                    name="look_up",
                    arguments=json.dumps({"what": f"{self.turn_name} {number}"}),
                    type="function_call",
                    status="completed",
                )
                for number in range(calls)
            ),
        ]


class Talker:
    """The agent of a device: its model, its tool, and the session that the runner gets."""

    def __init__(self, name: str, below: CachedSession, session: Any = None) -> None:
        self.below = below
        self.session = below if session is None else session
        self.model = ThinkingModel(name)
        self.meanwhile: Any = None
        self.agent = Agent(name="guide", model=self.model, tools=[function_tool(self.look_up)])

    async def look_up(self, what: str) -> str:
        """Look something up."""
        if self.meanwhile is not None:
            await self.meanwhile()
        return f"found {what}"

    async def run_turn(self, *, streamed: bool = False) -> None:
        """Run one turn, and compare the model's input with what is stored."""
        model = self.model
        model.turn, model.step = model.turn + 1, 0
        stored: list[Any] = await self.session.get_items()
        question = f"question {model.turn_name}"
        first = len(model.seen)
        if streamed:
            run: Any = Runner.run_streamed(
                self.agent, question, session=self.session, run_config=QUIET
            )
            async for _ in run.stream_events():
                pass
        else:
            run = await Runner.run(self.agent, question, session=self.session, run_config=QUIET)
        assert run.final_output == f"done {model.turn_name}"
        assert model.seen[first] == [*stored, {"role": "user", "content": question}]
        for seen in model.seen[first:]:
            check_calls(seen)

    async def talk(self, turns: int = 3, *, streamed: bool = False) -> None:
        for _ in range(turns):
            await self.run_turn(streamed=streamed)


def turn_of(item: Any) -> str:
    """Return the turn of an item."""
    found = set(re.findall(r"turn-[a-z]\d+", json.dumps(item)))
    assert len(found) == 1, item
    return str(found.pop())


def check_calls(items: list[Any]) -> None:
    """Check that each call is there once, that its output follows without an item of another turn
    between them, and that each reasoning item stands directly before its items."""
    calls = [item["call_id"] for item in items if item.get("type") == "function_call"]
    outputs = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    assert len(set(calls)) == len(calls)
    assert sorted(calls) == sorted(outputs)
    for position, item in enumerate(items):
        if item.get("type") == "function_call":
            (end,) = (
                later
                for later, other in enumerate(items)
                if other.get("type") == "function_call_output"
                and other["call_id"] == item["call_id"]
            )
            assert end > position
            assert {turn_of(other) for other in items[position : end + 1]} == {turn_of(item)}
        elif item.get("type") == "reasoning":
            label = item["id"].removeprefix("rs_")
            assert items[position + 1].get("id") in (f"fc_{label}", f"msg_{label}")


def check_history(items: list[Any], *turns: str) -> list[str]:
    """Check that exactly these turns are there, each complete and contiguous, and return their
    order."""
    check_calls(items)
    order = [(turn, list(its)) for turn, its in groupby(items, key=turn_of)]
    assert sorted(turn for turn, _ in order) == sorted(turns)
    for turn, its in order:
        steps = TURNS[int(re.findall(r"\d+", turn)[0]) % len(TURNS)]
        kinds = ["user"]
        for calls in steps:
            kinds += ["reasoning"] + (
                ["function_call"] * calls + ["function_call_output"] * calls
                if calls
                else ["message"]
            )
        assert [item.get("type") or item["role"] for item in its] == kinds
    return [turn for turn, _ in order]


async def assert_same_history(*talkers: Talker) -> list[Any]:
    """Sync, assert that all show the same items in the same order, and return the items."""
    await sync_all(*(talker.below for talker in talkers))
    first, *others = talkers
    items: list[Any] = await first.session.get_items()
    places = [replicated_fields(entry) for entry in await first.below.entries()]
    assert len(places) == len(items)
    for other in others:
        assert await other.session.get_items() == items
        assert [replicated_fields(entry) for entry in await other.below.entries()] == places
    for talker in talkers:
        status = talker.below.status()
        assert (status.pending, status.parked, status.absent) == (0, 0, 0)
        assert (status.incomplete, status.conflicts, status.unreadable) == (0, 0, 0)
    return items


def encrypted(below: CachedSession) -> Any:
    return EncryptedSession("talk", below, encryption_key="a key for a test", ttl=DAY)


async def pair(device: Devices, wrap: Any = None, **more: Any) -> tuple[Talker, Talker]:
    """Make two devices that have reached the server and do not sync by themselves."""
    made = []
    for name in "ab":
        below = await device(name, **more)
        made.append(Talker(name, below, wrap(below) if wrap else None))
    return made[0], made[1]


WRAPPERS = pytest.mark.parametrize("wrap", [None, encrypted], ids=["plain", "encrypted"])


@pytest.mark.promise(number=5)
@WRAPPERS
@pytest.mark.parametrize("streamed", [False, True], ids=["run", "streamed"])
async def test_turns_of_separate_devices_become_one_history(
    device: Devices, wrap: Any, streamed: bool
) -> None:
    """Turns with reasoning and tools on two separate devices become one history in which each turn
    is complete, and each device's turns are contiguous and in order."""
    a, b = await pair(device, wrap)
    await asyncio.gather(a.talk(4, streamed=streamed), b.talk(4, streamed=streamed))
    order = check_history(
        await assert_same_history(a, b),
        *(f"turn-{name}{turn}" for name in "ab" for turn in range(1, 5)),
    )
    mine = [f"turn-a{turn}" for turn in range(1, 5)]
    other = [f"turn-b{turn}" for turn in range(1, 5)]
    assert order in (mine + other, other + mine)


@WRAPPERS
async def test_a_runner_works_on_a_merged_history(device: Devices, wrap: Any) -> None:
    """After a merge, the next turn of either device sees the whole history with each call beside
    its output, and is added at its end."""
    a, b = await pair(device, wrap)
    for _ in range(2):
        await asyncio.gather(a.talk(2), b.talk(2))
        await assert_same_history(a, b)
    before = await assert_same_history(a, b)
    await a.run_turn()
    assert (await assert_same_history(a, b))[: len(before)] == before
    await b.run_turn()
    items = await assert_same_history(a, b)
    order = check_history(items, *(f"turn-{name}{turn}" for name in "ab" for turn in range(1, 6)))
    assert order[-2:] == ["turn-a5", "turn-b5"]
    late = device.new("late")
    await assert_same_history(a, b, Talker("c", late, wrap(late) if wrap else None))


@WRAPPERS
async def test_turns_stay_complete_over_many_partitions(device: Devices, wrap: Any) -> None:
    """Turns of three devices that sync at different times stay complete, and a turn follows every
    turn that its model saw."""
    talkers = []
    for name in "abc":
        below = await device(name)
        talkers.append(Talker(name, below, wrap(below) if wrap else None))
    shown: dict[str, set[str]] = {}
    for number in range(6):
        for place_, talker in enumerate(talkers):
            before = {turn_of(item) for item in await talker.session.get_items()}
            await talker.run_turn()
            shown[talker.model.turn_name] = before
            if (number + place_) % (place_ + 2) == 0:
                await talker.below.sync(timeout=PATIENCE)
    names = [f"turn-{name}{turn}" for name in "abc" for turn in range(1, 7)]
    order = check_history(await assert_same_history(*talkers), *names)
    for turn, before in shown.items():
        assert all(order.index(earlier) < order.index(turn) for earlier in before)


@pytest.mark.promise(number=5)
@WRAPPERS
async def test_remote_turns_during_a_turn_split_no_call(device: Devices, wrap: Any) -> None:
    """Another device's turns that arrive while a tool runs stand neither between a call and its
    output nor between a reasoning item and its items, on either device."""
    a, b = await pair(device, wrap)
    await b.talk(3)
    await b.below.flush(timeout=PATIENCE)
    came: list[int] = []

    async def news() -> None:
        await a.below.sync(timeout=PATIENCE)
        came.append(len(await a.below.get_items()))

    await a.run_turn()
    a.meanwhile = news
    await a.talk(2)
    assert came[0] > 20
    a.meanwhile = None
    items = await assert_same_history(a, b)
    check_calls(items)
    assert {turn_of(item) for item in items} == {f"turn-{x}{n}" for x in "ab" for n in (1, 2, 3)}
    await b.run_turn()
    await a.below.sync(timeout=PATIENCE)
    await a.run_turn()
    check_calls(await assert_same_history(a, b))


@WRAPPERS
async def test_a_server_outage_changes_no_turn(
    device: Devices, server: DevServer, wrap: Any
) -> None:
    """No runner notices that the server is unreachable for some turns, and both devices have one
    history of complete calls soon after it is back."""
    a, b = await pair(device, wrap, options=QUICK)
    with server.faults.down():
        await asyncio.gather(a.talk(), b.talk())
        assert a.below.status().pending > 0
        assert b.below.status().pending > 0

    async def is_one() -> bool:
        mine, other = await a.session.get_items(), await b.session.get_items()
        return len(mine) == len(other) > 0 and a.below.status().pending == 0

    await wait_until(is_one)
    check_history(
        await assert_same_history(a, b), *(f"turn-{x}{n}" for x in "ab" for n in (1, 2, 3))
    )


async def test_the_server_sees_no_text_of_encrypted_sessions(
    device: Devices, server: DevServer
) -> None:
    """No text of a conversation over encrypted sessions is on the server or in a journal."""
    a, b = await pair(device, encrypted)
    await asyncio.gather(a.talk(), b.talk())
    await assert_same_history(a, b)
    stored = json.dumps(server.memories(AGENT))
    journals = b"".join(path.read_bytes() for path in device.root.iterdir() if path.is_file())
    for word in ("question turn", "found turn", "done turn", "look_up"):
        assert word not in stored
        assert word.encode() not in journals
    stranger = EncryptedSession("talk", b.below, encryption_key="another key", ttl=DAY)
    assert await stranger.get_items() == []


class Compactor:
    """A client that compacts any conversation into its own summary."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.given: list[list[Any]] = []
        self.meanwhile: Any = None
        self.responses = self

    def summary(self, number: int) -> list[Any]:
        label = f"{self.name}-{number}"
        return [
            {"type": "message", "role": "user", "content": f"summary {label}"},
            {"type": "compaction", "id": f"cmp_{label}", "encrypted_content": "xyz"},
        ]

    async def compact(self, **arguments: Any) -> Any:
        self.given.append(json.loads(json.dumps(arguments.get("input"))))
        if self.meanwhile is not None:
            await self.meanwhile()
        return SimpleNamespace(output=self.summary(len(self.given)), usage=None)


def compacting(below: Any, client: Compactor, decide: Any = lambda _: False) -> Any:
    fake: Any = client
    return OpenAIResponsesCompactionSession(
        "talk", below, client=fake, compaction_mode="input", should_trigger_compaction=decide
    )


FORCE: Any = {"force": True, "compaction_mode": "input"}


def summaries(items: list[Any]) -> list[str]:
    """Return the names of the summaries in a history."""
    return [item["id"] for item in items if item.get("type") == "compaction"]


def split_off(items: list[Any], summary: list[Any]) -> list[Any]:
    """Remove the summary's items, which must be there once and contiguous, and return the other
    items."""
    (start,) = (at for at in range(len(items)) if items[at : at + 2] == summary)
    return items[:start] + items[start + 2 :]


@pytest.fixture
async def compacting_pair(device: Devices) -> tuple[Talker, Talker, Compactor, Compactor]:
    """Make two devices whose runners use a compacting session with two shared turns."""
    clients = {name: Compactor(name) for name in "ab"}
    below = {name: await device(name) for name in "ab"}
    a, b = (Talker(name, below[name], compacting(below[name], clients[name])) for name in "ab")
    await a.run_turn()
    await assert_same_history(a, b)
    await b.run_turn()
    await assert_same_history(a, b)
    return a, b, clients["a"], clients["b"]


@pytest.mark.promise(number=6)
async def test_a_compaction_keeps_concurrent_turns_of_another_device(
    compacting_pair: tuple[Talker, Talker, Compactor, Compactor],
) -> None:
    """A compaction on one device replaces, on all devices, the items that it had seen. Concurrent
    turns of another device survive complete, and both devices go on over the result."""
    a, b, client, _ = compacting_pair
    shared = await a.session.get_items()
    await b.talk(2)
    await a.session.run_compaction(FORCE)
    assert client.given == [shared]
    assert await a.session.get_items() == client.summary(1)
    items = await assert_same_history(a, b)
    check_history(split_off(items, client.summary(1)), "turn-b2", "turn-b3")
    await a.run_turn()
    await assert_same_history(a, b)
    await b.run_turn()
    items = split_off(await assert_same_history(a, b), client.summary(1))
    order = check_history(items, "turn-b2", "turn-b3", "turn-a2", "turn-b4")
    assert order == ["turn-b2", "turn-b3", "turn-a2", "turn-b4"]


async def test_turns_added_during_a_compaction_survive_it(
    compacting_pair: tuple[Talker, Talker, Compactor, Compactor],
) -> None:
    """Turns that another device adds and sends before a compaction and during its request survive
    it, as long as the compacting device has not pulled them."""
    a, b, client, _ = compacting_pair
    await b.run_turn()

    async def later() -> None:
        await b.run_turn()
        await b.below.flush(timeout=PATIENCE)

    client.meanwhile = later
    await a.session.run_compaction(FORCE)
    items = split_off(await assert_same_history(a, b), client.summary(1))
    check_history(items, "turn-b2", "turn-b3")


async def test_concurrent_compactions_on_both_devices_keep_both_summaries(
    compacting_pair: tuple[Talker, Talker, Compactor, Compactor],
) -> None:
    """Both summaries survive complete, the shared turns that both replaced are gone, other turns
    stay, and a later compaction replaces everything everywhere."""
    a, b, first, second = compacting_pair
    await a.session.run_compaction(FORCE)
    await b.session.run_compaction(FORCE)
    await a.run_turn()
    await b.run_turn()
    items = await assert_same_history(a, b)
    assert sorted(summaries(items)) == ["cmp_a-1", "cmp_b-1"]
    rest = split_off(split_off(items, first.summary(1)), second.summary(1))
    check_history(rest, "turn-a2", "turn-b2")
    # A new wrapper: the SDK's wrapper remembers the items of its first compaction and its later
    # additions.
    await compacting(b.below, second).run_compaction(FORCE)
    assert second.given[-1] == items
    assert await b.below.get_items() == await assert_same_history(a, b) == second.summary(2)


async def test_an_automatic_compaction_keeps_turns_of_another_device(device: Devices) -> None:
    """A compaction that the runner starts after a turn, as with a real client, replaces that
    device's turns and keeps the turns that another device took separately."""
    client = Compactor("a")
    below = await device("a")
    armed = [False]
    wrapped = compacting(below, client, lambda _: armed[0])
    a, b = Talker("a", below, wrapped), Talker("b", await device("b"))
    await a.run_turn()
    await assert_same_history(a, b)
    await b.talk(3)
    armed[0] = True
    await a.run_turn(streamed=True)
    assert len(client.given) == 1
    assert await a.session.get_items() == client.summary(1)
    items = split_off(await assert_same_history(a, b), client.summary(1))
    check_history(items, "turn-b1", "turn-b2", "turn-b3")
    armed[0] = False
    await b.run_turn()
    await assert_same_history(a, b)
    await a.run_turn()
    check_calls(await assert_same_history(a, b))


async def test_a_compaction_under_encryption_keeps_turns_of_another_device(
    device: Devices, server: DevServer
) -> None:
    """A runner over encryption over compaction over our session compacts one device's turns and
    keeps the other's, and the server sees no text of the summary."""
    client = Compactor("a")
    below = await device("a")
    a = Talker("a", below, encrypted(compacting(below, client)))
    other = await device("b")
    b = Talker("b", other, encrypted(other))
    await a.run_turn()
    await assert_same_history(a, b)
    await b.talk(2)
    await a.session.run_compaction(FORCE)
    assert [item["call_id"] for item in client.given[0] if "call_id" in item]
    items = split_off(await assert_same_history(a, b), client.summary(1))
    check_history(items, "turn-b1", "turn-b2")
    await a.run_turn()
    await assert_same_history(a, b)
    assert "summary" not in json.dumps(server.memories(AGENT))
