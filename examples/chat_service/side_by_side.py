"""Two devices on one page: they follow each other, and each can be cut off.

python examples/chat_service/side_by_side.py --port 8000

Each device is a whole chat service with a journal of its own; between it and the memory server (the
development server) lies a line with a switch, as `cached_session.testing` has them for tests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent))
from service import create_service

from cached_session import SyncOptions
from cached_session.devserver import DevServer
from cached_session.testing import Network

PAGE = Path(__file__).parent / "page"
LIVELY = SyncOptions(poll_interval=0.5, poll_interval_idle=1.0, backoff_max=1.0)
"""For watching: a device looks every half second, and soon tries again."""


class Switch(BaseModel):
    """Where a line's switch is put."""

    up: bool


def create_page(directory: Path, server: str) -> FastAPI:
    """The page over two devices whose journals are in a directory."""
    lines: dict[str, Network] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name in ("phone", "laptop"):
                lines[name] = stack.enter_context(Network(server))
                device = create_service(directory / f"{name}.db", lines[name].url, LIVELY)
                # A mounted application's own lifespan is its parent's to run.
                await stack.enter_async_context(device.router.lifespan_context(device))
                app.mount(f"/{name}", device)
            yield

    page = FastAPI(title="Two devices", lifespan=lifespan)
    page.mount("/page", StaticFiles(directory=PAGE))

    @page.get("/")
    async def index() -> FileResponse:
        """The page itself: plain HTML, CSS and JavaScript."""
        return FileResponse(PAGE / "index.html")

    @page.post("/links/{device}")
    async def switch(device: str, wanted: Switch) -> Switch:
        """Cut a device off, or connect it again."""
        if device not in lines:
            raise HTTPException(404, f"there is no device {device!r}")
        line = lines[device]
        await asyncio.to_thread(line.mend if wanted.up else line.cut)
        return wanted

    return page


async def main() -> None:
    """Serve until interrupted."""
    arguments = argparse.ArgumentParser(description="Two devices on one page.")
    arguments.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    port: int = arguments.parse_args().port
    with tempfile.TemporaryDirectory() as directory, DevServer() as server:
        config = uvicorn.Config(
            create_page(Path(directory), server.url),
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=1,  # an open page holds its event streams
        )
        serving = asyncio.create_task((web := uvicorn.Server(config)).serve())
        while not web.started and not serving.done():  # noqa: ASYNC110 - uvicorn tells nobody
            await asyncio.sleep(0.05)
        if web.started:
            address = web.servers[0].sockets[0].getsockname()
            print(f"open http://{address[0]}:{address[1]}", flush=True)
        await serving


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
