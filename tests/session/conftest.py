"""Journals for each test, and the check that nothing of a session outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import set_tracing_disabled

from cached_session.devserver import DevServer
from tests.session.session_support import threads_of_ours

set_tracing_disabled(True)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where a journal may be made."""
    return tmp_path / "agent.db"


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, journal: Path) -> str:
    """A journal in a file, and one that is kept nowhere."""
    return str(journal) if request.param == "file" else ":memory:"


@pytest.fixture
def server() -> Iterator[DevServer]:
    """A server on a real socket."""
    with DevServer() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test closes what it opens, and closing ends its threads."""
    before = threads_of_ours()
    yield
    assert threads_of_ours() <= before
