"""A page with two devices that show one conversation; each device can be disconnected.

python examples/chat_service/side_by_side.py --port 8000

Each device is a chat service with its own journal. A `Network` of `cached_session.testing` connects
it to the memory server (here the development server), so that the page can cut the connection.
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
FAST_SYNC = SyncOptions(poll_interval=0.5, poll_interval_idle=1.0, backoff_max=1.0)
"""Short intervals, so that changes appear within a second."""


class Switch(BaseModel):
    """The position of the network switch of a device."""

    up: bool
    """True if the network is connected."""


def create_page(directory: Path, server: str) -> FastAPI:
    """Return the page with two devices; their journals are in `directory`."""
    networks: dict[str, Network] = {}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name in ("phone", "laptop"):
                networks[name] = stack.enter_context(Network(server))
                device = create_service(directory / f"{name}.db", networks[name].url, FAST_SYNC)
                # FastAPI does not run the lifespan of a mounted application.
                await stack.enter_async_context(device.router.lifespan_context(device))
                app.mount(f"/{name}", device)
            yield

    page = FastAPI(title="Two devices", lifespan=lifespan)
    page.mount("/page", StaticFiles(directory=PAGE))

    @page.get("/")
    async def index() -> FileResponse:
        """Return the page: plain HTML, CSS and JavaScript."""
        return FileResponse(PAGE / "index.html")

    @page.post("/links/{device}")
    async def switch(device: str, wanted: Switch) -> Switch:
        """Disconnect a device, or connect it again."""
        if device not in networks:
            raise HTTPException(404, f"unknown device {device!r}; the devices are phone and laptop")
        network = networks[device]
        await asyncio.to_thread(network.mend if wanted.up else network.cut)
        return wanted

    return page


async def main() -> None:
    """Serve the page until interrupted."""
    arguments = argparse.ArgumentParser(description="Serve a page with two devices.")
    arguments.add_argument(
        "--port", type=int, default=8000, help="port to bind; 0 takes a free one"
    )
    port: int = arguments.parse_args().port
    with tempfile.TemporaryDirectory() as directory, DevServer() as server:
        config = uvicorn.Config(
            create_page(Path(directory), server.url),
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=1,  # open pages keep event streams open
        )
        serving = asyncio.create_task((web := uvicorn.Server(config)).serve())
        while not web.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.05)
        if web.started:
            address = web.servers[0].sockets[0].getsockname()
            print(f"open http://{address[0]}:{address[1]}", flush=True)
        await serving


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
