"""Everything that is promised about speed, measured beside what a user would pick instead.

All arms are interleaved in one run, so that noise hits them alike: what counts are the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import targets
import workloads
from arms import PEER
from corpus import history
from session_speed import LATENCY_MS, devserver


async def run(quick: bool) -> dict[str, Any]:
    """All workloads."""
    logging.getLogger("cached_session").addHandler(logging.NullHandler())  # one arm is offline
    started = time.perf_counter()
    numbers: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "load": os.getloadavg()[0],
        "latency_ms": LATENCY_MS,
        "quick": quick,
        "histories": {},
    }
    lengths = [100, 1000, 10_000] + ([] if quick else [100_000, 1_000_000])
    with tempfile.TemporaryDirectory(prefix="cached-session-bench-") as temporary:
        directory = Path(temporary)
        async with devserver() as url:
            for length, rounds in ((100, 60), (10_000, 80 if quick else 200)):
                place = directory / str(length)
                numbers["histories"][str(length)] = await workloads.calls(
                    place, history(length), url, rounds
                )
            numbers["concurrent"] = await workloads.concurrent(directory, 200 if quick else 1000)
            numbers["sync"] = await workloads.sync(directory, url, 2000 if quick else 10_000, 60)
        numbers["growth"] = await workloads.growth(directory, lengths)
        numbers["memory"] = await workloads.memory(directory, lengths)
    numbers["seconds"] = time.perf_counter() - started
    numbers["targets"] = targets.judge(numbers)
    return numbers


def show(numbers: dict[str, Any]) -> None:
    """The tables."""
    for length, found in numbers["histories"].items():
        print(
            f"\na history of {length} items{'':22}{'median':>11}{'p99':>11}{'ratio':>9}{'held':>9}"
        )
        for what, arms in found["calls"].items():
            for name, one in arms.items():
                ratio = arms[PEER]["median"] / one["median"]
                held = found["held_ms"].get(what, {}).get(name)
                print(
                    f"{what:24}{name:20}{one['median'] * 1000:8.3f} ms{one['p99'] * 1000:8.3f} ms"
                    f"{ratio:8.2f}x" + (f"{held:6.1f} ms" if held is not None else "")
                )
    print("\n" + targets.as_text(numbers["targets"]))
    print(f"\n{numbers['machine']}; load {numbers['load']:.1f}; {numbers['seconds']:.0f} s")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything: a minute or two")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    numbers = asyncio.run(run(arguments.quick))
    show(numbers)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
