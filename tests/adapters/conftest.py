"""Fixtures: a server, and devices that share nothing but the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cached_session import SessionCache
from cached_session.adapters import Bridge
from cached_session.devserver import DevServer


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Start a server on a real socket."""
    with DevServer() as running:
        yield running


@pytest.fixture
def device(server: DevServer, tmp_path: Path) -> Callable[[str], SessionCache]:
    """Make a device's cache, which the test opens and closes."""
    return lambda name: SessionCache(tmp_path / f"{name}.db", url=server.url)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """Make a bridge for one test, whose thread ends with it."""
    before = set(threading.enumerate())
    with Bridge() as bridge:
        yield bridge
    left = {thread.name for thread in threading.enumerate() if thread not in before}
    assert not [name for name in left if name.startswith("cached-session")]
