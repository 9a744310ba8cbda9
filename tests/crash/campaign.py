"""Thousands of kills: ``python -m tests.crash.campaign --kills 3000 --seed 0``.

A child writes, reads, pops and flushes against a development server, and reports through a pipe
each call that it begins and each acknowledged one. It is killed with SIGKILL at a random time or at
a marked point: before and after each commit, request, ack and forget. After each kill another child
opens the journal, and must find exactly what was acknowledged, with or without the one call that
was under way. In the end the server must hold the same history. Children are forks of this process,
which has imported everything and opened nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dakera  # noqa: F401 - once, not in each child

from cached_session import CachedSession, SyncOptions
from cached_session.journal.tables import outbox
from cached_session.journal.writer import Writer
from cached_session.remote.dakera import DakeraRemote

OPTIONS = SyncOptions(push_delay=0.001, watch_interval=0.05, backoff_base=0.05, close_timeout=5.0)
POINTS = ("commit", "send", "ack", "forget")
SERVER = "from cached_session.devserver import serve\nserve(port=0, data=None, log=False)\n"
LONGEST = 60.0


class Trap:
    """Kills this process at the n-th pass of a marked point."""

    def __init__(self, point: str, when: str, count: int) -> None:
        self.point, self.when, self.left = point, when, count

    def passing(self, point: str, when: str) -> None:
        if (point, when) == (self.point, self.when):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str, point: str) -> None:
        inner = getattr(owner, name)
        if asyncio.iscoroutinefunction(inner):

            async def later(*args: Any, **kwargs: Any) -> Any:
                self.passing(point, "before")
                result = await inner(*args, **kwargs)
                self.passing(point, "after")
                return result

            setattr(owner, name, later)
            return

        def now(*args: Any, **kwargs: Any) -> Any:
            self.passing(point, "before")
            result = inner(*args, **kwargs)
            self.passing(point, "after")
            return result

        setattr(owner, name, now)

    def lay(self) -> None:
        """Install the marks, in this child only."""
        self.around(Writer, "_transaction", "commit")
        self.around(outbox, "acknowledge", "ack")
        self.around(outbox, "delete_forgets", "forget")
        for name, thing in list(vars(DakeraRemote).items()):
            if not name.startswith("_") and asyncio.iscoroutinefunction(thing):
                self.around(DakeraRemote, name, "send")


async def work(journal: str, url: str, seed: int, tell: Callable[..., None]) -> None:
    """Run the calls of the child until it is killed."""
    chance = random.Random(seed)
    session = CachedSession.from_url("s", url=url, journal=journal, options=OPTIONS, hydrate=False)
    for number in range(1_000_000):
        what = chance.choices(["add", "pop", "clear", "read", "flush"], [10, 4, 0.3, 3, 2])[0]
        if what == "add":
            batch = [f"{seed}.{number}.{index}" for index in range(chance.choice([1, 1, 2, 5]))]
            tell("begin", "add", batch)
            await session.add_items([{"role": "user", "content": word} for word in batch])
            tell("end", None)
        elif what == "pop":
            tell("begin", "pop", None)
            item: Any = await session.pop_item()
            tell("end", None if item is None else item["content"])
        elif what == "clear":
            tell("begin", "clear", None)
            await session.clear_session()
            tell("end", None)
        elif what == "read":
            tell("read", [item["content"] for item in await session.get_items(5)])  # type: ignore[index,typeddict-item]
        else:
            await session.flush(timeout=10)
            tell("flushed")


def after(state: list[str], what: str, batch: list[str] | None) -> list[str]:
    if what == "add":
        return [*state, *(batch or [])]
    return state[:-1] if what == "pop" else []


def forked(run: Callable[[Callable[..., None]], Any]) -> tuple[int, int]:
    """Fork a child that runs a function and reports lines, and return its process id and the pipe's
    end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    status = 1
    try:
        os.close(read)

        def tell(*values: Any) -> None:
            os.write(write, json.dumps(values).encode() + b"\n")

        asyncio.run(run(tell))
        status = 0
    except BaseException as error:  # noqa: BLE001 - told to the parent
        os.write(write, json.dumps(["error", repr(error)]).encode() + b"\n")
    finally:
        os._exit(status)


def lines(fd: int, pid: int, kill_after: float | None) -> list[list[Any]]:
    """Return the lines of a child until it ends. Kill it after a while, if it has not killed
    itself."""
    until = time.monotonic() + (LONGEST if kill_after is None else kill_after)
    data, killed = b"", False
    while True:
        left = until - time.monotonic()
        if left <= 0 and not killed:
            os.kill(pid, signal.SIGKILL)
            killed = True
        ready, _, _ = select.select([fd], [], [], max(0.0, left) if not killed else LONGEST)
        if ready:
            more = os.read(fd, 1 << 16)
            if not more:
                break
            data += more
    os.close(fd)
    _, status = os.waitpid(pid, 0)
    found = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        found.append(["error", "it ended by itself"])
    return found


