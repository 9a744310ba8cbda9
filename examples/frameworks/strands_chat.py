"""A Strands agent that keeps its messages and state after a restart and on another device.

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


class CountingModel(Model):
    """A model that answers with the number of messages that it received."""

    def update_config(self, **model_config: Any) -> None:
        """Do nothing: the model has no configuration."""

    def get_config(self) -> Any:
        """Return an empty configuration."""
        return {}

    def structured_output(self, *arguments: Any, **kwargs: Any) -> Any:
        """Raise an error: the example does not use structured output."""
        raise NotImplementedError

    async def stream(self, messages: Any, *arguments: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Yield one sentence as the events that a provider sends."""
        text = f"I was given {len(messages)} messages."
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockStart": {"start": {}}}
        yield {"contentBlockDelta": {"delta": {"text": text}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}


def agent_over(cache: SessionCache, bridge: Bridge) -> Agent:
    """Return the agent of a session; Strands loads its stored messages and state."""
    repository = CachedSessionRepository(cache, bridge=bridge)
    manager = RepositorySessionManager("user-1", session_repository=repository)
    return Agent(
        model=CountingModel(), session_manager=manager, agent_id="helper", callback_handler=None
    )


def main() -> None:
    """Chat on a phone without a server, then on a laptop with an empty journal."""
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
