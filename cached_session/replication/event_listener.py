"""Listen to one event stream for all open sessions. Each event is a hint to fetch a memory soon.

The stream may miss any event. Polling finds missed changes: at a long interval while the stream is
up and reports what polls find, and at its usual interval otherwise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import aclosing

import anyio

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.ids import version_of
from cached_session.remote.protocol import EventSource
from cached_session.replication.backoff import pause_after
from cached_session.replication.context import Context, log

__all__ = ["Listener", "ReconnectDelay", "may_bring_new"]

UNSUPPORTED_SECONDS = 600.0
"""The longest time in seconds before the stream is requested again from a server that has refused
it. The actual wait is 50 to 100 % of this time."""
REFUSED_SECONDS = 10.0
"""The shortest time in seconds between two refused attempts, from the second refusal on. It doubles
with each refusal. A captive portal refuses the stream too, and it may be gone soon."""
STABLE_SECONDS = 10.0
"""The time in seconds after which a stream counts as stable. When a longer attempt ends, the count
of earlier failures is reset."""


def may_bring_new(memory: str, is_own: Callable[[str], bool]) -> bool:
    """Return whether a pull may find an unknown operation because of a stored memory.

    Ignore a memory that this process has sent itself: otherwise, while a backlog is sent, the
    session would be listed again and again. Also ignore a memory that no pull reads, such as a
    claim note or a memory that the server has derived.

    Args:
        memory: the id of the memory; empty if the event does not contain an id.
        is_own: a function that returns whether this process has recently sent the memory.
    """
    return not memory or (version_of(memory) is not None and not is_own(memory))


class ReconnectDelay:
    """The wait before the stream is opened again. It grows with each failure in a row. Pure."""

    def __init__(self, options: SyncOptions, chance: random.Random) -> None:
        self._options = options
        self._chance = chance
        self._failures = 0
        self._refusals = 0

    def after(self, error: RemoteError, seconds: float) -> float:
        """Return the seconds to wait after a stream has ended with an error.

        Args:
            seconds: the length of the attempt, from the request to the end of the stream.
        """
        self._failures = 0 if seconds > STABLE_SECONDS else self._failures + 1
        if error.verdict in (Verdict.UNREACHABLE, Verdict.BUSY):
            return pause_after(error, self._failures, self._options, self._chance)
        # Only another key or a newer server is likely to change this answer, so wait long.
        self._refusals += 1
        return UNSUPPORTED_SECONDS * (0.5 + 0.5 * self._chance.random())

    def after_success(self) -> float:
        """Return the shortest wait after a refusal if another request succeeds meanwhile.

        The refusal may have come from a captive portal, which refuses every request. So the first
        success allows an attempt immediately.
        """
        if self._refusals < 2:
            return 0.0
        return min(UNSUPPORTED_SECONDS, REFUSED_SECONDS * 2.0 ** min(self._refusals - 2, 16))

    def opened(self) -> None:
        """Record that the server has opened a stream."""
        self._refusals = 0


class Listener:
    """The task that keeps the event stream open."""

    def __init__(
        self,
        context: Context,
        on_hint: Callable[[str | None, str], None],
        on_down: Callable[[], None],
    ) -> None:
        """Prepare a listener.

        Args:
            on_hint: called with the agent for which a memory was stored, and with the id of the
                memory, or an empty string if the event has none. Called with None and an empty
                string if the stream may have missed events of any agent.
            on_down: called when an open stream has ended.
        """
        self._context = context
        self._on_hint = on_hint
        self._on_down = on_down
        self.is_up = False
        """True if the open stream has received an answer from the server."""
        self.up_since = math.inf
        """The monotonic time at which the open stream was opened; infinity if no stream is open."""
        self._delay = ReconnectDelay(context.options, context.runtime.random)
        self._succeeded = anyio.Event()

    def request_succeeded(self) -> None:
        """Record that the server has answered another request: a stream may be possible again."""
        self._succeeded.set()

    async def run(self, remote: EventSource) -> None:
        """Keep the stream open until cancelled."""
        runtime = self._context.runtime
        while True:
            began = runtime.monotonic()
            error = await self._listen(remote)
            pause = self._delay.after(error, runtime.monotonic() - began)
            log.debug("the event stream has ended (%s); retrying in %.1f s", error.reason, pause)
            await self._wait(pause, error)

    async def _wait(self, pause: float, error: RemoteError) -> None:
        """Wait before the next attempt, after a refusal only until another request succeeds."""
        shortest = pause
        if error.verdict not in (Verdict.UNREACHABLE, Verdict.BUSY):
            shortest = min(pause, self._delay.after_success())
        await anyio.sleep(shortest)
        self._succeeded = anyio.Event()
        with anyio.move_on_after(pause - shortest):
            await self._succeeded.wait()

    async def _listen(self, remote: EventSource) -> RemoteError:
        """Report the events of one stream to `on_hint`; return the error that ended the stream."""
        try:
            async with aclosing(remote.events()) as events:
                async for event in events:
                    self._opened()
                    if event is None:
                        self._on_hint(None, "")
                    elif may_bring_new(event[1], self._context.push_state.sent.__contains__):
                        self._on_hint(*event)
        except RemoteError as error:
            return error
        finally:
            if self.is_up:
                self.is_up, self.up_since = False, math.inf
                self._on_down()
        return RemoteError(Verdict.UNREACHABLE, "the server has closed the stream")

    def _opened(self) -> None:
        if not self.is_up:
            self.is_up, self.up_since = True, self._context.runtime.monotonic()
            self._delay.opened()
