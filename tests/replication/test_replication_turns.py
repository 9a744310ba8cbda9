"""Turns stay whole on all devices while devices write, pause and restart."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pytest
from agents import Agent, RunConfig, Runner, RunState, function_tool
from agents.models.chatcmpl_converter import Converter
from openai.types.responses import ResponseFunctionToolCall

from cached_session import CachedSession, Entry
from tests.replication.devices import PATIENCE, Devices, sync_all
from tests.session.session_support import ScriptedModel

pytestmark = pytest.mark.promise(number=5)

SCHEDULES = 12
STEPS = 30
DEVICES = 3
QUIET = RunConfig(tracing_disabled=True)


class NamedModel(ScriptedModel):
    """A scripted model whose call ids name its exchange."""

    def __init__(self, name: str, *answers: Any) -> None:
        super().__init__(*answers)
        self.name = name

    def _answer(self, given: Any) -> list[Any]:
        items = super()._answer(given)
        for item in items:
            if isinstance(item, ResponseFunctionToolCall):
                item.call_id = f"call of {self.name} #{len(self.seen)}"
        return items


@dataclass
class Exchange:
    """One run of an agent, with a tool that waits and one that needs an approval."""

    name: str
    answers: list[Any]
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[Any] | None = None
    state: str | None = None
    """The stored state of a run that waits for an approval."""
    calls: list[str] = field(default_factory=list)
    """Ids of the calls that wait for an approval."""
    device: int = 0

    def __post_init__(self) -> None:
        @function_tool
        async def wait() -> str:
            """Wait for the gate."""
            await self.gate.wait()
            return f"waited in {self.name}"

        @function_tool(needs_approval=True)
        def pay() -> str:
            """Pay."""
            return f"paid in {self.name}"

        model = NamedModel(self.name, *self.answers, f"answer of {self.name}")
        self.agent = Agent(name="a", model=model, tools=[wait, pay])

    def start(self, given: Any, session: CachedSession, device: int) -> None:
        """Begin or resume the run in a task."""
        self.device, self.state = device, None
        self.task = asyncio.create_task(self._run(given, session))

    async def _run(self, given: Any, session: CachedSession) -> None:
        result = await Runner.run(self.agent, given, session=session, run_config=QUIET)
        if result.interruptions:
            self.calls = [str(each.call_id) for each in result.interruptions]
            self.state = result.to_state().to_string()

    async def resume(self, session: CachedSession, device: int) -> None:
        """Approve the call and go on."""
        assert self.state is not None
        loaded = await RunState.from_string(self.agent, self.state)
        for interruption in loaded.get_interruptions():
            loaded.approve(interruption)
        self.start(loaded, session, device)

    async def stop(self) -> None:
        """Cancel the run, as the end of its process does."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


def turns(entries: list[Entry]) -> list[list[Any]]:
    """Return the items by turn; fail if a turn is torn."""
    found = [list(group) for _, group in groupby(entries, lambda entry: entry.turn)]
    assert len({turn[0].turn for turn in found}) == len(found), "a turn is torn"
    return [[entry.item for entry in turn] for turn in found]


def kinds(items: list[Any]) -> list[str]:
    return [item.get("role") or item["type"] for item in items]


def assert_accepted(items: list[Any]) -> None:
    """Assert that outputs directly follow their calls; calls may wait at the end of a turn."""
    waiting: set[str] = set()
    for message in Converter.items_to_messages(items):
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, kinds(items)
        elif message["role"] == "assistant":
            waiting = {call["id"] for call in message.get("tool_calls") or ()}


WITH_TOOL = ["user", "function_call", "function_call_output", "assistant"]


async def test_another_devices_turn_does_not_land_inside_a_run(device: Devices) -> None:
    """The laptop takes a whole turn while the phone's tool runs."""
    phone, laptop = await device("phone"), await device("laptop")
    slow = Exchange("slow", [("wait", {})])
    slow.start("phone: read the valve", phone, 0)
    await phone_has(phone, 1)
    await sync_all(phone, laptop)
    quick = Exchange("quick", [])
    quick.start("laptop: hello", laptop, 1)
    assert quick.task is not None
    await quick.task
    await sync_all(laptop, phone)
    slow.gate.set()
    assert slow.task is not None
    await slow.task
    await sync_all(phone, laptop)
    for session in (phone, laptop):
        assert [kinds(turn) for turn in turns(await session.entries())] == [
            WITH_TOOL,
            ["user", "assistant"],
        ]


