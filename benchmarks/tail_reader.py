"""A process that reads the tail of a history a hundred times, and says how much memory it took.

A process of its own, with nothing in it but this library: `python tail_reader.py JOURNAL SESSION`.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from pathlib import Path

from cached_session import CachedSession


async def _read(path: str, session_id: str) -> None:
    async with CachedSession(session_id, journal=path) as session:
        for _ in range(100):
            await session.get_items(20)


def _peak_mib() -> float:
    """The most resident memory so far. Not by getrusage where there is better: a process begins
    there with the peak of whoever started it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1024


if __name__ == "__main__":
    asyncio.run(_read(*sys.argv[1:3]))
    print(_peak_mib())
