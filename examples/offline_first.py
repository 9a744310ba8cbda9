"""A conversation that outlives its server, and its device: `make demo`.

A real Agents SDK agent with function tools, run by the real Runner, talks to a customer of an
airline. Its model replays a recorded conversation (`--live`, with OPENAI_API_KEY set, uses a live
one). On the way there is no server, then one, then a second device, then the server is killed in
mid-turn and comes back. Each step says what it claims; an untrue claim makes the exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from airline_agent import CONVERSATION, Item, Recording
from demo_device import Device, DeviceProcess, Look, Turn
from demo_server import LATENCY_MS, DevServer

PATIENCE = 30.0  # seconds that a step may take before it counts as untrue


class Story:
    """Tells what happens, and keeps count of what was not true."""

    def __init__(self) -> None:
        self.untrue: list[str] = []

    def chapter(self, title: str) -> None:
        """A new step."""
        print(f"\n{title}\n{'-' * len(title)}")

    def turn(self, device: str, turn: Turn) -> None:
        """One question and its answer, a line each."""
        tools = f"   [{', '.join(turn.tools)}]" if turn.tools else ""
        print(f"  {device:>6} > {_line(turn.question)}")
        print(f"         < {_line(turn.reply)}{tools}")

    def fact(self, text: str) -> None:
        """Something worth knowing."""
        print(f"  {text}")

    def claim(self, text: str, true: object, otherwise: Any = "") -> None:
        """Something that must be true."""
        print(f"  {'ok  ' if true else 'NOT TRUE '} {text}" + ("" if true else f": {otherwise}"))
        if not true:
            self.untrue.append(text)


async def tell(story: Story, directory: Path, *, live: bool) -> None:
    """The four steps of the story, and what a stranger finds on the server afterwards."""
    recording = Recording()
    questions = recording.questions
    server = DevServer(directory / "server-data")
    phone = Device(directory / "phone.db", server.url, live=live)
    laptop: DeviceProcess | None = None
    try:
        story.chapter("(a) No server at all: the phone talks on")
        for question in questions[:3]:
            story.turn("phone", await phone.ask(question))
        await phone.wait_for("offline", PATIENCE)
        alone = await phone.look()
        report(story, "phone", alone, directory / "phone.db")
        story.claim("three turns are in the phone's journal", asked(alone) == questions[:3])
        story.claim("they wait for a server", alone.pending > 0, alone.pending)
        story.claim("the session knows that it is offline", alone.state == "offline", alone.state)
        if not live:
            expected = recorded(recording, questions[:3])
            story.claim("the history is the recorded one, item for item", alone.items == expected)

        story.chapter("(b) A server appears: everything arrives")
        await asyncio.to_thread(server.start)
        story.fact(f"devserver {server.url}, process {server.pid}, data in {server.data}")
        await phone.session.flush(timeout=PATIENCE)
        arrived = await phone.look()
        round_trip = await server.round_trip()
        report(story, "phone", arrived, directory / "phone.db")
        story.claim("nothing is pending", arrived.pending == 0, arrived.pending)
        story.claim("the phone's own history is as it was", arrived.items == alone.items)
        said = [text for _, text in await server.conversation()]
        missing = [q for q in questions[:3] if not any(q in text for text in said)]
        story.claim("the server has what was said", not missing, missing)
        compare_speed(story, arrived, round_trip)

        story.chapter("(c) A second device, an empty journal: the same conversation")
        laptop = await DeviceProcess.start(directory / "laptop.db", server.url, live=live)
        hydrated = await laptop.look()
        story.fact(f"the laptop is process {laptop.pid}, this phone is process {os.getpid()}")
        report(story, "laptop", hydrated, directory / "laptop.db")
        story.claim("the laptop knows all that was said", hydrated.items == arrived.items)
        for question in questions[3:5]:
            story.turn("laptop", await laptop.ask(question))
        await laptop.sync(PATIENCE)
        await phone.sync(PATIENCE)
        together = await phone.look()
        story.claim("the phone has the laptop's turns", asked(together) == questions[:5])
        story.turn("phone", await phone.ask(questions[5]))
        await phone.sync(PATIENCE)
        await laptop.sync(PATIENCE)
        shared = await laptop.look()
        story.claim("both show one history", shared.items == (await phone.look()).items)

        story.chapter("(d) The server is killed in mid-turn; both devices go on; it comes back")

        def power_cut() -> None:
            story.fact(f"SIGKILL to process {server.pid}, while the phone's agent uses a tool")
            server.kill()

        story.turn("phone", await phone.ask(questions[6], meanwhile=power_cut))
        story.claim("the server was killed within that turn", server.pid is None or live)
        server.kill()
        story.turn("phone", await phone.ask(questions[7]))
        for question in questions[8:10]:
            story.turn("laptop", await laptop.ask(question))
        for device in (phone, laptop):
            await device.wait_for("offline", PATIENCE)
        phone_apart, laptop_apart = await phone.look(), await laptop.look()
        report(story, "phone", phone_apart, directory / "phone.db")
        report(story, "laptop", laptop_apart, directory / "laptop.db")
        story.claim("the phone keeps its turns for later", phone_apart.pending > 0)
        story.claim("so does the laptop", laptop_apart.pending > 0)
        both_know = phone_apart.state == laptop_apart.state == "offline"
        story.claim("both know that they are offline", both_know)
        compare_speed(story, phone_apart, round_trip)

        await asyncio.to_thread(server.start)
        story.fact(f"the server is back: process {server.pid}, the same data")
        for device in (phone, laptop, phone):
            await device.sync(PATIENCE)
        on_phone, on_laptop = await phone.look(), await laptop.look()
        report(story, "phone", on_phone, directory / "phone.db")
        report(story, "laptop", on_laptop, directory / "laptop.db")
        story.claim("nothing is pending anywhere", on_phone.pending == on_laptop.pending == 0)
        story.claim("both devices show one identical history", on_phone.items == on_laptop.items)
        story.claim("every question is there once", sorted(asked(on_phone)) == sorted(questions))
        shared_length = len(shared.items)
        story.claim(
            "what was shared before stays before", on_phone.items[:shared_length] == shared.items
        )
        story.claim("what each said apart stays together", apart_in_one_piece(on_phone, questions))
        story.claim("every tool call is followed by its output", calls_answered(on_phone.items))
        if not live:
            story.claim("nothing else crept in", same_items(on_phone.items, recording, questions))
        show_history(story, on_phone)

        story.chapter("What a stranger finds on the server, with the official dakera client")
        memories = await server.conversation()
        for memory_id, text in reversed(memories[:4]):
            story.fact(f"{memory_id[:20]:20}  {_line(text, 90)}")
        story.fact(f"... {len(memories)} memories in all")
        missing = [q for q in questions if not any(q in text for _, text in memories)]
        story.claim("each question can be read in plain text", not missing, missing)
        replies = ["family emergency", "HAT088"]
        unreadable = [r for r in replies if not any(r in text for _, text in memories)]
        story.claim("so can answers and tool calls", live or not unreadable, unreadable)
    finally:
        if laptop is not None:
            await laptop.close()
        await phone.close()
        server.kill()


def asked(look: Look) -> list[str]:
    """The questions in a history, in order."""
    return [str(item["content"]) for item in look.items if item.get("role") == "user"]


def recorded(recording: Recording, questions: list[str]) -> list[Item]:
    """What the recording holds for these questions."""
    return [
        item
        for question in questions
        for item in ({"role": "user", "content": question}, *recording.turns[question])
    ]


def same_items(items: list[Item], recording: Recording, questions: list[str]) -> bool:
    """Whether the history holds exactly the recorded items, whatever their order."""
    found, expected = (
        sorted(json.dumps(item, sort_keys=True) for item in some)
        for some in (items, recorded(recording, questions))
    )
    return found == expected


def apart_in_one_piece(look: Look, questions: list[str]) -> bool:
    """Whether 7-8 (the phone's) and 9-10 (the laptop's) each stand together, in either order."""
    order = [questions.index(question) for question in asked(look)[6:]]
    return order in ([6, 7, 8, 9], [8, 9, 6, 7])


def calls_answered(items: list[Item]) -> bool:
    """Whether each tool call has its output behind it, before anybody says another word."""
    waiting: set[str] = set()
    for item in items:
        if item.get("type") == "function_call":
            waiting.add(item["call_id"])
        elif item.get("type") == "function_call_output":
            waiting.discard(item["call_id"])
        elif item.get("role") == "user" and waiting:
            return False
    return not waiting


def report(story: Story, device: str, look: Look, journal: Path) -> None:
    """What a person wants to see."""
    size = sum(f.stat().st_size for f in journal.parent.glob(journal.name + "*")) / 1024
    story.fact(
        f"{device}: {len(asked(look))} turns, {len(look.items)} items, {look.pending} pending, "
        f"{look.parked} parked, {look.state}; {journal} ({size:.0f} KB)"
    )


def compare_speed(story: Story, look: Look, round_trip: float) -> None:
    """How long a read takes here, beside asking the server."""
    story.fact(
        f"reading 20 items took {look.read_tail_seconds * 1000:.2f} ms and the whole history "
        f"{look.read_all_seconds * 1000:.2f} ms ({look.state}); a round trip to the server "
        f"{round_trip * 1000:.1f} ms (of which {LATENCY_MS} ms are simulated distance)"
    )
    story.claim("a read costs less than a round trip", look.read_all_seconds < round_trip)


def show_history(story: Story, look: Look) -> None:
    """The one history, with the writer (one opening of a journal) of each item."""
    story.fact("the one history:")
    for rank, (item, writer) in enumerate(zip(look.items, look.writers, strict=True)):
        story.fact(f"  {rank:>3}  {writer[:6]}  {_gist(item)}")


def _gist(item: Item) -> str:
    if item.get("type") == "function_call":
        return _line(f"calls {item['name']}({item['arguments']})")
    if item.get("type") == "function_call_output":
        return _line(f"  gives {item['output']}")
    content = item["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return _line(f"{item['role']}: {text}")


def _line(text: str, width: int = 84) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def main() -> int:
    """Run the story in a temporary directory and judge it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--live", action="store_true", help="a live model (OPENAI_API_KEY)")
    parser.add_argument("--keep", type=Path, help="keep journals and server data in this directory")
    arguments = parser.parse_args()
    if arguments.live and not os.environ.get("OPENAI_API_KEY"):
        parser.error("--live needs OPENAI_API_KEY in the environment")
    story = Story()
    print("One conversation, two devices, and a server that comes and goes.")
    print(f"Conversation: {'live' if arguments.live else f'recorded ({CONVERSATION})'}")
    with tempfile.TemporaryDirectory(prefix="cached-session-") as temporary:
        directory = arguments.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        telling = tell(story, directory, live=arguments.live)
        try:
            asyncio.run(asyncio.wait_for(telling, timeout=600 if arguments.live else 180))
        except Exception as error:  # noqa: BLE001 - whatever it was, the story did not come true
            traceback.print_exc()
            story.claim("the story came to its end", False, f"{type(error).__name__}: {error}")
    if story.untrue:
        print(f"\n{len(story.untrue)} of the claims were not true:", *story.untrue, sep="\n  - ")
        return 1
    print("\nAll of it was true.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
