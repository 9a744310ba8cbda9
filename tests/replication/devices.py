"""Helpers of the replication tests: devices with their own journals, and comparisons of them."""

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
"""Seconds after which a wait fails the test. Much longer than any wait on a machine under load."""

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
"""Synchronises by itself, with short intervals."""
MANUAL = replace(QUICK, push_delay=3600.0, poll_interval=3600.0, poll_interval_idle=3600.0)
"""Does nothing by itself but the first pull: writes stay on the device until it syncs."""


def text_message(text: str, role: str = "user") -> dict[str, Any]:
    """Return a message item."""
    return {"role": role, "content": text}


def texts(items: Sequence[Any]) -> list[str]:
    """Return the contents of message items."""
    return [item["content"] for item in items]


class Devices:
    """Devices over one server. It closes them at the end."""

    def __init__(self, server: DevServer, root: Path) -> None:
        self.server = server
        self.root = root
        self._made: list[CachedSession] = []

    async def __call__(self, name: str, **more: Any) -> CachedSession:
        """Return a session whose first pull is over. From then on it exchanges nothing until it
        syncs."""
        session = self.new(name, **more)
        await session.sync(timeout=PATIENCE)
        return session

    def new(
        self, name: str, session_id: str = SESSION, options: SyncOptions = MANUAL, **more: Any
    ) -> CachedSession:
        """Return an unopened session on the device of that name, which has its own journal file."""
        more.setdefault("url", self.server.url)
        session = CachedSession.from_url(
            session_id, journal=self.root / f"{name}.db", options=options, **more
        )
        self._made.append(session)
        return session

    def keep(self, session: CachedSession) -> CachedSession:
        """Close this session at the end too."""
        self._made.append(session)
        return session

    async def close(self) -> None:
        """Close all sessions."""
        await asyncio.gather(*(session.close() for session in self._made))


async def sync_all(*sessions: CachedSession) -> None:
    """Sync each session twice: the first round sends, the second fetches."""
    for _ in range(2):
        for session in sessions:
            await session.sync(timeout=PATIENCE)


def replicated_fields(entry: Entry) -> tuple[Any, ...]:
    """Return the fields of an entry that are equal on all replicas."""
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


async def assert_one_history(*sessions: CachedSession) -> list[str]:
    """Sync the sessions, assert that all show the same, and return the texts."""
    await sync_all(*sessions)
    first = [replicated_fields(entry) for entry in await sessions[0].entries()]
    items = await sessions[0].get_items()
    assert [entry[0] for entry in first] == list(range(len(first)))
    assert [entry[1] for entry in first] == items
    for other in sessions[1:]:
        assert [replicated_fields(entry) for entry in await other.entries()] == first
        assert await other.get_items() == items
    for session in sessions:
        status = session.status()
        assert (status.pending, status.parked, status.absent) == (0, 0, 0)
        assert (status.incomplete, status.conflicts, status.unreadable) == (0, 0, 0)
        assert status.items == len(items)
    return texts(items)


async def time_out(
    call: Callable[..., Awaitable[Any]], has_tried: Callable[[], Any]
) -> SyncTimeout:
    """Repeat a `sync` or `flush` that must time out, each time with a longer timeout, until it has
    made an attempt. On a slow machine the first ones may time out before their attempt."""
    seconds = 0.3
    while True:
        with pytest.raises(SyncTimeout) as failure:
            await call(timeout=seconds)
        if has_tried():
            return failure.value
        assert seconds < PATIENCE, f"{call} has not come so far: {has_tried}"
        seconds *= 2


async def wait_until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = PATIENCE
) -> Any:
    """Wait until a condition holds, and return its value. Fail with its name after `seconds`."""
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


def items_on_server(server: DevServer, agent: str = AGENT) -> list[str]:
    """Return the item memories on the server, without bookkeeping and placeholders, oldest dot
    first."""
    found = [
        memory
        for memory in server.memories(agent)
        if memory.get("metadata", {}).get("cs_op") == "append" and not memory["metadata"]["cs_j"]
    ]
    found.sort(key=lambda m: (m["metadata"]["cs_s"], m["metadata"]["cs_c"], m["metadata"]["cs_i"]))
    return [memory["content"] for memory in found]


def kinds_on_server(server: DevServer, agent: str = AGENT) -> list[str]:
    """Return the kinds of operation of the memories on the server, sorted."""
    return sorted(memory["metadata"]["cs_op"] for memory in server.memories(agent))


OTHER = Path(__file__).parent / "other_process.py"


@asynccontextmanager
async def running_process(
    journal: Path, url: str, *words: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start another process on a journal, wait until it is ready, and kill it at the end."""
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
