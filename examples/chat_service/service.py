"""A chat service: many users, one `SessionCache`. The cache opens and closes with the service.

No request waits for the memory server: each reads and writes the journal beside the service.
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
"""Messages that a page shows."""


class Message(BaseModel):
    """What a person says."""

    text: str = Field(min_length=1, max_length=4000)


async def view(session: CachedSession) -> dict[str, Any]:
    """What a page shows of a session: from the journal alone."""
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


def create_service(journal: Path, url: str | None, options: SyncOptions | None = None) -> FastAPI:
    """The service over a journal of its own; without ``url`` it is local."""

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
        """One turn: the agent answers, and both are in the journal before this returns."""
        result = await Runner.run(echo_agent(), message.text, session=session_of(user))
        return {"reply": str(result.final_output)}

    @service.get("/users/{user}/messages")
    async def read(user: str) -> dict[str, Any]:
        """The latest messages of one user."""
        return await view(session_of(user))

    @service.get("/users/{user}/events")
    async def follow(user: str) -> StreamingResponse:
        """The same as a stream of server-sent events: one as soon as something has changed, here,
        on another device, or in what waits for the server."""

        async def events() -> AsyncIterator[str]:
            session, shown = session_of(user), ""
            changes = session.changes()
            while True:
                now = json.dumps(await view(session))
                if now != shown:
                    yield f"data: {now}\n\n"
                    shown = now
                # Whether the server can be reached is no change of the session: asked for each
                # second. A step that is timed out has told of nothing, and loses nothing.
                with contextlib.suppress(asyncio.TimeoutError):
                    if await asyncio.wait_for(anext(changes, None), 1.0) is None:
                        return  # the service closes

        return StreamingResponse(events(), media_type="text/event-stream")

    @service.get("/status")
    async def status() -> dict[str, Any]:
        """For a health check: how the whole cache stands."""
        now = service.state.cache.status()
        return {"state": now.state, "pending": now.pending, "parked": now.parked}

    return service
