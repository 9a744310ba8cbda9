"""Which operations a journal has."""

from __future__ import annotations

from cached_session.history.ops import Dot
from cached_session.journal.tables.known_operations import missing_operations
from tests.unit.replication.fakes import SESSION, add, dot, open_journal


def test_operations_of_the_journal_are_not_missing() -> None:
    """Those of an unknown writer are, and those after the last one of a known writer."""
    journal = open_journal()
    dots = [dot(1), dot(2), dot(3), Dot("another", 1)]
    assert journal.read_blocking(missing_operations, SESSION, dots) == set(dots)
    add(journal, "one", "two")
    assert journal.read_blocking(missing_operations, SESSION, dots) == set(dots[2:])
    assert journal.read_blocking(missing_operations, SESSION, []) == set()
    journal.close_blocking()
