"""A user's mistakes. A checker that accepts one of them reports the comment as unused."""

from __future__ import annotations

from cached_session import CachedSession, SyncOptions


async def make_mistakes(session: CachedSession) -> None:
    """Make each of them once."""
    CachedSession(1)  # type: ignore[arg-type]
    CachedSession("user-1", "agent.db")  # type: ignore[arg-type, call-arg]
    CachedSession("user-1", pop="twice")  # type: ignore[arg-type]
    CachedSession.from_url("user-1")  # type: ignore[call-arg]
    SyncOptions(durability="none")  # type: ignore[arg-type]
    await session.get_items("all")  # type: ignore[arg-type]
    await session.add_items("Hello")  # type: ignore[arg-type]
    session.status().pending = 0  # type: ignore[misc]
    session.get_item()  # type: ignore[attr-defined]
