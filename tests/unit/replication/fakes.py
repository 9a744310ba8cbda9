"""A server in memory and a context around it, for tests of replication without sockets."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import orjson

from cached_session import SyncOptions
from cached_session.history.ops import Dot
from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.sqlite.codec import encode_items
from cached_session.journal.tables import writes
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.protocol import GuardReport
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.context import Context
from cached_session.runtime import Runtime

SESSION = SessionRef.of("talk")
WRITER = "w" * 24

UNREACHABLE = RemoteError(Verdict.UNREACHABLE, "no answer")
REFUSED = RemoteError(Verdict.REFUSED, "bad item", scope=Scope.SESSION, status=422)
CONFLICT = RemoteError(Verdict.CONFLICT, "the id exists", scope=Scope.SESSION, status=409)
RATE_LIMITED = RemoteError(Verdict.BUSY, "slow down", scope=Scope.SESSION, status=429)


class FakeServer:
    """A server in memory. Each request is recorded, and fails if a failure is planned for it."""

    server = "http://fake"
    server_second = 0

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.answered = 0
        self.failures: dict[str, list[RemoteError | None]] = {}
        """The outcomes of the next requests, by method: an error, or None for a success."""
        self.refuses: set[str] = set()
        """Texts: a request that contains one of them is refused."""
        self.loses: set[str] = set()
        """Ids that the server accepts and does not keep."""
        self.says_nothing = False
        """Whether the answer to a store names no id."""
        self.unguarded = ""

    def _answer(self, method: str) -> None:
        self.requests.append(method)
        planned = self.failures.get(method)
        error = planned.pop(0) if planned else None
        if error is not None:
            raise error
        self.answered += 1

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        self._answer("store")
        if any(text.encode() in memory.data for memory in memories for text in self.refuses):
            raise REFUSED
        for memory in memories:
            if memory.id not in self.loses:
                self.rows[memory.id] = orjson.loads(memory.data)
        return set() if self.says_nothing else {m.id for m in memories} - self.loses

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        self._answer("fetch")
        return self.rows.get(memory)

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        self._answer("list")
        return list(reversed(self.rows.values()))[offset : offset + limit]

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        self._answer("find")
        return [row for row in self.rows.values() if tag in row.get("tags", [])]

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        self._answer("forget")
        return sum(self.rows.pop(identity, None) is not None for identity in memories)

    async def guard(self, agent: str) -> GuardReport:
        self._answer("guard")
        return GuardReport(self.unguarded)

    async def aclose(self) -> None:
        self.requests.append("close")


class Clock:
    """Both clocks of a runtime, moved by hand."""

    def __init__(self) -> None:
        self.wall = 1_000_000
        self.moment = 50.0

    def advance(self, seconds: float) -> None:
        self.wall += int(seconds * 1000)
        self.moment += seconds

    def runtime(self) -> Runtime:
        return Runtime(
            wall_ms=lambda: self.wall,
            monotonic=lambda: self.moment,
            random=random.Random(1),
            threaded=False,
        )


opened: list[Journal] = []
"""Journals of the running test; a fixture closes them at its end."""


def open_journal() -> Journal:
    journal = Journal(":memory:", threaded=False)
    journal.open_blocking()
    opened.append(journal)
    return journal


def context_of(
    server: FakeServer,
    journal: Journal | None = None,
    clock: Clock | None = None,
    **options: Any,
) -> Context:
    """Return a context for a server and a journal in memory."""
    return Context(
        journal or open_journal(),
        server,  # type: ignore[arg-type]
        SyncOptions(**options),
        (clock or Clock()).runtime(),
        WRITER,
    )


def add(journal: Journal, *texts: str, session_id: str = SESSION.session_id) -> None:
    """Append each text to a session as an operation of its own."""
    author = writes.Author(WRITER, 1000, 1000)
    for text in texts:
        batch = encode_items([text])
        journal.write_blocking(writes.append, author, session_id, batch, private=False)


def memory(number: int, size: int = 10, operation: int | None = None) -> EncodedMemory:
    """Return a memory of so many bytes, by default of an operation of its own."""
    counter = number if operation is None else operation
    return EncodedMemory(f"m{number}", b"x" * size, (WRITER, counter), ("digest", "seal", number))


def row_of(memory: EncodedMemory) -> dict[str, Any]:
    """Return the row of a server that holds a memory from `memory`."""
    digest, seal, part = memory.seal
    return {"id": memory.id, "metadata": {"cs_d": digest, "cs_e": seal, "cs_j": part}}


def dot(counter: int) -> Dot:
    return Dot(WRITER, counter)
