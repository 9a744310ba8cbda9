"""One event stream for all open sessions. Each event is a hint to pull a session soon.

The stream may miss any event. Polling finds missed changes: slowly while the stream is up, and at
its usual interval while it is not.
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
"""Seconds until a server that refuses the stream is asked again."""
STABLE_SECONDS = 10.0
"""The failures before a stream that was up for longer than this are forgotten."""


def may_bring_new(memory: str, is_own: Callable[[str], bool]) -> bool:
    """Return whether a stored memory may hold something that a pull would bring.

    A memory that this process has sent brings nothing: while a backlog is sent, its session would
    be listed again and again. A memory that no pull reads brings nothing either, such as a claim
    note or a memory that the server has derived.

    Args:
        memory: the id of the memory; empty if the event does not name it.
        is_own: return whether this process has sent a memory recently.
    """
    return not memory or (version_of(memory) is not None and not is_own(memory))


class ReconnectDelay:
    """The wait before the stream is opened again, which grows while it fails. Pure."""

    def __init__(self, options: SyncOptions, chance: random.Random) -> None:
        self._options = options
        self._chance = chance
        self._failures = 0

    def after(self, error: RemoteError, seconds: float) -> float:
        """Return the seconds to wait after a stream that has ended with an error.

        Args:
            seconds: how long the attempt lasted, from the request to the end of the stream.
        """
        self._failures = 0 if seconds > STABLE_SECONDS else self._failures + 1
        if error.verdict in (Verdict.UNREACHABLE, Verdict.BUSY):
            return pause_after(error, self._failures, self._options, self._chance)
        # Another key or a newer server may change this answer, time alone hardly does.
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
            on_hint: called with the agent for which something was stored; with None if the stream
                may have missed events of any agent.
            on_down: called when an open stream has ended.
        """
        self._context = context
        self._on_hint = on_hint
        self._on_down = on_down
        self.is_up = False
        """True if the server has answered on the stream that is open now."""

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
        """Pass on the events of one stream; return why it has ended."""
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
