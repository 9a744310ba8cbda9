"""Hand-written schedules against real processes and a real socket: concurrent combinations of
events of which each alone has its own test."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session.devserver import DevServer, Modes
from tests.replication.devices import (
    BATCH,
    FORGET,
    PATIENCE,
    items_on_server,
    kinds_on_server,
    wait_until,
)

STRICT = Modes(metadata_max_bytes=2000)
HUGE = "x" * 5000


Start = Callable[[str], Awaitable["Peer"]]


class Peer:
    """A process on a journal."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._calls = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            number, told = json.loads(line)
            self._waiting.pop(number).set_result(told)
        for call in self._waiting.values():
            call.cancel()

    def call(self, do: str, *words: Any) -> asyncio.Future[Any]:
        """Start a call immediately, and return its result."""
        assert self.process.stdin is not None
        self._calls += 1
        told = self._waiting[self._calls] = asyncio.get_running_loop().create_future()
        self.process.stdin.write(json.dumps([self._calls, do, words]).encode() + b"\n")
        return told

    async def kill(self) -> None:
        """Kill the process with ``kill -9``."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader


@pytest.fixture
async def start(server: DevServer, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts processes on journals by name, and kills them at the end."""
    peers: list[Peer] = []

    async def new(name: str) -> Peer:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.replication.command_process"),
            *(str(tmp_path / f"{name}.db"), server.url),
            cwd=Path(__file__).parents[2],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        peers.append(Peer(process))
        await asyncio.wait_for(peers[-1].call("items"), PATIENCE)
        return peers[-1]

    yield new
    for peer in peers:
        await peer.kill()


async def assert_agreement(
    server: DevServer, *peers: Peer, seconds: float = PATIENCE, audited: bool = False
) -> list[str]:
    """Assert after the faults that every process shows the same and that the server holds it.
    ``audited``: audit first, for requests without an answer that may have stored something that no
    device shows."""

    async def same() -> list[str] | bool:
        if audited:
            await asyncio.gather(*(peer.call("audit") for peer in peers))
        shown = [await peer.call("items") for peer in peers]
        states = [await peer.call("status") for peer in peers]
        settled = all(state == [0, 0, 0, 0, 0] for state in states)
        held = sorted(items_on_server(server)) == sorted(shown[0])
        return [shown[0]] if settled and held and all(s == shown[0] for s in shown) else False

    try:
        (found,) = await wait_until(same, seconds)
    except AssertionError:
        raise AssertionError(
            [
                items_on_server(server),
                *[(await peer.call("items"), await peer.call("status")) for peer in peers],
            ]
        ) from None
    return list(found)