async def phone_has(session: CachedSession, count: int) -> None:
    """Return when the session has so many items."""
    changes = session.changes(await session.entries())
    while len(await session.get_items()) < count:
        await anext(changes)


@pytest.mark.parametrize("where", ["restarted", "elsewhere"])
async def test_an_approved_call_stays_in_its_turn(device: Devices, where: str) -> None:
    """The phone is restarted, or the approval is given on the laptop, after the laptop's turn."""
    phone = await device("phone")
    paying = Exchange("paying", [("pay", {})])
    paying.start("please pay", phone, 0)
    assert paying.task is not None
    await paying.task
    await phone.flush(PATIENCE)
    await phone.close()
    laptop = await device("laptop")
    await Runner.run(Exchange("other", []).agent, "weather?", session=laptop, run_config=QUIET)
    await laptop.flush(PATIENCE)
    phone = await device("phone")
    await paying.resume(phone if where == "restarted" else laptop, 0)
    await paying.task
    await sync_all(phone, laptop)
    for session in (phone, laptop):
        assert [kinds(turn) for turn in turns(await session.entries())] == [
            WITH_TOOL,
            ["user", "assistant"],
        ]
        assert_accepted(await session.get_items())


class Schedule:
    """Random runs, approvals, syncs and restarts on some devices."""

    def __init__(self, seed: int, devices: Devices) -> None:
        self.random = random.Random(seed)
        self.devices = devices
        self.sessions: list[CachedSession] = []
        self.exchanges: list[Exchange] = []

    async def run(self) -> None:
        """Take the steps, then finish everything that can be finished, and compare."""
        self.sessions = [await self.devices(f"d{n}") for n in range(DEVICES)]
        steps = [self.begin, self.begin, self.release, self.approve, *[self.sync] * 3, self.restart]
        for _ in range(STEPS):
            await self.random.choice(steps)()
            await asyncio.sleep(0)
            await self.check()
        for exchange in self.exchanges:
            exchange.gate.set()
            if exchange.task is not None:
                await asyncio.gather(exchange.task, return_exceptions=True)
        await sync_all(*self.sessions)
        await self.check()
        histories = [await session.get_items() for session in self.sessions]
        assert all(history == histories[0] for history in histories)

    async def begin(self) -> None:
        steps = [("wait", {}), ("pay", {})]
        answers = [self.random.choice(steps) for _ in range(self.random.randrange(3))]
        exchange = Exchange(f"<{len(self.exchanges)}>", answers)
        self.exchanges.append(exchange)
        device = self.random.randrange(DEVICES)
        exchange.start(f"question of {exchange.name}", self.sessions[device], device)

    async def release(self) -> None:
        waiting = [each for each in self.exchanges if each.task and not each.task.done()]
        if waiting:
            exchange = self.random.choice(waiting)
            exchange.gate.set()
            assert exchange.task is not None
            await exchange.task

    async def approve(self) -> None:
        """Resume a run on any device that has its call."""
        waiting = [each for each in self.exchanges if each.state is not None]
        if not waiting:
            return
        exchange = self.random.choice(waiting)
        device = self.random.randrange(DEVICES)
        items: list[Any] = await self.sessions[device].get_items()
        if set(exchange.calls) <= {item.get("call_id") for item in items}:
            await exchange.resume(self.sessions[device], device)

    async def sync(self) -> None:
        await self.random.choice(self.sessions).sync(PATIENCE)

    async def restart(self) -> None:
        device = self.random.randrange(DEVICES)
        for exchange in self.exchanges:
            if exchange.device == device:
                await exchange.stop()
        await self.sessions[device].close()
        self.sessions[device] = await self.devices(f"d{device}")

    async def check(self) -> None:
        """Each exchange is one turn, on every device, and a model accepts the history."""
        for session in self.sessions:
            entries = await session.entries()
            names = [
                {each.name for each in self.exchanges for item in turn if each.name in str(item)}
                for turn in turns(entries)
            ]
            assert all(len(found) == 1 for found in names), names
            assert len({name for found in names for name in found}) == len(names), names
            assert_accepted([entry.item for entry in entries])


@pytest.mark.parametrize("seed", range(SCHEDULES))
async def test_runs_are_whole_turns_in_random_schedules(device: Devices, seed: int) -> None:
    """Runs side by side, with tools and approvals, resumed after a restart or on another device."""
    await Schedule(seed, device).run()
