"""The event stream, over real sockets: an event starts a pull."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cached_session import CachedSession, SessionCache, SyncOptions
from cached_session.devserver import DevServer
from cached_session.remote import dakera
from cached_session.remote.errors import RemoteError, judge
from cached_session.replication.event_listener import Listener
from cached_session.replication.schedule import PullPlan
from cached_session.runtime import Runtime
from cached_session.testing import ManualClock, Network
from tests.replication.devices import (
    BATCH,
    GET,
    LISTING,
    MANUAL,
    PATIENCE,
    QUICK,
    Devices,
    text_message,
    texts,
    wait_until,
)

STREAM = "GET /v1/events/stream"

LISTENING = replace(MANUAL, listen=True, push_delay=0.0, backoff_base=0.01)
"""Polls never within a test: everything that arrives was announced by an event."""


async def test_an_event_delivers_a_write_without_a_poll(device: Devices) -> None:
    """Items of one device are on the other long before its next poll, repeatedly."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    for number in range(5):
        await first.add_items([text_message(f"word {number}")])
        await wait_until(lambda wanted=number + 1: _has(second, wanted))
    assert texts(await second.get_items()) == [f"word {number}" for number in range(5)]


async def _has(session: object, count: int) -> bool:
    return len(await session.get_items()) == count  # type: ignore[attr-defined]


async def test_a_new_stream_during_a_push_pulls_after_it(
    device: Devices, server: DevServer
) -> None:
    """A stream that opens while a backlog is sent requires a pull. The session is listed after the
    backlog, not between its requests."""
    async with CachedSession("talk", journal=device.root / "first.db", options=LISTENING) as apart:
        await apart.add_items([text_message("from before")])
    sending = server.faults.latency(0.5, route=BATCH)
    first = device.new("first", options=LISTENING, hydrate=False)
    flushing = asyncio.ensure_future(first.flush(timeout=PATIENCE))
    await wait_until(lambda: _up(first))
    await asyncio.sleep(0.1)
    listed = server.requests.count(LISTING)
    if flushing.done():
        listed = 0  # the machine was suspended in the meantime
    assert listed <= 1
    await flushing
    sending.remove()
    await wait_until(lambda: _more(server, listed))


async def test_an_event_does_not_wait_for_a_push(device: Devices, server: DevServer) -> None:
    """Items of another device are fetched while a request of this one is under way."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    await wait_until(lambda: _up(first) and _up(second))
    await first.add_items([text_message("mine")])
    await wait_until(lambda: _has(second, 1))
    with server.faults.latency(3600, route=BATCH, count=1) as slow:
        await first.add_items([text_message("slow")])
        await wait_until(lambda: slow.fired)
        await second.add_items([text_message("theirs")])
        await wait_until(lambda: _has(first, 3))
        assert await _pushing(first)


async def _more(server: DevServer, listed: int) -> bool:
    return server.requests.count(LISTING) > listed


async def _pushing(session: CachedSession) -> bool:
    replicator = session._engine.loop_host.replicator()
    return replicator is not None and replicator.schedule.is_pushing("talk")


def _plan(session: CachedSession) -> PullPlan:
    """Return the time of the session's next pull."""
    replicator = session._engine.loop_host.replicator()
    plan = replicator and replicator.schedule.plan("talk")
    assert plan is not None
    return plan


async def test_own_writes_cause_no_pull(device: Devices, server: DevServer) -> None:
    """The event of a memory that was written here causes no request."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    await wait_until(lambda: _up(first) and _up(second))
    await first.sync(timeout=PATIENCE)
    plan = _plan(first)
    wanted = plan.wanted
    for number in range(3):
        await first.add_items([text_message(f"word {number}")])
        await first.flush(timeout=PATIENCE)
    await wait_until(lambda: _has(second, 3))
    assert plan.wanted == wanted
    assert server.requests.count(GET) == 3  # of the other device


async def test_writes_of_an_earlier_process_cause_no_pull(
    device: Devices, server: DevServer
) -> None:
    """The event of an operation that was written by an earlier process and is sent now causes no
    pull. Otherwise a backlog would be listed repeatedly while it is sent."""
    before = await device("first")
    second = await device("second", options=LISTENING)
    with server.faults.down(route="POST /v1/memories/store/batch"):
        await before.add_items([text_message("left over")])
        await before.close()
        first = device.new("first", options=LISTENING)
        await first.get_items()
        await wait_until(lambda: _up(first) and _up(second))
        plan = _plan(first)
        await wait_until(lambda: plan.last_success >= plan.wanted)
        wanted = plan.wanted
    await first.flush(timeout=PATIENCE)
    await wait_until(lambda: _has(second, 1))
    assert plan.wanted == wanted


async def test_a_lagging_stream_misses_nothing(device: Devices, server: DevServer) -> None:
    """When the server reports dropped events, everything is pulled."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    await wait_until(lambda: _up(first) and _up(second))
    with server.faults.lose_events(route="EVENT stored", notice=True):
        await first.add_items([text_message("announced by nobody")])
        await wait_until(lambda: _has(second, 1))


