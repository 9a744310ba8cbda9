from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from cached_session.journal.tables import schema


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    """A journal's tables in memory, without the journal around them."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        yield conn
