"""The backends to compare: this library, alternatives of the SDK, Redis, Dakera, and bare SQLite.

This library is measured without a server, with a server, and with an unreachable server. The floor
is `sqlite3` without a library around it.
"""

from __future__ import annotations

import importlib
import sqlite3
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import orjson
from agents import SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession
from dakera import AsyncDakeraClient

from cached_session import CachedSession, SyncOptions
from conversations import Item, chunks
from make_journals import make
from measure import print_progress
from servers import free_port

__all__ = [
    "DIRECT",
    "FLOOR",
    "NORMAL",
    "OURS",
    "PEER",
    "REDIS",
    "SESSION_ID",
    "Backend",
    "BareSqlite",
    "DirectDakera",
    "fill",
    "open_backends",
]

SESSION_ID = "benchmark"
FLOOR, PEER, REDIS = "floor", "AsyncSQLiteSession", "RedisSession"
OURS, NORMAL, DIRECT = "ours, local", "ours, NORMAL", "one request per item"
LONG = 100_000
"""Longer histories are measured only on the backends that can write them within seconds."""


class Backend(Protocol):
    """The measured part of the session protocol of the Agents SDK."""

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """Return the latest items."""
        ...

    async def add_items(self, items: Any) -> None:
        """Append items."""
        ...

    async def pop_item(self) -> Any:
        """Remove and return the latest item."""
        ...


class BareSqlite:
    """`sqlite3` with the same durability and JSON library as `CachedSession`.

    It runs in the thread of the event loop, which a library should not do.
    """

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, isolation_level=None)
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = FULL")
        self._conn.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, payload)")

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """Return the latest items."""
        rows = self._conn.execute(
            "SELECT payload FROM items ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)
        ).fetchall()
        items: list[Any] = orjson.loads(b"[" + b",".join([row[0] for row in reversed(rows)]) + b"]")
        return items

    async def add_items(self, items: Any) -> None:
        """Append items."""
        self._conn.execute("BEGIN IMMEDIATE")
        self._conn.executemany(
            "INSERT INTO items (payload) VALUES (?)", [(orjson.dumps(item),) for item in items]
        )
        self._conn.execute("COMMIT")

    async def pop_item(self) -> Any:
        """Remove and return the latest item."""
        row = self._conn.execute(
            "DELETE FROM items WHERE id = (SELECT max(id) FROM items) RETURNING payload"
        ).fetchone()
        return None if row is None else orjson.loads(row[0])

    async def close(self) -> None:
        """Close the file."""
        self._conn.close()


class DirectDakera:
    """A session without a local copy: one request to Dakera per item."""

    def __init__(self, client: AsyncDakeraClient, agent: str = SESSION_ID) -> None:
        self._client = client
        self._agent = agent

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """Return the latest items, page by page."""
        found: list[Any] = []
        while limit is None or len(found) < limit:
            size = 500 if limit is None else min(500, limit - len(found))
            page = await self._list(size, len(found))
            found += [orjson.loads(memory["content"]) for memory in page]
            if len(page) < size:
                break
        return found[::-1]

    async def add_items(self, items: Any) -> None:
        """Append items, one request after the other."""
        for item in items:
            await self._client.store_memory(self._agent, orjson.dumps(item).decode())

    async def pop_item(self) -> Any:
        """Remove and return the latest item with two requests: list, then forget."""
        page = await self._list(1, 0)
        if not page:
            return None
        await self._client._request(
            "POST",
            "/v1/memory/forget",
            data={"agent_id": self._agent, "memory_ids": [page[0]["id"]]},
        )
        return orjson.loads(page[0]["content"])

    async def fill(self, items: Sequence[Item]) -> None:
        """Store a history in batches; this is not measured."""
        for batch in chunks(items):
            memories = [{"content": orjson.dumps(item).decode()} for item in batch]
            await self._client._request(
                "POST",
                "/v1/memories/store/batch",
                data={"agent_id": self._agent, "memories": memories},
            )

    async def _list(self, limit: int, offset: int) -> list[dict[str, Any]]:
        page: list[dict[str, Any]] = await self._client._request(
            "GET",
            f"/v1/agents/{self._agent}/memories",
            params={"limit": limit, "offset": offset},
        )
        return page