def pulls(server: DevServer) -> int:
    """Return the listings that were begun, without their further pages."""
    return sum("offset=0" in request.query for request in server.requests)


async def test_a_new_stream_pulls_once(device: Devices, server: DevServer) -> None:
    """Memories that were stored while the stream was down are fetched by one pull when it is up
    again."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=replace(LISTENING, backoff_base=0.4))
    await wait_until(lambda: _heard(first) and _heard(second))
    with server.faults.down(route="GET /v1/events/stream"):
        server.disconnect()
        await wait_until(lambda: not _up(first) and not _up(second))
        await first.add_items([text_message("meanwhile")])
        await first.flush(timeout=PATIENCE)
        # A pull that was cut off with the streams is repeated, and is not one of those counted.
        await wait_until(lambda: _rests(first) and _rests(second))
        server.requests.clear()
    await wait_until(lambda: _has(second, 1))
    await wait_until(lambda: _up(second) and _up(first))
    # One pull for each device, for its new stream. An event brings a request for one memory.
    await wait_until(lambda: pulls(server) >= 2)
    await first.add_items([text_message("after")])
    await wait_until(lambda: _has(second, 2))
    assert pulls(server) == 2
    assert server.requests.count(GET) == 1


async def test_a_silent_connection_is_replaced(
    device: Devices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection without data, not even a keep-alive, is closed, and a new one is used once the
    line works."""
    monkeypatch.setattr(dakera, "SILENCE", 5.0)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", _attended())
    with (
        DevServer(keepalive=0.05) as quick,
        Network(quick.url) as line,
        Network(quick.url) as other,
    ):
        first = await device("first", url=line.url, options=LISTENING)
        second = await device("second", url=other.url, options=LISTENING)
        await wait_until(lambda: _up(first) and _up(second))
        quick.requests.clear()
        with line.stall():
            await wait_until(lambda: not _up(first))
            # The other one gets its server's keep-alives, and nothing else, all the time.
            assert _up(second)
            await second.add_items([text_message("meanwhile")])
            await second.flush(timeout=PATIENCE)
        await wait_until(lambda: _up(first))
        await wait_until(lambda: _has(first, 1))
        await asyncio.gather(first.close(), second.close())


def _attended() -> Callable[[], float]:
    """Replace the clock by one that counts the time in which this process runs. A stalled machine
    stalls the server too, so that the stall does not count as silence."""
    now = last = time.monotonic()

    def attended() -> float:
        nonlocal now, last
        moment = time.monotonic()
        now, last = now + min(moment - last, 0.1), moment
        return now

    return attended


