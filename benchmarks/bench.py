"""The benchmark of all speed targets, compared with other session backends.

The calls of all backends are interleaved, so that noise affects each equally; compare the ratios,
not the times. `--only` runs single parts, and `report.py` merges their results.
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
from call_cost import measure_calls, measure_concurrent
from conversations import history
from growth import measure_disk, measure_growth, measure_memory
from idle import measure_idle
from measure import Numbers, print_progress
from scale import ALL, FULL, QUICK, SMOKE, Scale
from sync_cost import measure_busy, measure_events, measure_sync

__all__ = ["PARTS", "main", "run"]

PARTS: dict[str, Callable[[Path, Scale], Awaitable[Numbers]]] = {
    "calls": measure_calls,
    "concurrent": measure_concurrent,
    "busy": measure_busy,
    "events": measure_events,
    "sync": measure_sync,
    "growth": measure_growth,
    "disk": measure_disk,
    "memory": measure_memory,
    "idle": measure_idle,
}


async def run(scale: Scale, only: list[str]) -> Numbers:
    """Measure some parts; return {"machine": ..., "parts": {name: figures}}."""
    logging.getLogger("cached_session").addHandler(logging.NullHandler())  # a backend is offline
    found: Numbers = {"machine": _machine(), "parts": {}}
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as temporary:
        for name in only:
            print_progress(name)
            load, start = os.getloadavg()[0], time.perf_counter()
            history(1)
            gc.collect()
            gc.freeze()  # exclude what was loaded before from later collections
            directory = Path(temporary) / name
            directory.mkdir()
            part = await PARTS[name](directory, scale)
            spent = time.perf_counter() - start
            found["parts"][name] = {"scale": scale.name, "load": load, "took": spent, **part}
            print_progress(f"{name} took {spent:.0f} s")
    return found


def _machine() -> str:
    agents = metadata.version("openai-agents")
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, openai-agents {agents}"
    )


def _parse_cells(text: str) -> tuple[tuple[int, float], ...]:
    pairs = (one.split("@") for one in text.split(","))
    return tuple((int(items), float(latency)) for items, latency in pairs)


def main() -> None:
    """Measure, print the targets, and write the figures to a file if requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick",
        action="store_const",
        const=QUICK,
        dest="scale",
        help="measure smaller sizes, in about 1 minute",
    )
    size.add_argument(
        "--all",
        action="store_const",
        const=ALL,
        dest="scale",
        help="also sync 100,000 items at 0 and 200 ms, which takes almost a minute each",
    )
    size.add_argument(
        "--smoke",
        action="store_const",
        const=SMOKE,
        dest="scale",
        help="use tiny sizes, to test the benchmark itself",
    )
    parser.add_argument(
        "--cells",
        type=_parse_cells,
        help="sizes and latencies for `sync`, such as 1000@20,100000@200 (items@ms)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(PARTS),
        metavar="PART",
        help=f"measure only this part: {', '.join(PARTS)}; can be repeated",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this JSON file")
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
