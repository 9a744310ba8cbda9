"""A server on a real socket, and devices with journals of their own, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cached_session.devserver import DevServer
from tests.replication.devices import Devices


@pytest.fixture
def server() -> Iterator[DevServer]:
    """A fresh server."""
    with DevServer() as running:
        yield running


@pytest.fixture
async def device(server: DevServer, tmp_path: Path) -> AsyncIterator[Devices]:
    """Makes devices; closes them when the test is over."""
    devices = Devices(server, tmp_path)
    yield devices
    server.faults.clear()
    await devices.close()
