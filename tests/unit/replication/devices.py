"""Another device, whose operations are on the fake server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cached_session.history.ops import Dot, Kind, Operation
from cached_session.journal.journal import Journal
from cached_session.journal.tables import entry_rows
from cached_session.remote.wire import memories_of
from tests.unit.replication.fakes import SESSION, FakeServer

THEM = "t" * 24


def operation(counter: int, *payloads: str, kind: Kind = Kind.APPEND) -> Operation:
    """Return an operation of the other device; by default an append of one item."""
    return Operation(Dot(THEM, counter), kind, counter, 1, payloads or (f'"t{counter}"',))


def put(server: FakeServer, *operations: Operation, only: Iterable[int] | None = None) -> None:
    """Store the memories of operations on a server, or only some of the memories."""
    for op in operations:
        made: list[dict[str, Any]] = list(
            memories_of(op, op.digest(SESSION.key), SESSION.session_id)
        )
        for number, memory in enumerate(made):
            if only is None or number in only:
                server.rows[memory["id"]] = {**memory, "created_at": 100 + op.dot.counter}


def items(journal: Journal) -> list[object]:
    """Return the history of the session."""
    entries = journal.read_blocking(entry_rows.entries, SESSION.session_id, None)
    return [entry.item for entry in entries]
