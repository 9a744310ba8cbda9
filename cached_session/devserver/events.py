"""The event broker: sends each event to every subscriber; a slow subscriber loses events.

Events can be published from any thread. A subscription belongs to the event loop that opened it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from cached_session.devserver.clock import Clock
from cached_session.devserver.emulation import Modes
from cached_session.devserver.faults import FaultPlan

SUBSCRIBER_BUFFER = 256
"""Maximum number of events that wait for one consumer; a full queue drops its oldest event."""

Event = dict[str, Any]


class Subscription:
    """The bounded queue of one consumer, and the number of events that it dropped."""

    def __init__(self, can_see: Callable[[str], bool], capacity: int) -> None:
        self._can_see = can_see
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()

    def offer(self, event: Event, delay: float = 0.0) -> None:
        """Queue an event after `delay` seconds. Safe to call from any thread.

        A full queue drops its oldest event.
        """
        if not self._can_see(event.get("agent_id", "")):
            return
        if delay > 0:
            self._on_loop(lambda: self._loop.call_later(delay, self.offer, event))
            return
        with self._lock:
            if len(self._waiting) >= self._capacity:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(event)
        self._on_loop(self._wake.set)

    def drop(self, event: Event, *, notice: bool) -> None:
        """Drop an event for this consumer; with `notice`, report the loss to the consumer."""
        if notice and self._can_see(event.get("agent_id", "")):
            with self._lock:
                self._dropped += 1
            self._on_loop(self._wake.set)

    def _on_loop(self, call: Callable[[], object]) -> None:
        # The loop is closed when the server has stopped while the consumer was connected.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    async def next(self, timeout: float) -> tuple[Event | None, int]:
        """Wait for the next event or for dropped events, `timeout` seconds at most.

        Return the event (None after the timeout or when events were dropped) and the number of
        dropped events.
        """
        if not self._waiting and not self._dropped:
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except asyncio.TimeoutError:
                return None, 0
        with self._lock:
            # The dropped events are older than the queue, so report them before its next event.
            dropped, self._dropped = self._dropped, 0
            if dropped or not self._waiting:
                return None, dropped
            return self._waiting.popleft(), 0


class EventBroker:
    """Sends each event to the current subscriptions; a new subscription gets no earlier events."""

    def __init__(self, clock: Clock, faults: FaultPlan) -> None:
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self.capacity = SUBSCRIBER_BUFFER

    @property
    def subscribers(self) -> int:
        """Return the number of connected consumers."""
        return len(self._subscriptions)

    def publish(self, event_type: str, agent_id: str, **fields: Any) -> None:
        """Send an event to every subscriber with access to the agent; omit fields that are None."""
        faults = self._faults.take("EVENT", event_type)
        if not self._subscriptions:
            return
        event = {
            "event_type": event_type,
            "agent_id": agent_id,
            "timestamp": int(self._clock.now() * 1000),
            **{name: value for name, value in fields.items() if value is not None},
        }
        lost = [fault for fault in faults if fault.kind == "lose_events"]
        delay = sum(fault.seconds for fault in faults if fault.kind == "delay_events")
        with self._lock:
            for subscription in self._subscriptions:
                if lost:
                    subscription.drop(event, notice=any(fault.notice for fault in lost))
                else:
                    subscription.offer(event, delay)

    async def stream(
        self, can_see: Callable[[str], bool], modes: Callable[[], Modes], keepalive: float
    ) -> AsyncIterator[bytes]:
        """Yield the SSE bytes of one consumer, from `connected` until the consumer disconnects."""
        subscription = Subscription(can_see, self.capacity)
        with self._lock:
            self._subscriptions.append(subscription)
        try:
            yield _sse("connected", {"type": "connected", "timestamp": self._milliseconds()})
            while True:
                event, dropped = await subscription.next(keepalive)
                if event is not None:
                    yield _sse(event["event_type"], event)
                elif dropped:
                    notice = self._lag_notice(dropped, modes().lag_notice)
                    if notice is not None:
                        yield _sse("stream_lagged", notice)
                else:
                    yield b": keep-alive\n\n"
        finally:
            with self._lock:
                self._subscriptions.remove(subscription)

    def _lag_notice(self, dropped: int, form: str) -> Event | None:
        hint = "the consumer was too slow; list the memories again"
        if form == "vector":
            # The vector stream's notice has no timestamp; the SDK ignores it silently.
            return {"type": "stream_lagged", "dropped": dropped, "hint": hint}
        if form == "none":
            return None
        return {
            "event_type": "stream_lagged",
            "agent_id": "",
            "timestamp": self._milliseconds(),
            "dropped": dropped,
            "hint": hint,
        }

    def _milliseconds(self) -> int:
        return int(self._clock.now() * 1000)


def _sse(name: str, data: Event) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
