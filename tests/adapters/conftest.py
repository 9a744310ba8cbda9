"""A server, and devices that have nothing in common but it."""

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
    """A server on a real socket."""
    with DevServer() as running:
        yield running


@pytest.fixture
def device(server: DevServer, tmp_path: Path) -> Callable[[str], SessionCache]:
    """Makes a device's cache; its owner opens and closes it."""
    return lambda name: SessionCache(tmp_path / f"{name}.db", url=server.url)


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """A bridge of the test's own, whose thread ends with it."""
    before = set(threading.enumerate())
    with Bridge() as bridge:
        yield bridge
    left = {thread.name for thread in threading.enumerate() if thread not in before}
    assert not [name for name in left if name.startswith("cached-session")]
