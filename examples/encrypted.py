"""A conversation that the server cannot read: the SDK's `EncryptedSession` over `CachedSession`.

python examples/encrypted.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from agents import Runner
from agents.extensions.memory import EncryptedSession

from cached_session import CachedSession
from cached_session.devserver import DevServer
from echo import echo_agent

KEY = "a passphrase that every device of this user has"


def untyped(session: CachedSession) -> Any:
    """Return the session as `Any`: the wrapper is annotated with the SDK's base class."""
    return session


async def main() -> None:
    """Write on one device, check that the server holds no readable text, read on another device."""
    with tempfile.TemporaryDirectory() as name, DevServer() as server:
        at = Path(name)
        async with CachedSession.from_url(
            "diary", url=server.url, journal=at / "phone.db", content="none"
        ) as phone:
            diary = EncryptedSession("diary", untyped(phone), encryption_key=KEY, ttl=10**9)
            await Runner.run(echo_agent(), "I saw a heron today.", session=diary)
            await phone.flush(timeout=30)

        (agent,) = server.agents()
        stored = json.dumps(server.memories(agent)) + (at / "phone.db").read_bytes().hex()
        assert "heron" not in stored
        assert b"heron".hex() not in stored
        print("neither the server nor the journal holds a readable word")

        async with CachedSession.from_url(
            "diary", url=server.url, journal=at / "laptop.db", content="none"
        ) as laptop:
            diary = EncryptedSession("diary", untyped(laptop), encryption_key=KEY, ttl=10**9)
            result = await Runner.run(echo_agent(), "And a crane.", session=diary)
            print(f"the other device continues: {result.final_output}")


if __name__ == "__main__":
    asyncio.run(main())