def look(journal: str) -> list[str]:
    async def read(tell: Callable[..., None]) -> None:
        async with CachedSession("s", journal=journal) as session:
            tell([item["content"] for item in await session.get_items()])  # type: ignore[index,typeddict-item]

    pid, fd = forked(read)
    (told,) = lines(fd, pid, None)
    return list(told[0]) if told[0] != "error" else [f"error: {told}"]


def push_and_read(journal: str, url: str) -> list[list[str]]:
    """Push the rest, and read what a new device gets from the server."""

    async def run(tell: Callable[..., None]) -> None:
        async with CachedSession.from_url("s", url=url, journal=journal, options=OPTIONS) as mine:
            await mine.sync(timeout=40)
            tell([item["content"] for item in await mine.get_items()])  # type: ignore[index,typeddict-item]
        async with CachedSession.from_url(
            "s", url=url, journal=":memory:", options=OPTIONS
        ) as other:
            await other.sync(timeout=40)
            tell([item["content"] for item in await other.get_items()])  # type: ignore[index,typeddict-item]

    pid, fd = forked(run)
    return [told[0] if told[0] != "error" else told for told in lines(fd, pid, None)]


class HistoryMismatch(AssertionError):
    """An acknowledged item is missing, or an item is there that was never written."""


def check_after_kill(
    state: list[str], told: list[list[Any]], found: list[str]
) -> tuple[list[str], int]:
    """Check the state after a kill, and return the number of acknowledged calls."""
    under_way: tuple[str, Any] | None = None
    acknowledged = 0
    for kind, *rest in told:
        if kind == "error":
            raise HistoryMismatch(f"the victim failed: {rest}")
        if kind == "begin":
            under_way = (rest[0], rest[1])
        elif kind == "end" and under_way is not None:
            if under_way[0] == "pop" and rest[0] != (state[-1] if state else None):
                raise HistoryMismatch(f"popped {rest[0]}, the last was {state[-1:]}")
            state = after(state, *under_way)
            under_way = None
            acknowledged += 1
        elif kind == "read" and rest[0] != state[-5:]:
            raise HistoryMismatch(f"read {rest[0]}, acknowledged was {state[-5:]}")
    if found == state:
        return state, acknowledged
    if under_way is not None and found == after(state, *under_way):
        return found, acknowledged
    raise HistoryMismatch(f"acknowledged {state[-20:]}, under way {under_way}, found {found[-20:]}")


def campaign(kills: int, seed: int, start: int = 0, round_kills: int = 50) -> Counter[str]:
    """Run a number of kills, from number ``start``, and return the tally. The seed and the number
    decide each. Raises `HistoryMismatch` with both."""
    tally: Counter[str] = Counter()
    done, kills = start, start + kills
    while done < kills:
        with (
            tempfile.TemporaryDirectory() as place,
            subprocess.Popen(
                [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
            ) as server,
        ):
            try:
                assert server.stdout is not None
                url = server.stdout.readline().split()[-1]
                journal, state = str(Path(place) / "j.db"), list[str]()
                for _ in range(min(round_kills, kills - done)):
                    number = seed * 1_000_000 + done
                    chance = random.Random(number)
                    point = chance.choice([*POINTS, "random", "random"])
                    if point == "random":
                        trap, delay = None, chance.uniform(0.0, 0.4)
                    else:
                        when = chance.choice(["before", "after"])
                        trap, delay = Trap(point, when, chance.randint(1, 12)), 3.0
                        point = f"{when} {point}"

                    async def victim(
                        tell: Callable[..., None],
                        trap: Trap | None = trap,
                        number: int = number,
                        journal: str = journal,
                        url: str = url,
                    ) -> None:
                        if trap is not None:
                            trap.lay()
                        await work(journal, url, number, tell)

                    pid, fd = forked(victim)
                    told = lines(fd, pid, delay)
                    try:
                        state, acknowledged = check_after_kill(state, told, look(journal))
                    except HistoryMismatch as lost:
                        shutil.copytree(place, f"{tempfile.gettempdir()}/lost-{number}")
                        raise HistoryMismatch(
                            f"seed {seed}, kill {done} ({point}): {lost}"
                        ) from None
                    tally["acknowledged calls"] += acknowledged
                    tally[f"killed at: {point}"] += 1
                    done += 1
                both = push_and_read(journal, url)
                if both != [state, state]:
                    raise HistoryMismatch(
                        f"seed {seed}, after kill {done}: {both} is not twice {state}"
                    )
                tally["rounds in which the server agreed"] += 1
            finally:
                server.kill()
    tally["kills"] = kills - start
    return tally


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="go on from this one: n times 50")
    given = parser.parse_args()
    began = time.monotonic()
    tally = campaign(given.kills, given.seed, given.start)
    for what, count in sorted(tally.items()):
        print(f"{count:8} {what}")
    print(f"{time.monotonic() - began:8.0f} seconds, nothing lost")


if __name__ == "__main__":
    main()
