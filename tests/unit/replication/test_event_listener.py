"""Which events are news, and when the stream is opened again."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator

import anyio
import pytest

from cached_session import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.replication import event_listener
from cached_session.replication.event_listener import Listener, ReconnectDelay, may_bring_new
from tests.unit.replication.fakes import UNREACHABLE, FakeServer, context_of

OURS = "cs1-0123456789ab-writer-1-0"
DENIED = RemoteError(Verdict.DENIED, "no", status=403)


def delay(options: SyncOptions | None = None) -> ReconnectDelay:
    return ReconnectDelay(options or SyncOptions(), random.Random(1))


def test_a_memory_of_another_device_is_news() -> None:
    """An own one is not: while a backlog is sent, its session would be listed again and again."""
    assert may_bring_new(OURS, is_own=lambda _: False)
    assert not may_bring_new(OURS, is_own=lambda memory: memory == OURS)


def test_a_memory_that_no_pull_reads_is_no_news() -> None:
    """Claim notes, and memories that the server or another program has stored."""
    for memory in ("csn1-0123456789ab-writer-1-0-me", "foreign"):
        assert not may_bring_new(memory, is_own=lambda _: False)


def test_an_event_without_a_memory_may_be_news() -> None:
    """Nothing tells what was stored."""
    assert may_bring_new("", is_own=lambda _: True)


def test_a_stream_that_fails_is_opened_again_later_and_later() -> None:
    """With jitter, and up to the longest pause."""
    made, options = delay(), SyncOptions()
    pauses = [made.after(UNREACHABLE, 0.0) for _ in range(50)]
    assert max(pauses[:2]) <= 4 * options.backoff_base
    assert max(pauses) > 10
    assert max(pauses) <= options.backoff_max


def test_a_stream_that_was_stable_is_opened_again_soon() -> None:
    """The failures before it are forgotten."""
    made, options = delay(), SyncOptions()
    for _ in range(20):
        made.after(UNREACHABLE, 0.0)
    assert made.after(UNREACHABLE, 10.1) <= options.backoff_base


def test_a_server_that_refuses_the_stream_is_asked_rarely() -> None:
    """Only another key or a newer server changes its answer."""
    assert all(300 <= delay().after(DENIED, 0.0) <= 600 for _ in range(20))


def test_a_refused_stream_is_requested_again_after_a_success() -> None:
    """The first success allows an attempt at once, because a captive portal may be gone. Further
    refusals make the attempts rare, and an open stream resets that."""
    made = delay()
    waits = []
    for _ in range(10):
        made.after(DENIED, 0.0)
        waits.append(made.after_success())
    assert waits[:4] == [0.0, 10.0, 20.0, 40.0]
    assert waits[-1] == 600.0
    made.opened()
    made.after(DENIED, 0.0)
    assert made.after_success() == 0.0


async def test_a_success_of_another_request_ends_the_wait_after_a_refusal() -> None:
    """A stream that a captive portal has refused is open again as soon as a pull succeeds."""

    class Portal:
        attempts = 0

        async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
            self.attempts += 1
            if self.attempts == 1:
                raise DENIED
            yield None
            await anyio.sleep_forever()

    portal, heard = Portal(), list[object]()
    listener = Listener(
        context_of(FakeServer()), lambda *hint: heard.append(hint), lambda: heard.append("down")
    )
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run, portal)
        await anyio.wait_all_tasks_blocked()
        assert (portal.attempts, listener.is_up) == (1, False)
        listener.request_succeeded()
        await anyio.wait_all_tasks_blocked()
        assert (portal.attempts, listener.is_up) == (2, True)
        group.cancel_scope.cancel()


class Stream:
    """A server whose streams have these events, and end."""

    def __init__(self, *events: tuple[str, str] | None) -> None:
        self.streams = [list(events)]
        self.opened = 0

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        self.opened += 1
        for event in self.streams.pop() if self.streams else []:
            yield event


async def test_events_become_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that may have missed something is a hint for every session; its end is reported."""
    heard: list[object] = []
    server = Stream(None, ("a", OURS), ("b", "foreign"), ("c", ""), ("d", "cs1-00000000000a-w-1-0"))
    context = context_of(FakeServer())
    context.push_state.sent.add(["cs1-00000000000a-w-1-0"])
    listener = Listener(context, lambda *hint: heard.append(hint), lambda: heard.append("down"))
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise RuntimeError("stop")

    monkeypatch.setattr(event_listener.anyio, "sleep", sleep)
    with pytest.raises(RuntimeError, match="stop"):
        await listener.run(server)
    # The second stream ends before the server has answered on it.
    assert heard == [(None, ""), ("a", OURS), ("c", ""), "down"]
    assert server.opened == 2
    assert not listener.is_up


async def test_a_cancelled_listener_is_down() -> None:
    """Sessions are polled at the usual interval again."""
    heard: list[object] = []

    class Silent:
        async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
            yield None
            await anyio.sleep_forever()

    listener = Listener(
        context_of(FakeServer()), lambda *hint: heard.append(hint), lambda: heard.append("down")
    )
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run, Silent())
        while not listener.is_up:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert heard == [(None, ""), "down"]
    assert listener.up_since == math.inf
