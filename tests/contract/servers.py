"""The servers under test, each as a `Remote` for one test."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any

import orjson

from cached_session.devserver import DevServer
from cached_session.devserver.emulation import Modes
from cached_session.options import SyncOptions
from cached_session.remote.dakera import connect
from cached_session.remote.protocol import GuardReport, Remote
from cached_session.remote.wire import EncodedMemory
from tests.simulation.server import SimServer

URL = (os.environ.get("CONTRACT_URL") or "").rstrip("/") or None
"""A Dakera server for writing: `make contract URL=...`."""
KEY = os.environ.get("CONTRACT_KEY") or None


@asynccontextmanager
async def development(modes: Modes | None = None) -> AsyncIterator[Remote]:
    with DevServer(modes=modes) as server:
        remote = connect(server.url, None, SyncOptions())
        try:
            yield remote
        finally:
            await remote.aclose()


def opposite() -> AbstractAsyncContextManager[Remote]:
    """Start the devserver with the opposite answers where Dakera's behaviour is unknown."""
    return development(
        Modes(
            existing_id="refuse",
            created_at_on_replace="keep",
            forget_unknown="not_found",
            derived_children="leak",
            unknown_agent="not_found",
            over_limit="reject",
            strips_nul=True,
            metadata_max_bytes=65536,
        )
    )


@asynccontextmanager
async def simulated() -> AsyncIterator[Remote]:
    yield Simulated()


@asynccontextmanager
async def real() -> AsyncIterator[Remote]:
    assert URL
    remote = connect(URL, KEY, SyncOptions())
    try:
        yield remote
    finally:
        await remote.aclose()


SERVERS: dict[str, Callable[[], AbstractAsyncContextManager[Remote]]] = {
    "devserver": development,
    "opposite": opposite,
    "simulated": simulated,
}
if URL:
    SERVERS["dakera"] = real


class Simulated:
    """The simulation's server without its network. Memories are encoded to bytes, as on the
    wire."""

    server = "http://simulated:3000"
    answered = 0
    server_second = 1_700_000_000

    def __init__(self) -> None:
        self._server = SimServer(lambda: 1_700_000_000.0, Random(0), "replace", shuffles=True)

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        return self._server.store(agent, [orjson.loads(memory.data) for memory in memories])

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        return self._server.fetch(agent, memory, 0.0)

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        return self._server.page(agent, offset, limit, 0.0)

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        return self._server.forget(agent, memories)

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        return self._server.tagged(agent, tag, 0.0)

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        return self._server.page(agent, 0, limit, 0.0)

    async def guard(self, agent: str) -> GuardReport:
        self._server.guard(agent)
        return GuardReport()

    async def aclose(self) -> None:
        pass
