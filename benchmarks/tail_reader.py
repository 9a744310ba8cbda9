"""A process that reads the tail of a history 100 times and prints its peak memory.

It imports only this library, so that no other memory is counted. Run it with
`python tail_reader.py JOURNAL SESSION`.
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
    """Return the peak resident memory in MiB.

    /proc is preferred, because getrusage starts with the peak of the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak_rss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 1024


if __name__ == "__main__":
    asyncio.run(_read(*sys.argv[1:3]))
    print(_peak_mib())
