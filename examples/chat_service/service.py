"""A chat service for many users with one `SessionCache`, which opens and closes with the service.

No request waits for the memory server, because each reads and writes only the local journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agents import Runner
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from cached_session import CachedSession, SessionCache, SyncOptions

sys.path.insert(0, str(Path(__file__).parent.parent))
from echo import echo_agent, text_of

LATEST = 50
"""Number of messages that a page shows."""


class Message(BaseModel):
    """A message of a user."""

    text: str = Field(min_length=1, max_length=4000)


async def view(session: CachedSession) -> dict[str, Any]:
    """Return the data that a page shows of a session, read from the journal only."""
    status = session.status()
    return {
        "state": status.state,
        "pending": status.pending,
        "messages": [
            {
                "rank": entry.rank,
                "role": entry.item.get("role", "tool"),
                "text": text_of(entry.item),
                "sent": entry.sync_state == "acked",
            }
            for entry in await session.entries(LATEST)
        ],
    }


async def view_events(session: CachedSession) -> AsyncIterator[str]:
    """Yield the view as a server-sent event, now and at each change."""
    shown = ""
    changes = session.changes()
    while True:
        current = json.dumps(await view(session))
        if current != shown:
            yield f"data: {current}\n\n"
            shown = current
        # `changes` does not report whether the server is reachable, so compare each second.
        # A step that times out loses no change: the next one reports it.
        with contextlib.suppress(asyncio.TimeoutError):
            if await asyncio.wait_for(anext(changes, None), 1.0) is None:
                return  # the service closes


def create_service(journal: Path, url: str | None, options: SyncOptions | None = None) -> FastAPI:
    """Return a service with its own journal; without ``url`` it does not sync."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with SessionCache(journal, url=url, options=options or SyncOptions()) as cache:
            app.state.cache = cache
            yield

    service = FastAPI(title="Chat", lifespan=lifespan)

    def session_of(user: str) -> CachedSession:
        cache: SessionCache = service.state.cache
        return cache.session(f"chat/{user}")  # cheap: no I/O, nothing to close

    @service.post("/users/{user}/messages")
    async def say(user: str, message: Message) -> dict[str, str]:
        """Run one turn; the message and the answer are in the journal before this returns."""
        result = await Runner.run(echo_agent(), message.text, session=session_of(user))
        return {"reply": str(result.final_output)}

    @service.get("/users/{user}/messages")
    async def read(user: str) -> dict[str, Any]:
        """Return the latest messages of a user."""
        return await view(session_of(user))

    @service.get("/users/{user}/events")
    async def follow(user: str) -> StreamingResponse:
        """Stream the latest messages as server-sent events, one at each change.

        A change is a new message here or on another device, or a change of the pending count.
        """
        return StreamingResponse(view_events(session_of(user)), media_type="text/event-stream")

    @service.get("/status")
    async def status() -> dict[str, Any]:
        """Return the status of the whole cache, for a health check."""
        found = service.state.cache.status()
        return {"state": found.state, "pending": found.pending, "parked": found.parked}

    return service
