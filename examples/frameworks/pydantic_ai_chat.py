"""A Pydantic AI agent that continues a conversation after a restart and on another device.

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
    """Return an answer with the number of messages that the model received."""
    return ModelResponse([TextPart(f"I was given {len(messages)} messages.")])


async def ask(session: CachedSession, question: str) -> str:
    """Run one turn with the history, add its messages as one batch, and return the answer."""
    history = CachedMessageHistory(session)
    agent = Agent(FunctionModel(count))
    result = await agent.run(question, message_history=await history.messages())
    await history.add(result.new_messages())
    return str(result.output)


async def main() -> None:
    """Chat on a phone without a server, then on a laptop with an empty journal."""
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
