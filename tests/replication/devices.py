"""What the replication tests share: devices with journals of their own, and how to compare them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, Entry, SyncOptions, SyncTimeout
from cached_session.devserver import DevServer
from cached_session.history.ids import agent_id

SESSION = "talk"
AGENT = agent_id(SESSION)
BATCH = "POST /v1/memories/store/batch"
FORGET = "POST /v1/memory/forget"
LISTING = "GET /v1/agents/*/memories"
GET = "GET /v1/memory/get/*"
POLICY = "PUT /v1/namespaces/*/memory_policy"

PATIENCE = 60.0
"""The longest wait for what happens at once on a machine that does not stall: whoever waits this
long waits in vain."""

QUICK = SyncOptions(
    durability="normal",
    push_delay=0.005,
    poll_interval=0.05,
    poll_interval_idle=0.1,
    watch_interval=0.05,
    backoff_base=0.05,
    backoff_max=0.2,
    denied_retry=0.2,
    request_timeout=2 * PATIENCE,
    connect_timeout=2 * PATIENCE,
    hydrate_timeout=PATIENCE,
    close_timeout=0.5,
    claim_patience=0.0,
    audit_interval=0.0,
    listen=False,
)
"""Everything by itself, soon."""
MANUAL = replace(QUICK, push_delay=3600.0, poll_interval=3600.0, poll_interval_idle=3600.0)
"""Nothing by itself but the first pull: what a device writes stays apart until it syncs."""


def said(text: str, role: str = "user") -> dict[str, Any]:
    """One message."""
    return {"role": role, "content": text}


def texts(items: Sequence[Any]) -> list[str]:
    """What messages say."""
    return [item["content"] for item in items]


class Devices:
    """Makes devices over one server and closes them all in the end."""

    def __init__(self, server: DevServer, root: Path) -> None:
        self.server = server
        self.root = root
        self._made: list[CachedSession] = []

    async def __call__(self, name: str, **more: Any) -> CachedSession:
        """A session on a device whose first look at the server is over: from here on it is apart
        until it syncs."""
        session = self.new(name, **more)
        await session.sync(timeout=PATIENCE)
        return session

    def new(
        self, name: str, session_id: str = SESSION, options: SyncOptions = MANUAL, **more: Any
    ) -> CachedSession:
        """A session on the device of that name (a journal file of its own), not opened yet."""
        more.setdefault("url", self.server.url)
        session = CachedSession.from_url(
            session_id, journal=self.root / f"{name}.db", options=options, **more
        )
        self._made.append(session)
        return session

    def keep(self, session: CachedSession) -> CachedSession:
        """Close this one too in the end."""
        self._made.append(session)
        return session

    async def close(self) -> None:
        """Close them all."""
        await asyncio.gather(*(session.close() for session in self._made))


async def settle(*sessions: CachedSession) -> None:
    """Sync until everybody has everything: once to bring, once to fetch."""
    for _ in range(2):
        for session in sessions:
            await session.sync(timeout=PATIENCE)


def place(entry: Entry) -> tuple[Any, ...]:
    """What all replicas must agree on about an entry."""
    return (
        entry.rank,
        entry.item,
        entry.stamp,
        entry.run,
        entry.writer,
        entry.counter,
        entry.index,
        entry.said_at,
    )


async def one_history(*sessions: CachedSession) -> list[str]:
    """Settle; prove that all replicas show the same; what they show."""
    await settle(*sessions)
    first = [place(entry) for entry in await sessions[0].entries()]
    items = await sessions[0].get_items()
    assert [entry[0] for entry in first] == list(range(len(first)))
    assert [entry[1] for entry in first] == items
    for other in sessions[1:]:
        assert [place(entry) for entry in await other.entries()] == first
        assert await other.get_items() == items
    for session in sessions:
        status = session.status()
        assert (status.pending, status.parked, status.absent) == (0, 0, 0)
        assert (status.incomplete, status.conflicts, status.unreadable) == (0, 0, 0)
        assert status.items == len(items)
    return texts(items)


async def in_vain(call: Callable[..., Awaitable[Any]], has_tried: Callable[[], Any]) -> SyncTimeout:
    """Let a `sync` or `flush` time out, each time with more patience, until it has come as far as
    it should: a machine that stalls may let the first ones pass without an attempt."""
    seconds = 0.3
    while True:
        with pytest.raises(SyncTimeout) as failure:
            await call(timeout=seconds)
        if has_tried():
            return failure.value
        assert seconds < PATIENCE, f"{call} has not come so far: {has_tried}"
        seconds *= 2


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = PATIENCE
) -> Any:
    """Wait until something holds; a test that waits in vain fails here, and says for what."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {condition}")
        await asyncio.sleep(0.01)


def items_on(server: DevServer, agent: str = AGENT) -> list[str]:
    """The readable items on the server, without bookkeeping and placeholders, oldest dot first."""
    found = [
        memory
        for memory in server.memories(agent)
        if memory.get("metadata", {}).get("cs_op") == "append" and not memory["metadata"]["cs_j"]
    ]
    found.sort(key=lambda m: (m["metadata"]["cs_s"], m["metadata"]["cs_c"], m["metadata"]["cs_i"]))
    return [memory["content"] for memory in found]


def kinds_on(server: DevServer, agent: str = AGENT) -> list[str]:
    """The kinds of operation that the server's memories belong to, sorted."""
    return sorted(memory["metadata"]["cs_op"] for memory in server.memories(agent))


OTHER = Path(__file__).parent / "other_process.py"


@asynccontextmanager
async def process(
    journal: Path, url: str, *words: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process on a journal, ready; killed in the end."""
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        str(OTHER),
        str(journal),
        url,
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        assert await asyncio.wait_for(running.stdout.readline(), PATIENCE) == b"ready\n"
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()