async def fill(backend: Any, items: Sequence[Item]) -> None:
    """Store a history in a backend; this is not measured."""
    if isinstance(backend, DirectDakera):
        await backend.fill(items)
        return
    for batch in chunks(items):
        await backend.add_items(batch)


async def open_backends(
    stack: AsyncExitStack,
    directory: Path,
    items: Sequence[Item],
    url: str | None,
    redis_url: str | None,
) -> dict[str, Any]:
    """Open every backend that is installed, each with its own history of these items."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything is measured
    is_long = len(items) > LONG
    backends: dict[str, Any] = {FLOOR: BareSqlite(directory / "floor.db")}
    stack.push_async_callback(backends[FLOOR].close)
    backends["SQLiteSession"] = plain = SQLiteSession(SESSION_ID, directory / "sync.db")
    stack.callback(plain.close)
    backends[PEER] = peer = AsyncSQLiteSession(SESSION_ID, directory / "async.db")
    stack.push_async_callback(peer.close)
    if not is_long:
        _add_alchemy(stack, backends, directory)
    if redis_url is not None and not is_long:
        _add_redis(stack, backends, redis_url)
    await make(directory / "local.db", SESSION_ID, items)
    backends[OURS] = await stack.enter_async_context(
        CachedSession(SESSION_ID, journal=directory / "local.db")
    )
    if not is_long:
        await make(directory / "normal.db", SESSION_ID, items)
        backends[NORMAL] = await stack.enter_async_context(
            CachedSession(
                SESSION_ID,
                journal=directory / "normal.db",
                options=SyncOptions(durability="normal"),
            )
        )
    if url is not None and not is_long:
        await _add_online(stack, backends, directory, items, url)
    for name, backend in backends.items():
        if not name.startswith("ours"):
            await fill(backend, items)
    if "ours, online" in backends:
        await backends["ours, online"].flush(600)
    return backends


async def _add_online(
    stack: AsyncExitStack,
    backends: dict[str, Any],
    directory: Path,
    items: Sequence[Item],
    url: str,
) -> None:
    for name, server in (
        ("ours, online", url),
        ("ours, unreachable", f"http://127.0.0.1:{free_port()}"),
    ):
        journal, session_id = directory / f"{name}.db", f"{name}-{len(items)}"
        await make(journal, session_id, items)
        session = CachedSession.from_url(session_id, url=server, journal=journal, hydrate=False)
        backends[name] = await stack.enter_async_context(session)
    client = await stack.enter_async_context(AsyncDakeraClient(url))
    backends[DIRECT] = DirectDakera(client, f"direct-{len(items)}")


def _add_alchemy(stack: AsyncExitStack, backends: dict[str, Any], directory: Path) -> None:
    try:
        alchemy = importlib.import_module("agents.extensions.memory.sqlalchemy_session")
    except ImportError:
        print_progress("Skip SQLAlchemySession: sqlalchemy is not installed (extra `bench`)")
        return
    session = alchemy.SQLAlchemySession.from_url(
        SESSION_ID, url=f"sqlite+aiosqlite:///{directory / 'alchemy.db'}", create_tables=True
    )
    backends["SQLAlchemySession"] = session
    stack.push_async_callback(session.engine.dispose)


def _add_redis(stack: AsyncExitStack, backends: dict[str, Any], url: str) -> None:
    try:
        module = importlib.import_module("agents.extensions.memory.redis_session")
    except ImportError:
        print_progress("Skip RedisSession: redis is not installed (extra `bench`)")
        return
    backends[REDIS] = session = module.RedisSession.from_url(f"bench-{uuid.uuid4().hex}", url=url)
    stack.push_async_callback(session.close)
