"""A conversation that continues without its server and on a second device: `make demo`.

The Agents SDK's Runner runs an airline agent with function tools. Its model replays a recorded
conversation (`--live`, with OPENAI_API_KEY set, uses a live model). The server is absent at first,
then started, then killed during a turn and restarted; a second device joins in between. Each step
checks its result, and a failed check makes the exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airline_agent import CONVERSATION, Item, Recording
from demo_device import Device, DeviceProcess, DeviceState, Turn
from demo_server import LATENCY_MS, DevServer

TIMEOUT = 30.0  # seconds for one step; a slower one fails


class Report:
    """Prints the steps and their checks, and collects the checks that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def section(self, title: str) -> None:
        """Print the title of a step."""
        print(f"\n{title}\n{'-' * len(title)}")

    def turn(self, device: str, turn: Turn) -> None:
        """Print one question and its answer, a line each."""
        tools = f"   [{', '.join(turn.tools)}]" if turn.tools else ""
        print(f"  {device:>6} > {_line(turn.question)}")
        print(f"         < {_line(turn.reply)}{tools}")

    def note(self, text: str) -> None:
        """Print a line of information."""
        print(f"  {text}")

    def check(self, text: str, true: object, details: Any = "") -> None:
        """Print the result of a check, with details if it failed."""
        print(f"  {'ok    ' if true else 'FAILED'} {text}" + ("" if true else f": {details}"))
        if not true:
            self.failed.append(text)


@dataclass
class Demo:
    """The objects that all steps of the demo share."""

    report: Report
    directory: Path
    live: bool
    recording: Recording = field(default_factory=Recording)
    laptop: DeviceProcess | None = None

    def __post_init__(self) -> None:
        self.questions = self.recording.questions
        self.server = DevServer(self.directory / "server-data")
        self.phone = Device(self.directory / "phone.db", self.server.url, live=self.live)

    async def close(self) -> None:
        """Close both devices and kill the server."""
        if self.laptop is not None:
            await self.laptop.close()
        await self.phone.close()
        self.server.kill()


async def run(demo: Demo) -> None:
    """Run all steps of the demo."""
    try:
        offline = await start_offline(demo)
        synced = await add_server(demo, offline)
        laptop, shared = await add_second_device(demo, synced)
        await kill_server(demo, laptop, shared)
        await read_server_data(demo)
    finally:
        await demo.close()


async def start_offline(demo: Demo) -> DeviceState:
    """Run three turns on the phone without a server; return the state of the phone."""
    report, questions = demo.report, demo.questions[:3]
    report.section("(a) Without a server: the phone works offline")
    for question in questions:
        report.turn("phone", await demo.phone.ask(question))
    await demo.phone.wait_for("offline", TIMEOUT)
    state = await demo.phone.inspect()
    print_device(demo, "phone", state)
    report.check("three turns are in the phone's journal", asked(state) == questions)
    report.check("they are pending", state.pending > 0, state.pending)
    report.check("the state of the session is offline", state.state == "offline", state.state)
    if not demo.live:
        expected = recorded(demo.recording, questions)
        report.check("the history equals the recorded one", state.items == expected)
    return state


async def add_server(demo: Demo, offline: DeviceState) -> DeviceState:
    """Start the server and send the pending turns; return the state of the phone."""
    report, server = demo.report, demo.server
    report.section("(b) The server starts: the phone sends the pending turns")
    await asyncio.to_thread(server.start)
    report.note(f"devserver {server.url}, process {server.pid}, data in {server.data}")
    await demo.phone.session.flush(timeout=TIMEOUT)
    state = await demo.phone.inspect()
    print_device(demo, "phone", state)
    report.check("nothing is pending", state.pending == 0, state.pending)
    report.check("the history of the phone is unchanged", state.items == offline.items)
    stored = [text for _, text in await server.conversation()]
    missing = [q for q in demo.questions[:3] if not any(q in text for text in stored)]
    report.check("the server has every question", not missing, missing)
    compare_speed(report, state, await server.round_trip())
    return state


