"""Who is measured: this library in three weathers, what a user would pick instead, the floor."""

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

from cached_session import CachedSession
from corpus import Item
from session_speed import free_port

__all__ = ["FLOOR", "OURS", "PEER", "Arm", "Floor", "fill", "open_arms"]

SESSION_ID = "benchmark"
FLOOR, PEER, OURS = "floor", "AsyncSQLiteSession", "ours, local"
CHUNK = 1000
"""Items of one batch while a history is made."""


class Arm(Protocol):
    """The part of the agents' session protocol that is measured."""

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """The latest items."""
        ...

    async def add_items(self, items: Any) -> None:
        """Append."""
        ...

    async def pop_item(self) -> Any:
        """Remove the latest."""
        ...


class Floor:
    """What SQLite costs with nothing around it: called on the event loop's own thread, which no
    library should do, with the same durability and the same JSON library."""

    def __init__(self, path: Path) -> None:
        self._conn = sqlite3.connect(path, isolation_level=None)
        self._conn.execute("PRAGMA journal_mode = WAL")
        self._conn.execute("PRAGMA synchronous = FULL")
        self._conn.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, payload)")

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """The latest items."""
        rows = self._conn.execute(
            "SELECT payload FROM items ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,)
        ).fetchall()
        items: list[Any] = orjson.loads(b"[" + b",".join([row[0] for row in reversed(rows)]) + b"]")
        return items

    async def add_items(self, items: Any) -> None:
        """Append."""
        self._conn.execute("BEGIN IMMEDIATE")
        self._conn.executemany(
            "INSERT INTO items (payload) VALUES (?)", [(orjson.dumps(item),) for item in items]
        )
        self._conn.execute("COMMIT")

    async def pop_item(self) -> Any:
        """Remove the latest."""
        row = self._conn.execute(
            "DELETE FROM items WHERE id = (SELECT max(id) FROM items) RETURNING payload"
        ).fetchone()
        return None if row is None else orjson.loads(row[0])

    async def close(self) -> None:
        """Close the file."""
        self._conn.close()


class DirectDakera:
    """The obvious backend: one request an item, nothing kept here."""

    def __init__(self, client: AsyncDakeraClient) -> None:
        self._client = client

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """The latest items, in pages."""
        found: list[Any] = []
        while limit is None or len(found) < limit:
            most = 500 if limit is None else min(500, limit - len(found))
            page = await self._client._request(
                "GET",
                f"/v1/agents/{SESSION_ID}/memories",
                params={"limit": most, "offset": len(found)},
            )
            found += [orjson.loads(memory["content"]) for memory in page]
            if len(page) < most:
                break
        return found[::-1]

    async def add_items(self, items: Any) -> None:
        """Append, one request after the other."""
        for item in items:
            text = orjson.dumps(item).decode()
            await self._client.store_memory(SESSION_ID, text)

    async def pop_item(self) -> Any:
        """Remove the latest: list, then forget."""
        page = await self._client._request(
            "GET", f"/v1/agents/{SESSION_ID}/memories", params={"limit": 1}
        )
        if not page:
            return None
        await self._client._request(
            "POST",
            "/v1/memory/forget",
            data={"agent_id": SESSION_ID, "memory_ids": [page[0]["id"]]},
        )
        return orjson.loads(page[0]["content"])


async def fill(arm: Any, items: Sequence[Item]) -> None:
    """Make a history."""
    for start in range(0, len(items), CHUNK):
        await arm.add_items(items[start : start + CHUNK])


async def open_arms(
    stack: AsyncExitStack, directory: Path, items: Sequence[Item], url: str | None
) -> dict[str, Any]:
    """Every arm that this machine has, each over a history of its own with these items."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything is measured
    arms: dict[str, Any] = {FLOOR: Floor(directory / "floor.db")}
    stack.push_async_callback(arms[FLOOR].close)
    arms["SQLiteSession"] = plain = SQLiteSession(SESSION_ID, directory / "sync.db")
    stack.callback(plain.close)
    arms[PEER] = peer = AsyncSQLiteSession(SESSION_ID, directory / "async.db")
    stack.push_async_callback(peer.close)
    try:
        alchemy = importlib.import_module("agents.extensions.memory.sqlalchemy_session")
    except ImportError:
        print("SQLAlchemySession is left out: sqlalchemy is not installed (extra `bench`)")
    else:
        arms["SQLAlchemySession"] = alchemy.SQLAlchemySession.from_url(
            SESSION_ID, url=f"sqlite+aiosqlite:///{directory / 'alchemy.db'}", create_tables=True
        )
        stack.push_async_callback(arms["SQLAlchemySession"].engine.dispose)
    await _add_redis(stack, arms)
    arms[OURS] = await stack.enter_async_context(
        CachedSession(SESSION_ID, journal=directory / "local.db")
    )
    for arm in arms.values():
        await fill(arm, items)
    if url is not None:
        for name, server in (
            ("ours, online", url),
            ("ours, unreachable", f"http://127.0.0.1:{free_port()}"),
        ):
            session = CachedSession.from_url(
                f"{name}-{len(items)}", url=server, journal=directory / f"{name}.db", hydrate=False
            )
            arms[name] = await stack.enter_async_context(session)
            await fill(session, items)
        await arms["ours, online"].flush(600)
    return arms


async def _add_redis(stack: AsyncExitStack, arms: dict[str, Any]) -> None:
    try:
        module = importlib.import_module("agents.extensions.memory.redis_session")
        redis = module.RedisSession.from_url(f"bench-{uuid.uuid4().hex}", url="redis://127.0.0.1")
        await redis.get_items(1)
    except (ImportError, OSError):
        print("Redis is left out: no client library, or nothing listens on its port")
        return
    except Exception as error:
        # The client has an error tree of its own, not rooted in OSError.
        if type(error).__module__.split(".")[0] != "redis":
            raise
        print(f"Redis is left out: {error}")
        return
    arms["Redis"] = redis
    stack.push_async_callback(redis.close)
