"""A first session: an agent remembers a conversation after a restart, without a server.

python examples/quickstart.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from agents import Runner

from cached_session import CachedSession
from echo import echo_agent


async def talk(journal: Path, question: str) -> None:
    """Run one turn with a newly opened session, as after a restart."""
    async with CachedSession("user-123", journal=journal) as session:
        result = await Runner.run(echo_agent(), question, session=session)
        print(f"> {question}\n< {result.final_output}")


async def main() -> None:
    """Run two turns; the agent remembers the first in the second."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "agent.db"
        await talk(journal, "My name is Ada.")
        await talk(journal, "What is my name?")


if __name__ == "__main__":
    asyncio.run(main())
