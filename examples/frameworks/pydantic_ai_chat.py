"""A Pydantic AI agent that goes on where it was, on another device too.

python examples/frameworks/pydantic_ai_chat.py    (extras: pydantic-ai, devserver)
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cached_session import CachedSession
from cached_session.adapters.pydantic_ai import CachedMessageHistory
from cached_session.devserver import DevServer


def count(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Stands for a model: it says how much it was told."""
    return ModelResponse([TextPart(f"I was given {len(messages)} messages.")])


async def ask(session: CachedSession, words: str) -> str:
    """One run, with what was said before; what it adds is one batch."""
    history = CachedMessageHistory(session)
    result = await Agent(FunctionModel(count)).run(words, message_history=await history.messages())
    await history.add(result.new_messages())
    return str(result.output)


async def main() -> None:
    """A phone without a server, and a laptop that has only the server."""
    with tempfile.TemporaryDirectory() as name, DevServer() as server:
        at = Path(name)
        server.stop()
        async with CachedSession.from_url("a", url=server.url, journal=at / "phone.db") as phone:
            print("offline:", await ask(phone, "Hello"))
            print("offline:", await ask(phone, "And now?"))
            server.start()
            await phone.flush(timeout=30)
        async with CachedSession.from_url("a", url=server.url, journal=at / "laptop.db") as laptop:
            print("laptop:", await ask(laptop, "Do you know me?"))


if __name__ == "__main__":
    asyncio.run(main())
