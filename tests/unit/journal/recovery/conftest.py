from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.journal.recovery.recovery_support import open_journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


@pytest.fixture
def old(path: Path) -> Iterator[sqlite3.Connection]:
    """The journal to recover."""
    with closing(open_journal(path)) as conn:
        yield conn


@pytest.fixture
def new(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty journal."""
    with closing(open_journal(tmp_path / "new.db")) as conn:
        yield conn
