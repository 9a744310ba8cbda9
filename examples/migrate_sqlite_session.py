"""Migration from the SDK's `SQLiteSession`; a second run of the import adds nothing.

python examples/migrate_sqlite_session.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from agents import Runner, SQLiteSession

from cached_session import SessionCache, import_sqlite
from echo import echo_agent


async def main() -> None:
    """Import an old database twice, then run the next turn."""
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "old.db"
        old = SQLiteSession("user-123", database)
        await Runner.run(echo_agent(), "My name is Ada.", session=old)
        old.close()

        async with SessionCache(Path(directory) / "agent.db") as cache:
            for run in ("first", "second"):
                (report,) = await import_sqlite(cache, database)
                print(f"{run} run: {report}")
            session = cache.session("user-123")
            assert len(await session.get_items()) == 2
            result = await Runner.run(echo_agent(), "What is my name?", session=session)
            print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main())
