"""The size of store requests follows the time that the server needs, within the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from cached_session import SyncOptions
from cached_session.history.session_ref import SessionRef
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.wire import EncodedMemory
from cached_session.replication.batch_size import FIRST_BYTES, LEAST_BYTES
from cached_session.replication.context import Context
from cached_session.replication.store import store

KIB = 1024
MEMORY = 4 * KIB
MOST = SyncOptions().max_batch_bytes
Answer = Callable[[int], float]
"""Seconds until a request of this size is answered. It raises for a failed request."""


class Server:
    """Accepts requests after a delay on its own clock."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sizes: list[int] = []
        """The size of each request, accepted or not."""
        self.held: list[str] = []
        self.clock = 0.0

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        size = sum(len(memory.data) for memory in memories)
        self.sizes.append(size)
        self.clock += self.answer(size)
        self.held += [memory.id for memory in memories]
        return {memory.id for memory in memories}


def context_for(server: Server, **options: int) -> Context:
    runtime = SimpleNamespace(monotonic=lambda: server.clock, wall_ms=lambda: 1, random=None)
    return Context(None, server, SyncOptions(**options), runtime, "w")  # type: ignore[arg-type]


def memories(first: int, count: int) -> list[EncodedMemory]:
    return [EncodedMemory(f"m{first + n}", b"x" * MEMORY, ("w", n), ()) for n in range(count)]


async def send(context: Context, server: Server, rounds: int, kib: int = 2048) -> list[int]:
    """Store that many bytes that many times, and return the size of the first request of each."""
    began = []
    for number in range(rounds):
        at = len(server.sizes)
        try:
            await store(
                context, SessionRef.of("talk"), memories(number * 1000, kib * KIB // MEMORY)
            )
        except RemoteError:
            context.push_state.progress.clear()
        began.append(server.sizes[at])
    return began


def unanswered(size: int) -> float:
    raise RemoteError(Verdict.UNREACHABLE, "no answer")


async def test_quick_answers_make_requests_larger() -> None:
    """The first request is small. Each full request that is answered quickly doubles the size, up
    to the option, and everything arrives once."""
    server = Server(lambda size: 0.1)
    context = context_for(server)
    assert await send(context, server, 4) == [FIRST_BYTES, 2 * FIRST_BYTES, MOST, MOST]
    assert max(server.sizes) == MOST
    assert len(server.held) == len(set(server.held)) == 4 * MOST // MEMORY


async def test_small_requests_do_not_change_the_size_of_large_ones() -> None:
    """Requests of one item change nothing, whether they are answered quickly or not at all: the
    next large one has the same size."""
    server = Server(lambda size: 0.1)
    context = context_for(server)
    await send(context, server, 5, kib=4)
    server.answer = unanswered
    await send(context, server, 5, kib=4)
    server.answer = lambda size: 0.1
    assert await send(context, server, 1) == [FIRST_BYTES]


async def test_slow_answers_keep_the_size() -> None:
    """Answers that are neither quick nor failures keep the size."""
    server = Server(lambda size: 3.0)
    assert await send(context_for(server), server, 3) == [FIRST_BYTES] * 3


async def test_a_slow_link_gets_smaller_requests_until_one_arrives() -> None:
    """Each request that times out is followed by one of half the size, and a link that carries 40
    KiB in time carries everything."""

    def carry(size: int) -> float:
        return unanswered(size) if size > 40 * KIB else 2.0

    server = Server(carry)
    context = context_for(server)
    began = await send(context, server, 5)
    assert began == [FIRST_BYTES >> n for n in range(5)]
    assert len(set(server.held)) == 2048 * KIB // MEMORY
    server.answer = unanswered
    assert (await send(context, server, 3))[-1] == LEAST_BYTES
    server.answer = lambda size: 0.1
    assert (await send(context, server, 8))[-1] == MOST


async def test_answers_close_to_the_timeout_make_requests_smaller() -> None:
    """The size shrinks before the first request fails."""
    server = Server(lambda size: size / (32 * KIB))
    began = await send(context_for(server, request_timeout=30), server, 2)
    assert began == [FIRST_BYTES, FIRST_BYTES // 2]


async def test_a_size_that_a_proxy_refused_is_not_tried_again() -> None:
    """A proxy with a limit of one MiB refuses one request only."""

    def proxy(size: int) -> float:
        if size > 1024 * KIB:
            raise RemoteError(Verdict.REFUSED, "too large", status=413)
        return 0.1

    server = Server(proxy)
    context = context_for(server)
    await send(context, server, 4)
    assert sum(size > 1024 * KIB for size in server.sizes) == 1
    assert server.sizes[-1] == 1024 * KIB


@pytest.mark.parametrize("most", [20_000, 200_000])
async def test_the_size_never_exceeds_the_option(most: int) -> None:
    """The size stays below the option on any link."""
    server = Server(lambda size: 0.0)
    await send(context_for(server, max_batch_bytes=most), server, 3)
    assert max(server.sizes) <= most