@pytest.mark.parametrize("status", [401, 403, 404, 501])
async def test_polling_continues_without_a_stream(
    device: Devices, server: DevServer, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """On a server without a stream, or with a key that may not listen, no error is reported, writes
    of others are found by polling, and the stream is requested once more after a success."""
    server.faults.status(status, route=STREAM)
    options = replace(QUICK, listen=True)
    first = await device("first", options=options)
    second = await device("second", options=options)
    for number in range(3):
        await first.add_items([text_message(f"word {number}")])
        await wait_until(lambda wanted=number + 1: _has(second, wanted))
    assert not _up(second)
    assert (second.status().state, second.status().last_error) == ("online", None)
    await wait_until(lambda: server.requests.count(STREAM, status=status) >= 2)
    assert server.requests.count(STREAM, status=status) <= 4
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_followed_session_is_polled_at_the_active_rate(
    device: Devices, server: DevServer
) -> None:
    """Following counts as use: without a stream, pulls stay frequent while a session is
    followed."""
    options = replace(QUICK, poll_interval_idle=3600.0, watch_interval=0.02)
    first = await device("first", options=options)
    second = await device("second")
    following = asyncio.ensure_future(anext(first.changes()))
    server.requests.clear()
    await wait_until(lambda: pulls(server) >= 12)
    plan = _plan(first)
    await wait_until(lambda: plan.interval <= 2 * options.poll_interval)
    await second.add_items([text_message("hello")])
    await second.flush(timeout=PATIENCE)
    assert texts([entry.item for entry in (await following).entries]) == ["hello"]


class StreamlessServer:
    """A server whose stream always fails, with a given error."""

    def __init__(self, *statuses: int | None) -> None:
        self.statuses = list(statuses)

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        status = self.statuses.pop(0)
        verdict, scope = judge(status)
        raise RemoteError(verdict, f"status {status}", scope=scope, status=status)
        yield  # it is a generator


@pytest.mark.parametrize(
    ("statuses", "least", "most"),
    [
        *(([status] * 5, 300.0, 600.0) for status in (400, 401, 403, 404, 405, 501)),
        ([None, 500, 502, 503, 429], 0.05, 60.0),
    ],
)
async def test_the_stream_is_requested_again_at_a_bounded_rate(
    monkeypatch: pytest.MonkeyPatch, statuses: list[int | None], least: float, most: float
) -> None:
    """The stream is requested rarely where only a person can change the cause. Elsewhere it is
    requested soon, with growing pauses."""
    paused: list[float] = []

    async def pause(_listener: Listener, seconds: float, _error: RemoteError) -> None:
        paused.append(seconds)
        if len(paused) == len(statuses):
            raise asyncio.CancelledError

    monkeypatch.setattr(Listener, "_wait", pause)
    runtime = Runtime(monotonic=lambda: 0.0, random=random.Random(1))
    context = SimpleNamespace(runtime=runtime, options=SyncOptions(), writer="w")
    listener = Listener(context, lambda *_: None, lambda: None)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await listener.run(StreamlessServer(*statuses))
    assert len(paused) == len(statuses)
    assert all(least <= seconds <= most for seconds in paused), paused
    assert not listener.is_up


async def test_an_idle_cache_sends_few_requests(server: DevServer, tmp_path: Path) -> None:
    """With an idle stream there are under twenty requests an hour, for any number of open sessions
    and with the default intervals."""
    clock = ManualClock()
    options = SyncOptions(watch_interval=0.02)
    async with SessionCache(
        tmp_path / "idle.db", url=server.url, options=options, runtime=clock.runtime()
    ) as cache:
        sessions = [cache.session(f"talk {number}") for number in range(5)]
        for session in sessions:
            await session.add_items([text_message("hello")])
            await session.get_items()
        await cache.sync(20)
        await wait_until(lambda: _up(sessions[0]))
        replicator = sessions[0]._engine.loop_host.replicator()
        assert replicator is not None
        plans = replicator.schedule.plans()

        async def turn() -> None:
            """Run everything that is due now."""
            await wait_until(lambda: all(plan.due > clock._monotonic() for plan in plans))

        for _ in range(20):  # until all running work is over
            clock.advance(60)
            await turn()
        server.requests.clear()
        for _ in range(120):
            clock.advance(30)
            await turn()
        assert 6 <= len(server.requests) < 20, server.requests.all()


def _heard(session: CachedSession) -> bool:
    """Return whether the stream is up and the pull that it started is over."""
    plan = _plan(session)
    return _up(session) and plan.last_success >= plan.wanted


def _rests(session: CachedSession) -> bool:
    """Return whether no pull is under way, requested, or delayed after a failure."""
    plan, now = _plan(session), time.monotonic()
    return plan.last_success >= max(plan.wanted, plan.started) and plan.due > now + PATIENCE


def _up(session: CachedSession) -> bool:
    replicator = session._engine.loop_host.replicator()
    return replicator is not None and replicator.listener.is_up


async def test_a_word_costs_one_request_of_its_own_size(device: Devices, server: DevServer) -> None:
    """A new item in a long history: its event names it, and nothing else is fetched."""
    first = await device("first", options=LISTENING)
    await first.add_items([text_message(f"old {number}") for number in range(300)])
    await first.flush(timeout=PATIENCE)
    second = await device("second", options=LISTENING)
    await wait_until(lambda: _heard(first) and _heard(second))
    await wait_until(lambda: _rests(first) and _rests(second))
    server.requests.clear()
    await first.add_items([text_message("new")])
    await wait_until(lambda: _has(second, 301))
    assert (server.requests.count(GET), server.requests.count(LISTING)) == (1, 0)


async def test_an_event_that_is_quicker_than_the_replica_is_not_lost(
    device: Devices, server: DevServer
) -> None:
    """The node that answers lags behind the event: the memory is fetched when it is visible."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    await wait_until(lambda: _heard(first) and _heard(second))
    await wait_until(lambda: _rests(first) and _rests(second))
    with server.faults.stale(0.5):
        await first.add_items([text_message("early")])
        await wait_until(lambda: server.requests.count(GET) >= 1)
        await wait_until(lambda: _has(second, 1))
    assert server.requests.count(GET) >= 2


async def test_a_silent_stream_loses_its_trust(device: Devices, server: DevServer) -> None:
    """Once a poll has found an item that no event has named, a session in use is polled at its
    usual interval again, although the stream is up."""
    first = await device("first", options=LISTENING)
    options = replace(LISTENING, poll_interval=0.05, poll_interval_idle=0.1)
    second = await device("second", options=replace(options, poll_interval_listening=1.0))
    await wait_until(lambda: _up(second) and _heard(second))
    replicator = second._engine.loop_host.replicator()
    assert replicator is not None
    await wait_until(lambda: replicator.listener.up_since <= _plan(second).last_success)
    assert replicator._is_listening()
    with server.faults.lose_events(notice=False):
        await first.add_items([text_message("one")])
        await wait_until(lambda: _has(second, 1))
        await wait_until(lambda: not replicator._is_listening())
        assert _up(second)
        plan = _plan(second)
        await wait_until(lambda: plan.due - time.monotonic() < 0.2)
    await first.add_items([text_message("two")])
    await wait_until(lambda: _has(second, 2))