async def add_second_device(demo: Demo, synced: DeviceState) -> tuple[DeviceProcess, DeviceState]:
    """Continue on a laptop with an empty journal; return it and the history that both share."""
    report, questions, phone = demo.report, demo.questions, demo.phone
    report.section("(c) A second device with an empty journal joins the conversation")
    path = demo.directory / "laptop.db"
    laptop = demo.laptop = await DeviceProcess.start(path, demo.server.url, live=demo.live)
    hydrated = await laptop.inspect()
    report.note(f"the laptop is process {laptop.pid}, the phone is process {os.getpid()}")
    print_device(demo, "laptop", hydrated)
    report.check("the laptop has the whole history", hydrated.items == synced.items)
    for question in questions[3:5]:
        report.turn("laptop", await laptop.ask(question))
    await laptop.sync(TIMEOUT)
    await phone.sync(TIMEOUT)
    together = await phone.inspect()
    report.check("the phone has the laptop's turns", asked(together) == questions[:5])
    report.turn("phone", await phone.ask(questions[5]))
    await phone.sync(TIMEOUT)
    await laptop.sync(TIMEOUT)
    shared = await laptop.inspect()
    report.check("both show one history", shared.items == (await phone.inspect()).items)
    return laptop, shared


async def kill_server(demo: Demo, laptop: DeviceProcess, shared: DeviceState) -> None:
    """Kill the server during a turn, continue on both devices offline, restart and sync."""
    report, server, questions, phone = demo.report, demo.server, demo.questions, demo.phone
    report.section("(d) The server is killed during a turn; both devices continue; it restarts")

    def kill() -> None:
        report.note(f"SIGKILL to process {server.pid} while the phone's agent calls a tool")
        server.kill()

    report.turn("phone", await phone.ask(questions[6], during_tool=kill))
    report.check("the server was killed during that turn", server.pid is None or demo.live)
    server.kill()
    report.turn("phone", await phone.ask(questions[7]))
    for question in questions[8:10]:
        report.turn("laptop", await laptop.ask(question))
    for device in (phone, laptop):
        await device.wait_for("offline", TIMEOUT)
    states = {"phone": await phone.inspect(), "laptop": await laptop.inspect()}
    for name, state in states.items():
        print_device(demo, name, state)
        report.check(f"the {name}'s new turns are pending", state.pending > 0)
        report.check(f"the state of the {name} is offline", state.state == "offline", state.state)
    await asyncio.to_thread(server.start)
    report.note(f"the server runs again: process {server.pid}, with the same data")
    for device in (phone, laptop, phone):
        await device.sync(TIMEOUT)
    check_merged(demo, await phone.inspect(), await laptop.inspect(), shared)


def check_merged(demo: Demo, phone: DeviceState, laptop: DeviceState, shared: DeviceState) -> None:
    """Check that both devices have the same complete history, with each device's turns together."""
    report, questions = demo.report, demo.questions
    print_device(demo, "phone", phone)
    print_device(demo, "laptop", laptop)
    report.check("nothing is pending on either device", phone.pending == laptop.pending == 0)
    report.check("both devices show the same history", phone.items == laptop.items)
    report.check("every question is there once", sorted(asked(phone)) == sorted(questions))
    before = phone.items[: len(shared.items)]
    report.check("the earlier history is unchanged", before == shared.items)
    report.check("offline turns of one device are not mixed", runs_are_whole(phone, questions))
    report.check("every tool call is followed by its output", calls_answered(phone.items))
    if not demo.live:
        same = same_items(phone.items, demo.recording, questions)
        report.check("the history has no other items", same)
    print_history(report, phone)


async def read_server_data(demo: Demo) -> None:
    """Check that the official client reads the conversation from the server in plain text."""
    report = demo.report
    report.section("(e) The data on the server, read with the official dakera client")
    memories = await demo.server.conversation()
    for memory_id, text in reversed(memories[:4]):
        report.note(f"{memory_id[:20]:20}  {_line(text, 90)}")
    report.note(f"... {len(memories)} memories in all")
    missing = [q for q in demo.questions if not any(q in text for _, text in memories)]
    report.check("each question is there in plain text", not missing, missing)
    replies = ["family emergency", "HAT088"]
    unreadable = [r for r in replies if not any(r in text for _, text in memories)]
    report.check("so are answers and tool calls", demo.live or not unreadable, unreadable)