def back_up(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as conn, closing(sqlite3.connect(target)) as other:
        conn.backup(other)


async def sync(*peers: Peer) -> None:
    for _ in range(2):
        for peer in peers:
            await peer.call("sync")


async def test_a_concurrent_clear_claim_and_retry_agree(server: DevServer, start: Start) -> None:
    """One device clears, another claims the last item on the server, and a second process of the
    first retries a parked operation. No item that the clear had seen is left, the claimed item is
    given at most once, and all agree."""
    a, a2, b = await start("a"), await start("a"), await start("b")
    server.modes = STRICT
    await a.call("add", "one", "two")
    await a2.call("add", "kept back", HUGE)
    await sync(a, a2, b)
    assert (await a.call("status"))[1] == 1
    await b.call("add", "last")
    await sync(b, a)
    server.modes = Modes()
    slow = server.faults.latency(0.02, route=FORGET)
    got = await asyncio.gather(b.call("claim"), a.call("clear"), a2.call("retry"), b.call("claim"))
    slow.remove()
    await b.call("add", "afterwards")
    shown = await assert_agreement(server, a, a2, b)
    given = [item for item in (got[0], got[3]) if isinstance(item, str)]
    assert shown == ["afterwards"]
    assert max(Counter(given).values(), default=1) == 1
    assert set(given) <= {"one", "two", "last", "kept back", HUGE}


@pytest.mark.promise(number=9)
async def test_a_journal_copied_during_a_push_stores_everything_once(
    server: DevServer, start: Start, tmp_path: Path
) -> None:
    """SQLite's backup copies a journal while its requests are under way, and the original process
    is killed. The copy works beside the next process of the original, and every item is stored
    once."""
    a = await start("a")
    await a.call("add", "before")
    await a.call("sync")
    slow = server.faults.latency(0.4, after_commit=True, route=BATCH)
    lost = server.faults.lose_response(route=BATCH, skip=1, count=1)
    await asyncio.gather(*(a.call("add", f"word {number}") for number in range(20)))
    await wait_until(lambda: slow.fired)  # a request is under way
    back_up(tmp_path / "a.db", tmp_path / "copy.db")
    await a.kill()
    again, copy = await start("a"), await start("copy")
    await asyncio.gather(
        again.call("add", "the original goes on"), copy.call("add", "the copy goes on")
    )
    popped, also = await asyncio.gather(again.call("pop"), copy.call("pop"))
    slow.remove()
    lost.remove()
    shown = await assert_agreement(server, again, copy, await start("late"))
    assert {popped, also} <= {"the original goes on", "the copy goes on"}
    expected = {"before", *(f"word {number}" for number in range(20))}
    assert Counter(shown) == Counter(
        expected | {"the original goes on", "the copy goes on"} - {popped, also}
    )
    assert not set(await again.call("writers")) - set(await copy.call("writers"))


@pytest.mark.parametrize("carried_out", [False, True])
async def test_a_kill_between_a_claim_and_its_pop_gives_the_item_at_most_once(
    server: DevServer, start: Start, *, carried_out: bool
) -> None:
    """The process that replicates is killed during the request of a claim. Another process of the
    journal takes over, and other devices want the same item: it is given at most once, and no
    device waits for the killed process."""
    a, a2, b = await start("a"), await start("a"), await start("b")
    await a.call("add", "one", "two")
    await sync(a, b)
    fault = server.faults.latency(2.5, after_commit=carried_out, route=FORGET, count=1)
    pending = a.call("claim")
    await wait_until(lambda: kinds_on_server(server).count("claim") == 1)
    if carried_out:
        await wait_until(lambda: items_on_server(server) == ["one"])
    await a.kill()
    assert pending.cancelled()
    fault.remove()
    got = []
    for _ in range(4):
        got += await asyncio.gather(b.call("claim"), a2.call("claim"))
        await a2.call("add", "more")
        await asyncio.sleep(0.1)
    given = [item for item in got if item in ("one", "two")]
    assert max(Counter(given).values(), default=1) == 1
    shown = await assert_agreement(server, a2, b, await start("late"), audited=True)
    assert not set(given) & set(shown)
    assert Counter(shown)["one"] + Counter(given)["one"] <= 1


async def test_an_operation_dropped_on_one_copy_and_retried_on_another_is_shown(
    server: DevServer, start: Start, tmp_path: Path
) -> None:
    """Of two copies of a journal with a parked operation, one drops it and the other sends it once
    the server accepts it. Both show it, as it is on the server."""
    a = await start("a")
    server.modes = STRICT
    await a.call("add", "one")
    await a.call("add", HUGE)
    await a.call("sync")
    assert (await a.call("status"))[:2] == [0, 1]
    back_up(tmp_path / "a.db", tmp_path / "copy.db")
    copy = await start("copy")
    server.modes = Modes()
    dropped, _ = await asyncio.gather(a.call("drop"), copy.call("retry"))
    assert dropped == 1
    assert await assert_agreement(server, a, copy, await start("late")) == ["one", HUGE]


async def test_a_server_restored_under_load_brings_nothing_back(
    server: DevServer, start: Start
) -> None:
    """A server is restored from an old backup while one device claims, one replaces items and one
    clears nothing. After concurrent audits nothing that was removed is back, and nothing that was
    added is lost."""
    a, b, c = await start("a"), await start("b"), await start("c")
    await a.call("add", "1", "2", "3", "4")
    await sync(a, b, c)
    old = server.snapshot()
    taken = await b.call("claim")
    await c.call("add", "5")
    await sync(b, c, a)
    replaced = await a.call("replace", 2, "summary")
    await sync(a, b, c)
    server.restore(old)
    also, _ = await asyncio.gather(c.call("claim"), a.call("add", "6"))
    for _ in range(3):
        await asyncio.gather(a.call("audit"), b.call("audit"), c.call("audit"))
        await sync(a, b, c)
    shown = await assert_agreement(server, a, b, c, await start("late"))
    assert taken == "4"
    assert taken != also
    assert replaced == ["1", "2"]
    gone = {taken, also, *replaced}
    assert Counter(shown) == Counter({"3", "5", "summary", "6"} - gone)
