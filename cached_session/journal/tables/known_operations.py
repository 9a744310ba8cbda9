"""The check which operations the journal has."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from cached_session.history.ops import Dot
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.apply import SessionTransaction

__all__ = ["KnownOperations", "missing_operations"]


class KnownOperations:
    """The operations that a journal has, or that no replica needs any more."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def missing(self, session: SessionRef, dots: Collection[Dot]) -> set[Dot]:
        """Return the operations of a list that the journal does not have."""
        return await self._runner.read(missing_operations, session, dots)


def missing_operations(
    conn: sqlite3.Connection, session: SessionRef, dots: Collection[Dot]
) -> set[Dot]:
    """Return the operations of a list that the journal does not have."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return set(dots)
    return {dot for dot in dots if dot.counter not in tx.writer(dot.writer).applied}
