"""Listen to one event stream for all open sessions. Each event is a hint to pull a session soon.

The stream may miss any event. Polling finds missed changes: at a long interval while the stream is
up, and at its usual interval while the stream is down.
"""

from __future__ import annotations

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
"""The time in seconds before the stream is requested again from a server that has refused it. The
actual wait is 50 to 100 % of this time."""
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

    def after(self, error: RemoteError, seconds: float) -> float:
        """Return the seconds to wait after a stream has ended with an error.

        Args:
            seconds: the length of the attempt, from the request to the end of the stream.
        """
        self._failures = 0 if seconds > STABLE_SECONDS else self._failures + 1
        if error.verdict in (Verdict.UNREACHABLE, Verdict.BUSY):
            return pause_after(error, self._failures, self._options, self._chance)
        # Only another key or a newer server is likely to change this answer, so wait long.
        return UNSUPPORTED_SECONDS * (0.5 + 0.5 * self._chance.random())


class Listener:
    """The task that keeps the event stream open."""

    def __init__(
        self,
        context: Context,
        on_hint: Callable[[str | None], None],
        on_down: Callable[[], None],
    ) -> None:
        """Prepare a listener.

        Args:
            on_hint: called with the agent for which a memory was stored, or with None if the
                stream may have missed events of any agent.
            on_down: called when an open stream has ended.
        """
        self._context = context
        self._on_hint = on_hint
        self._on_down = on_down
        self.is_up = False
        """True if the open stream has received an answer from the server."""

    async def run(self, remote: EventSource) -> None:
        """Keep the stream open until cancelled."""
        runtime = self._context.runtime
        delay = ReconnectDelay(self._context.options, runtime.random)
        while True:
            began = runtime.monotonic()
            error = await self._listen(remote)
            pause = delay.after(error, runtime.monotonic() - began)
            log.debug("the event stream has ended (%s); retrying in %.1f s", error.reason, pause)
            await anyio.sleep(pause)

    async def _listen(self, remote: EventSource) -> RemoteError:
        """Report the events of one stream to `on_hint`; return the error that ended the stream."""
        try:
            async with aclosing(remote.events()) as events:
                async for event in events:
                    self.is_up = True
                    if event is None:
                        self._on_hint(None)
                    elif may_bring_new(event[1], self._context.push_state.sent.__contains__):
                        self._on_hint(event[0])
        except RemoteError as error:
            return error
        finally:
            if self.is_up:
                self.is_up = False
                self._on_down()
        return RemoteError(Verdict.UNREACHABLE, "the server has closed the stream")
