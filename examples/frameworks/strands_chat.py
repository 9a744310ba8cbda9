"""A Strands agent whose messages and state outlive the process, and the device.

python examples/frameworks/strands_chat.py    (extras: strands, devserver)
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from strands import Agent
from strands.models import Model
from strands.session import RepositorySessionManager

from cached_session import SessionCache
from cached_session.adapters import Bridge
from cached_session.adapters.strands import CachedSessionRepository
from cached_session.devserver import DevServer


class Counting(Model):
    """Stands for a model: it says how much it was told."""

    def update_config(self, **model_config: Any) -> None:
        """Nothing to configure."""

    def get_config(self) -> Any:
        """Nothing to configure."""
        return {}

    def structured_output(self, *arguments: Any, **kwargs: Any) -> Any:
        """Not needed here."""
        raise NotImplementedError

    async def stream(self, messages: Any, *arguments: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """One sentence, as the events that a provider sends."""
        said = f"I was given {len(messages)} messages."
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": said}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


def agent_over(cache: SessionCache, bridge: Bridge) -> Agent:
    """The agent of a session; Strands gives it the messages and the state that are there."""
    repository = CachedSessionRepository(cache, bridge=bridge)
    manager = RepositorySessionManager("user-1", session_repository=repository)
    return Agent(
        model=Counting(), session_manager=manager, agent_id="helper", callback_handler=None
    )


def main() -> None:
    """A phone without a server, and a laptop that has only the server."""
    with tempfile.TemporaryDirectory() as name, DevServer() as server, Bridge() as bridge:
        at = Path(name)
        server.stop()
        with bridge.enter(SessionCache(at / "phone.db", url=server.url)) as cache:
            agent = agent_over(cache, bridge)
            agent.state.set("seat", "window")
            print("offline:", str(agent("Hello")).strip())
            server.start()
            bridge.run(cache.flush, 30)
        with bridge.enter(SessionCache(at / "laptop.db", url=server.url)) as cache:
            agent = agent_over(cache, bridge)
            print("laptop:", str(agent("Do you know me?")).strip())
            print("laptop: the seat is at the", agent.state.get("seat"))


if __name__ == "__main__":
    main()
