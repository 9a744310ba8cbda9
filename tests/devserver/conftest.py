"""A server on a real socket for each test, and the clients that talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version

import httpx
import pytest
from dakera import AsyncDakeraClient

from cached_session.devserver import DevServer

SDK_VERSION = tuple(int(part) for part in version("dakera").split(".")[:3])


@pytest.fixture
def server() -> Iterator[DevServer]:
    """A fresh server with a frozen clock, so that nothing depends on when the test runs."""
    with DevServer() as running:
        running.clock.freeze()
        yield running


@pytest.fixture
async def client(server: DevServer) -> AsyncIterator[AsyncDakeraClient]:
    """The official client, without retries: a test sees each failure once."""
    if SDK_VERSION < (0, 14, 1):
        pytest.skip("the wire is tested as the official client speaks it from 0.14.1 on")
    async with AsyncDakeraClient(server.url, max_retries=1, timeout=60) as connected:
        yield connected


@pytest.fixture
async def http(server: DevServer) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP, for what the official client cannot send."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as connected:
        yield connected
