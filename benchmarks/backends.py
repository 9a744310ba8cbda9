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

from cached_session import CachedSession, SyncOptions
from conversations import Item, chunks
from make_journals import make
from measure import say
from servers import free_port

__all__ = [
    "DIRECT",
    "FLOOR",
    "NORMAL",
    "OURS",
    "PEER",
    "REDIS",
    "SESSION_ID",
    "Arm",
    "DirectDakera",
    "Floor",
    "fill",
    "open_arms",
]

SESSION_ID = "benchmark"
FLOOR, PEER, REDIS = "floor", "AsyncSQLiteSession", "RedisSession"
OURS, NORMAL, DIRECT = "ours, local", "ours, NORMAL", "one request per item"
LONG = 100_000
"""Histories longer than this are made for fewer arms: those that write them in seconds."""


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
    """The obvious backend: one request per item, nothing kept here."""

    def __init__(self, client: AsyncDakeraClient, agent: str = SESSION_ID) -> None:
        self._client = client
        self._agent = agent

    async def get_items(self, limit: int | None = None) -> Sequence[Any]:
        """The latest items, in pages."""
        found: list[Any] = []
        while limit is None or len(found) < limit:
            most = 500 if limit is None else min(500, limit - len(found))
            page = await self._list(most, len(found))
            found += [orjson.loads(memory["content"]) for memory in page]
            if len(page) < most:
                break
        return found[::-1]

    async def add_items(self, items: Any) -> None:
        """Append, one request after the other."""
        for item in items:
            await self._client.store_memory(self._agent, orjson.dumps(item).decode())

    async def pop_item(self) -> Any:
        """Remove the latest: list, then forget."""
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
        """Make a history, in batches: its making is not what is measured."""
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


async def fill(arm: Any, items: Sequence[Item]) -> None:
    """Make a history."""
    if isinstance(arm, DirectDakera):
        await arm.fill(items)
        return
    for batch in chunks(items):
        await arm.add_items(batch)


async def open_arms(
    stack: AsyncExitStack,
    directory: Path,
    items: Sequence[Item],
    url: str | None,
    redis_url: str | None,
) -> dict[str, Any]:
    """Every arm that this machine has, each over a history of its own with these items."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - before anything is measured
    is_long = len(items) > LONG
    arms: dict[str, Any] = {FLOOR: Floor(directory / "floor.db")}
    stack.push_async_callback(arms[FLOOR].close)
    arms["SQLiteSession"] = plain = SQLiteSession(SESSION_ID, directory / "sync.db")
    stack.callback(plain.close)
    arms[PEER] = peer = AsyncSQLiteSession(SESSION_ID, directory / "async.db")
    stack.push_async_callback(peer.close)
    if not is_long:
        _add_alchemy(stack, arms, directory)
    if redis_url is not None and not is_long:
        _add_redis(stack, arms, redis_url)
    await make(directory / "local.db", SESSION_ID, items)
    arms[OURS] = await stack.enter_async_context(
        CachedSession(SESSION_ID, journal=directory / "local.db")
    )
    if not is_long:
        await make(directory / "normal.db", SESSION_ID, items)
        arms[NORMAL] = await stack.enter_async_context(
            CachedSession(
                SESSION_ID,
                journal=directory / "normal.db",
                options=SyncOptions(durability="normal"),
            )
        )
    if url is not None and not is_long:
        for name, server in (
            ("ours, online", url),
            ("ours, unreachable", f"http://127.0.0.1:{free_port()}"),
        ):
            journal, session_id = directory / f"{name}.db", f"{name}-{len(items)}"
            await make(journal, session_id, items)
            session = CachedSession.from_url(session_id, url=server, journal=journal, hydrate=False)
            arms[name] = await stack.enter_async_context(session)
        client = await stack.enter_async_context(AsyncDakeraClient(url))
        arms[DIRECT] = DirectDakera(client, f"direct-{len(items)}")
    for name, arm in arms.items():
        if not name.startswith("ours"):
            await fill(arm, items)
    if "ours, online" in arms:
        await arms["ours, online"].flush(600)
    return arms


def _add_alchemy(stack: AsyncExitStack, arms: dict[str, Any], directory: Path) -> None:
    try:
        alchemy = importlib.import_module("agents.extensions.memory.sqlalchemy_session")
    except ImportError:
        say("SQLAlchemySession is left out: sqlalchemy is not installed (extra `bench`)")
        return
    session = alchemy.SQLAlchemySession.from_url(
        SESSION_ID, url=f"sqlite+aiosqlite:///{directory / 'alchemy.db'}", create_tables=True
    )
    arms["SQLAlchemySession"] = session
    stack.push_async_callback(session.engine.dispose)


def _add_redis(stack: AsyncExitStack, arms: dict[str, Any], url: str) -> None:
    try:
        module = importlib.import_module("agents.extensions.memory.redis_session")
    except ImportError:
        say("RedisSession is left out: redis is not installed (extra `bench`)")
        return
    arms[REDIS] = session = module.RedisSession.from_url(f"bench-{uuid.uuid4().hex}", url=url)
    stack.push_async_callback(session.close)
