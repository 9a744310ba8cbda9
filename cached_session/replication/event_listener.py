"""One event stream for all open sessions: each event is a hint to pull now, and nothing more.

What events miss, and they may miss anything, polling finds: slowly while the stream is up, at its
usual pace while it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

import anyio

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.ids import version_of
from cached_session.remote.protocol import EventSource
from cached_session.replication.backoff import pause_after
from cached_session.replication.context import Context, log

__all__ = ["Listener"]

RARELY = 600.0
"""Seconds until a server that has no stream for us is asked again."""
LASTED = 10.0
"""A stream that was up so long was no failure: the next one is tried as after the first."""


class Listener:
    """Keeps the stream open until cancelled."""

    def __init__(
        self, context: Context, hint: Callable[[str | None], None], down: Callable[[], None]
    ):
        self._context = context
        self._hint = hint
        self._down = down
        self.is_up = False
        """Whether the server has answered on the stream that is open now."""

    async def run(self, remote: EventSource) -> None:
        """Listen, and again after each end, later and later while it fails."""
        clock, failures = self._context.runtime.monotonic, 0
        while True:
            began = clock()
            error = await self._listen(remote)
            failures = 0 if clock() - began > LASTED else failures + 1
            if error.verdict not in (Verdict.UNREACHABLE, Verdict.BUSY):
                # Time alone will hardly change it: another key, or a newer server, may.
                pause = RARELY * (0.5 + 0.5 * self._context.runtime.random.random())
            else:
                options, chance = self._context.options, self._context.runtime.random
                pause = pause_after(error, failures, options, chance)
            log.debug("the event stream ended, again in %.1f s: %s", pause, error.reason)
            await anyio.sleep(pause)

    async def _listen(self, remote: EventSource) -> RemoteError:
        """Hand on the events of one stream; why it ended."""
        try:
            async with aclosing(remote.events()) as events:
                async for event in events:
                    self.is_up = True
                    if event is None:
                        self._hint(None)
                    elif self._is_news(event[1]):
                        self._hint(event[0])
        except RemoteError as error:
            return error
        finally:
            if self.is_up:
                self.is_up = False
                self._down()
        return RemoteError(Verdict.UNREACHABLE, "the server closed it")

    def _is_news(self, memory: str) -> bool:
        """Not what was sent from here, whoever wrote it: a backlog would be listed again and again
        while it is being sent. Not what no pull reads, as notes and sentences of memories."""
        return not memory or (
            version_of(memory) is not None and memory not in self._context.push_state.sent
        )
