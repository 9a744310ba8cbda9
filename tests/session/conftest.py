"""Journals for each test, and the check that a session leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import set_tracing_disabled

from cached_session.devserver import DevServer
from tests.session.session_support import library_threads

set_tracing_disabled(True)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Return the path of a journal that does not exist yet."""
    return tmp_path / "agent.db"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, journal: Path) -> str:
    """Return the path of a journal in a file, and the name of one in memory."""
    return str(journal) if request.param == "file" else ":memory:"


@pytest.fixture
def server() -> Iterator[DevServer]:
    """Run a development server on a real socket."""
    with DevServer() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that the test has ended every thread that the library started."""
    before = library_threads()
    yield
    assert library_threads() <= before
