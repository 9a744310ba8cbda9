"""Fixtures of each test: a server on a real socket, and devices with their own journals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cached_session.devserver import DevServer
from tests.replication.devices import Devices


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Start a fresh server."""
    with DevServer() as running:
        yield running


@pytest.fixture
async def device(server: DevServer, tmp_path: Path) -> AsyncIterator[Devices]:
    """Make devices, and close them after the test."""
    devices = Devices(server, tmp_path)
    yield devices
    server.faults.clear()
    await devices.close()
