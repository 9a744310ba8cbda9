from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cached_session import SyncTimeout
from cached_session.testing import DevServer, FaultLab, ManualClock, Network, havoc

PATIENCE = 60.0


def said(*words: object) -> list[Any]:
    return [{"role": "user", "content": str(word)} for word in words]


async def words(session: Any) -> list[str]:
    return [item["content"] for item in await session.get_items()]


async def test_a_session_works_while_its_line_is_cut(fault_lab: FaultLab) -> None:
    """Items added during a cut stay pending, and are on the server once the line works again."""
    async with fault_lab.session("talk") as session:
        with fault_lab.network().cut():
            await session.add_items(said("hello"))
            with pytest.raises(SyncTimeout):
                await session.flush(timeout=0.3)
            assert session.status().pending == 1
            assert fault_lab.server.agents() == []
        await session.flush(timeout=PATIENCE)
        assert session.status().pending == 0
        (agent,) = fault_lab.server.agents()
        assert len(fault_lab.server.memories(agent)) == 1


async def test_a_partition_cuts_one_device_and_not_the_other(fault_lab: FaultLab) -> None:
    """Each device has a line and a journal of its own, and afterwards both show one history."""
    async with (
        fault_lab.session("talk", "laptop") as laptop,
        fault_lab.session("talk", "phone") as phone,
    ):
        with fault_lab.network("phone").cut():
            await laptop.add_items(said("from the laptop"))
            await phone.add_items(said("from the phone"))
            await laptop.flush(timeout=PATIENCE)
            with pytest.raises(SyncTimeout):
                await phone.sync(timeout=0.3)
            assert await words(phone) == ["from the phone"]
        await phone.sync(timeout=PATIENCE)
        await laptop.sync(timeout=PATIENCE)
        assert sorted(await words(laptop)) == ["from the laptop", "from the phone"]
        assert await words(laptop) == await words(phone)


def test_a_stalled_line_gives_no_answer_and_delivers_later(fault_lab: FaultLab) -> None:
    """Only a timeout distinguishes a stalled line from a slow one, and a restored one answers."""
    network = fault_lab.network()
    with httpx.Client(base_url=network.url) as client:
        with network.stall(), pytest.raises(httpx.TimeoutException):
            client.get("/health", timeout=0.2)
        assert client.get("/health", timeout=PATIENCE).status_code == 200


def test_a_slowed_line_delays_both_directions(fault_lab: FaultLab) -> None:
    """A request and its answer are each delayed."""
    network = fault_lab.network()
    with httpx.Client(base_url=network.url) as client:
        client.get("/health")
        with network.slow(0.1):
            began = time.monotonic()
            client.get("/health")
            assert time.monotonic() - began >= 0.2
        assert network.url != fault_lab.server.url


def test_cut_connections_are_reset_and_new_ones_refused(fault_lab: FaultLab) -> None:
    """`disconnect` resets open connections, and `cut` also refuses new ones until the line is
    restored."""
    network = fault_lab.network()
    where = urlsplit(network.url)
    with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as connected:
        connected.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connected.recv(4096)
        network.disconnect()
        with pytest.raises(ConnectionResetError):
            connected.recv(4096)
    assert httpx.get(f"{network.url}/health").status_code == 200
    network.cut()
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{network.url}/health")
    network.mend()
    assert httpx.get(f"{network.url}/health").status_code == 200


async def test_a_manual_clock_ends_a_long_pause_immediately(timeless_fault_lab: FaultLab) -> None:
    """The server asks for a pause of an hour, and the test advances the clock by an hour."""
    lab = timeless_fault_lab
    async with lab.session("talk") as session:
        await session.add_items(said("hello"))
        # For every request: a pull must not use the fault up before the push.
        with lab.faults.unavailable(retry_after=3600):
            while session.status().retry_in is None:
                with pytest.raises(SyncTimeout):
                    await session.flush(timeout=0.5)
        retry_in = session.status().retry_in
        assert retry_in is not None
        assert retry_in > 3000
        lab.clock.advance(2 * retry_in)  # a device retries a little later than it was asked to
        await session.flush(timeout=PATIENCE)
        assert session.status().pending == 0
        age = lab.clock.now() - lab.server.clock.now()
        assert age == pytest.approx(0)


def test_a_manual_clock_stands_still_and_never_goes_back() -> None:
    """Wall and monotonic time advance together, and only the wall clock can be set to a wrong
    time."""
    clock = ManualClock(start=1000.0)
    runtime = clock.runtime()
    assert (runtime.wall_ms(), runtime.monotonic()) == (1_000_000, 0.0)
    clock.advance(2.5)
    assert (runtime.wall_ms(), runtime.monotonic()) == (1_002_500, 2.5)
    clock.set(0.0)
    assert (runtime.wall_ms(), runtime.monotonic()) == (0, 2.5)
    with pytest.raises(ValueError, match="goes back"):
        clock.advance(-1)


async def test_havoc_loses_and_duplicates_nothing(fault_lab: FaultLab) -> None:
    """Two devices write while lines and server fail, and in the end both show each item once."""
    async with (
        fault_lab.session("talk", "laptop") as laptop,
        fault_lab.session("talk", "phone") as phone,
    ):
        with fault_lab.havoc(seed=7, pause=0.05) as story:
            number = 0
            while len(story.done) < 8:
                await laptop.add_items(said(f"laptop {number}"))
                await phone.add_items(said(f"phone {number}"))
                number += 1
                with pytest.raises((SyncTimeout, TimeoutError)):
                    await laptop.flush(timeout=0.0)
        assert story.failed is None
        await laptop.sync(timeout=PATIENCE)
        await phone.sync(timeout=PATIENCE)
        await laptop.sync(timeout=PATIENCE)
        spoken = {f"{who} {n}" for who in ("laptop", "phone") for n in range(number)}
        assert sorted(await words(laptop)) == sorted(spoken), story.done
        assert await words(laptop) == await words(phone)


def test_havoc_takes_the_same_steps_for_the_same_seed() -> None:
    """The steps of a seed are the same on every machine, and the last one ends all faults."""
    with DevServer() as server, Network(server.url) as network:
        stories = []
        for _ in range(2):
            with havoc(server, [network], seed=3, pause=0.02) as story:
                while len(story.done) < 4:
                    time.sleep(0.005)
            stories.append(story.done[:4])
            assert httpx.get(f"{network.url}/health").status_code == 200
        assert stories[0] == stories[1]
        assert server.faults.active() == []


def test_havoc_refuses_unknown_faults() -> None:
    """A misspelt fault raises an error."""
    with (
        DevServer() as server,
        Network(server.url) as network,
        pytest.raises(ValueError, match="cutt"),
        havoc(server, [network], faults=("cutt",)),
    ):
        pass


def test_a_lab_leaves_no_thread_and_no_file(tmp_path: Path) -> None:
    """Everything that a lab opened is gone after its close, also after a second one."""
    before = set(threading.enumerate())
    with FaultLab() as lab:
        network, journal = lab.network(), lab.journal()
        assert journal.parent.is_dir()
    network.close()
    assert not journal.parent.exists()
    assert set(threading.enumerate()) <= before


def test_a_lab_needs_no_pytest() -> None:
    """The package is imported and used without a test framework."""
    code = """
import asyncio, sys
from cached_session.testing import FaultLab
async def main():
    async with FaultLab() as lab, lab.session("talk") as session:
        await session.add_items([{"role": "user", "content": "hello"}])
        await session.flush(timeout=20)
        assert len(lab.server.agents()) == 1
asyncio.run(main())
assert "pytest" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
