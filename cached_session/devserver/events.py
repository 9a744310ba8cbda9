"""The event broker: what happened goes to every subscriber, and slow ones lose some of it.

Publishing works from any thread; each subscription belongs to the event loop that opened it.
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
"""Events one consumer may lag behind before the server drops the rest."""

Event = dict[str, Any]


class Subscription:
    """The queue of one consumer; bounded, and it counts what did not fit."""

    def __init__(self, may_see: Callable[[str], bool], capacity: int) -> None:
        self._may_see = may_see
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: deque[Event] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()

    def offer(self, event: Event, delay: float = 0.0) -> None:
        """Queue an event from any thread, `delay` seconds later; a full queue drops its oldest."""
        if not self._may_see(event.get("agent_id", "")):
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

    def lose(self, event: Event, *, notice: bool) -> None:
        """Lose an event on the way to this consumer, noticed or not."""
        if notice and self._may_see(event.get("agent_id", "")):
            with self._lock:
                self._dropped += 1
            self._on_loop(self._wake.set)

    def _on_loop(self, call: Callable[[], object]) -> None:
        # A closed loop means that the server stopped under the consumer.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    async def next(self, timeout: float) -> tuple[Event | None, int]:
        """Wait for the next event; return it (None after `timeout`) and the drops before it."""
        if not self._waiting and not self._dropped:
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except asyncio.TimeoutError:
                return None, 0
        with self._lock:
            # The oldest were dropped, so the gap is noticed before what is left of the queue.
            dropped, self._dropped = self._dropped, 0
            if dropped or not self._waiting:
                return None, dropped
            return self._waiting.popleft(), 0


class Broker:
    """Fans events out to the subscriptions that exist at that moment; nothing is kept for later."""

    def __init__(self, clock: Clock, faults: FaultPlan) -> None:
        self._clock = clock
        self._faults = faults
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self.capacity = SUBSCRIBER_BUFFER

    @property
    def subscribers(self) -> int:
        """The number of consumers connected now."""
        return len(self._subscriptions)

    def publish(self, event_type: str, agent_id: str, **fields: Any) -> None:
        """Tell every subscriber that may see the agent; fields that are None are left out."""
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
                    subscription.lose(event, notice=any(fault.notice for fault in lost))
                else:
                    subscription.offer(event, delay)

    async def stream(
        self, may_see: Callable[[str], bool], modes: Callable[[], Modes], keepalive: float
    ) -> AsyncIterator[bytes]:
        """Yield one consumer's stream as SSE bytes, from `connected` until the consumer leaves."""
        subscription = Subscription(may_see, self.capacity)
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
            # The form of the vector stream has no timestamp, and the SDK drops it silently.
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