def asked(state: DeviceState) -> list[str]:
    """Return the questions in a history, in order."""
    return [str(item["content"]) for item in state.items if item.get("role") == "user"]


def recorded(recording: Recording, questions: list[str]) -> list[Item]:
    """Return the recorded items of these questions."""
    return [
        item
        for question in questions
        for item in ({"role": "user", "content": question}, *recording.turns[question])
    ]


def same_items(items: list[Item], recording: Recording, questions: list[str]) -> bool:
    """Return whether the history has exactly the recorded items, in any order."""
    found, expected = (
        sorted(json.dumps(item, sort_keys=True) for item in some)
        for some in (items, recorded(recording, questions))
    )
    return found == expected


def runs_are_whole(state: DeviceState, questions: list[str]) -> bool:
    """Return whether turns 7-8 (phone) and 9-10 (laptop) are each adjacent, in either order."""
    order = [questions.index(question) for question in asked(state)[6:]]
    return order in ([6, 7, 8, 9], [8, 9, 6, 7])


def calls_answered(items: list[Item]) -> bool:
    """Return whether each tool call is followed by its output before the next user message."""
    waiting: set[str] = set()
    for item in items:
        if item.get("type") == "function_call":
            waiting.add(item["call_id"])
        elif item.get("type") == "function_call_output":
            waiting.discard(item["call_id"])
        elif item.get("role") == "user" and waiting:
            return False
    return not waiting


def print_device(demo: Demo, name: str, state: DeviceState) -> None:
    """Print the status of a device and the size of its journal."""
    journal = demo.directory / f"{name}.db"
    size = sum(f.stat().st_size for f in journal.parent.glob(journal.name + "*")) / 1024
    demo.report.note(
        f"{name}: {len(asked(state))} turns, {len(state.items)} items, {state.pending} pending, "
        f"{state.parked} parked, {state.state}; {journal} ({size:.0f} KB)"
    )


def compare_speed(report: Report, state: DeviceState, round_trip: float) -> None:
    """Compare the time of a local read with that of a request to the server."""
    report.note(
        f"reading 20 items took {state.read_tail_seconds * 1000:.2f} ms and the whole history "
        f"{state.read_all_seconds * 1000:.2f} ms ({state.state}); a round trip to the server took "
        f"{round_trip * 1000:.1f} ms, including {LATENCY_MS} ms of simulated latency"
    )
    report.check("a read is faster than a round trip", state.read_all_seconds < round_trip)


def print_history(report: Report, state: DeviceState) -> None:
    """Print the history with the writer of each item; each opening of a journal is a writer."""
    report.note("the history:")
    for rank, (item, writer) in enumerate(zip(state.items, state.writers, strict=True)):
        report.note(f"  {rank:>3}  {writer[:6]}  {_summary(item)}")


def _summary(item: Item) -> str:
    if item.get("type") == "function_call":
        return _line(f"calls {item['name']}({item['arguments']})")
    if item.get("type") == "function_call_output":
        return _line(f"  returns {item['output']}")
    content = item["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return _line(f"{item['role']}: {text}")


def _line(text: str, width: int = 84) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def main() -> int:
    """Run the demo in a temporary directory; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--live", action="store_true", help="use a live model (OPENAI_API_KEY)")
    parser.add_argument("--keep", type=Path, help="keep journals and server data in this directory")
    arguments = parser.parse_args()
    if arguments.live and not os.environ.get("OPENAI_API_KEY"):
        parser.error("--live needs OPENAI_API_KEY in the environment")
    report = Report()
    print("One conversation on two devices, with a server that is not always there.")
    print(f"Conversation: {'live' if arguments.live else f'recorded ({CONVERSATION})'}")
    with tempfile.TemporaryDirectory(prefix="cached-session-") as temporary:
        directory = arguments.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        demo = run(Demo(report, directory, arguments.live))
        try:
            asyncio.run(asyncio.wait_for(demo, timeout=600 if arguments.live else 180))
        except Exception as error:  # noqa: BLE001 - any error fails the demo
            traceback.print_exc()
            report.check("the demo ran to its end", False, f"{type(error).__name__}: {error}")
    if report.failed:
        print("\nFailed checks:", *report.failed, sep="\n  - ")
        return 1
    print("\nAll checks passed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
