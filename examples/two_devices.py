"""Two devices with one conversation: both write offline, sync, and show the same history.

python examples/two_devices.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from cached_session import CachedSession
from cached_session.devserver import DevServer
from echo import text_of


async def main() -> None:
    """Write with a server, without it, and sync when it is back."""
    with tempfile.TemporaryDirectory() as name, DevServer() as server:
        at = Path(name)
        async with (
            CachedSession.from_url("trip", url=server.url, journal=at / "phone.db") as phone,
            CachedSession.from_url("trip", url=server.url, journal=at / "laptop.db") as laptop,
        ):
            await phone.add_items([{"role": "user", "content": "phone: we go to Oslo"}])
            await phone.flush(timeout=30)
            await laptop.sync(timeout=30)

            server.stop()
            await phone.add_items([{"role": "user", "content": "phone: by train"}])
            await laptop.add_items([{"role": "user", "content": "laptop: on Friday"}])
            await phone.add_items([{"role": "user", "content": "phone: at nine"}])
            print(f"offline: {phone.status().pending} + {laptop.status().pending} pending")

            server.start()
            for device in (phone, laptop, phone):
                await device.sync(timeout=30)
            here, there = await phone.get_items(), await laptop.get_items()
            assert here == there
            for item in here:
                print(f"  {text_of(item)}")
            print(f"synced: {phone.status().pending} + {laptop.status().pending} pending")


if __name__ == "__main__":
    asyncio.run(main())
