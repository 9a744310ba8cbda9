"""Everything that is promised about speed, measured beside what a user would pick instead.

All arms are interleaved in one run, so that noise hits them alike: what counts are the ratios. The
parts can be run one by one (`--only`); `report.py` puts what they wrote together.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import targets
from call_cost import calls, concurrent
from conversations import history
from growth import disk, growth, memory
from idle import idle
from measure import Numbers, say
from scale import ALL, FULL, QUICK, SMOKE, Scale
from sync_cost import busy, events, sync

__all__ = ["PARTS", "main", "run"]

PARTS: dict[str, Callable[[Path, Scale], Awaitable[Numbers]]] = {
    "calls": calls,
    "concurrent": concurrent,
    "busy": busy,
    "events": events,
    "sync": sync,
    "growth": growth,
    "disk": disk,
    "memory": memory,
    "idle": idle,
}


async def run(scale: Scale, only: list[str]) -> Numbers:
    """Some parts: {"machine": ..., "parts": {name: numbers}}."""
    logging.getLogger("cached_session").addHandler(logging.NullHandler())  # one arm is offline
    found: Numbers = {"machine": _machine(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as temporary:
        for name in only:
            say(name)
            load, start = os.getloadavg()[0], time.perf_counter()
            history(1)
            gc.collect()
            gc.freeze()  # what was loaded until here is nobody's cost
            place = Path(temporary) / name
            place.mkdir()
            part = await PARTS[name](place, scale)
            spent = time.perf_counter() - start
            found["parts"][name] = {"scale": scale.name, "load": load, "took": spent, **part}
            say(f"{name} took {spent:.0f} s")
    return found


def _machine() -> str:
    agents = metadata.version("openai-agents")
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, openai-agents {agents}"
    )


def _cells(text: str) -> tuple[tuple[int, float], ...]:
    pairs = (one.split("@") for one in text.split(","))
    return tuple((int(items), float(latency)) for items, latency in pairs)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const=QUICK, dest="scale", help="1 minute")
    size.add_argument(
        "--all",
        action="store_const",
        const=ALL,
        dest="scale",
        help="also what takes most of a minute each: 100,000 items synced at 0 and 200 ms",
    )
    size.add_argument(
        "--smoke", action="store_const", const=SMOKE, dest="scale", help="does it still run?"
    )
    parser.add_argument(
        "--cells",
        type=_cells,
        help="what `sync` measures instead, as in 1000@20,100000@200 (items@ms)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(PARTS),
        metavar="PART",
        help=f"one part of {', '.join(PARTS)}; may be given more than once",
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    asked: Any = parser.parse_args()
    wanted = [name for name in PARTS if not asked.only or name in asked.only]
    scale: Scale = asked.scale or FULL
    if asked.cells:
        scale = replace(scale, cells=asked.cells)
    numbers = asyncio.run(run(scale, wanted))
    print(targets.as_text(targets.judge(numbers["parts"])))
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
