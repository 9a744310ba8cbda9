"""How large a store request is: as large as answers are quick, and never too large."""

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
"""Seconds until a request of this size is answered; or raises."""


class Server:
    """Takes what it is given, after so long on a clock of its own."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sizes: list[int] = []
        """Of each request, taken or not."""
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
    """Store that much so many times; what each began with: the size of its first request."""
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
    """Nothing is known of the link at first; then each full request may have twice as much, up to
    the option, and everything arrives once."""
    server = Server(lambda size: 0.1)
    context = context_for(server)
    assert await send(context, server, 4) == [FIRST_BYTES, 2 * FIRST_BYTES, MOST, MOST]
    assert max(server.sizes) == MOST
    assert len(server.held) == len(set(server.held)) == 4 * MOST // MEMORY


async def test_small_requests_say_nothing_of_large_ones() -> None:
    """However quickly, or never, a request of one item is answered: the next large one is as
    large as before."""
    server = Server(lambda size: 0.1)
    context = context_for(server)
    await send(context, server, 5, kib=4)
    server.answer = unanswered
    await send(context, server, 5, kib=4)
    server.answer = lambda size: 0.1
    assert await send(context, server, 1) == [FIRST_BYTES]


async def test_answers_that_take_their_time_keep_the_size() -> None:
    """No quick answer, no failure: neither larger nor smaller."""
    server = Server(lambda size: 3.0)
    assert await send(context_for(server), server, 3) == [FIRST_BYTES] * 3


async def test_a_link_that_never_carries_much_gets_less_until_it_does() -> None:
    """A request that cannot arrive before the time is up is not sent again and again: each is half
    the size of the one before, and the link that carries 40 KiB carries all."""

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


async def test_answers_close_to_the_end_of_patience_make_requests_smaller() -> None:
    """Before the first one fails."""
    server = Server(lambda size: size / (32 * KIB))
    began = await send(context_for(server, request_timeout=30), server, 2)
    assert began == [FIRST_BYTES, FIRST_BYTES // 2]


async def test_what_a_proxy_refuses_is_not_tried_again() -> None:
    """A proxy that takes no more than a MiB says so once."""

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
async def test_the_option_is_never_exceeded(most: int) -> None:
    """Whatever the link carries."""
    server = Server(lambda size: 0.0)
    await send(context_for(server, max_batch_bytes=most), server, 3)
    assert max(server.sizes) <= most
