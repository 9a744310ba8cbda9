"""Check the library with nothing but the wheel installed. CI runs this script."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import cached_session
from cached_session import CachedSession, InvalidArgument

EXTRAS = ("agents", "openai", "pytest", "rich", "starlette", "typer", "uvicorn")


async def use(journal: Path) -> None:
    """Write, read, pop, close, and read again."""
    said = [
        {"role": "user", "content": "Hello, Grüße, 你好"},
        {"role": "assistant", "content": "Hi"},
    ]
    async with CachedSession("a session", journal=str(journal)) as session:
        await session.add_items(said)
        assert await session.get_items() == said
        assert await session.get_items(1) == said[1:]
        assert await session.pop_item() == said[1]
    async with CachedSession("a session", journal=str(journal)) as session:
        assert await session.get_items() == said[:1], "the journal remembers"
        await session.clear_session()
        assert await session.get_items() == []
        status = session.status()
        assert status.state == "local", status
    try:
        CachedSession("")
    except InvalidArgument:
        pass
    else:
        raise AssertionError("an empty session id was taken")


def main() -> None:
    """Check the location of the package, use it, and check which modules it imported."""
    where = Path(cached_session.__file__)
    assert "site-packages" in where.parts, f"this is not the wheel: {where}"
    assert (where.parent / "py.typed").exists(), "the types were left out"
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(use(Path(directory) / "journal.db"))
    loaded = [name for name in EXTRAS if name in sys.modules]
    assert not loaded, f"extras were imported: {loaded}"
    print(f"cached-session {version('cached-session')} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
