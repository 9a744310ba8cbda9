"""Run many seeds in parallel and print the first failure in full: ``python -m
tests.simulation.run``."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.simulation.schedule import make
from tests.simulation.shrink import shrink
from tests.simulation.simulation import Outcome, run

__all__ = ["main", "report"]

CHUNK = 5
"""Seeds that one worker takes together."""


def main(arguments: list[str] | None = None) -> int:
    """Run seeds, and return 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run", description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many (default: until the time is up)")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seconds", type=float, default=None, help="stop after this real time")
    parser.add_argument("--floor", type=int, default=0, help="seeds to run whatever time it takes")
    parser.add_argument("--keep-going", action="store_true", help="list every failing seed")
    parser.add_argument("--shrink", type=float, default=60.0, help="seconds for shortening")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    asked = parser.parse_args(arguments)
    if asked.seeds is None and asked.seconds is None:
        asked.seeds = 100
    started = time.monotonic()
    total = {"seeds": 0, "simulated_hours": 0.0, "requests": 0, "checks": 0}
    failed: list[tuple[int, str]] = []
    with multiprocessing.get_context("spawn").Pool(asked.jobs) as pool:
        for result in pool.imap_unordered(_work, _seeds(asked, started), chunksize=1):
            for seed, error, seconds, requests, checks in result:
                total["seeds"] += 1
                total["simulated_hours"] += seconds / 3600
                total["requests"] += requests
                total["checks"] += checks
                if error:
                    failed.append((seed, error))
                    print(
                        f"seed {seed} failed: {error[-400:].strip()}", file=sys.stderr, flush=True
                    )
            late = total["seeds"] >= asked.floor and _is_late(asked, started)
            if late or (failed and not asked.keep_going):
                pool.terminate()
                break
    spent = time.monotonic() - started
    total["seconds"] = round(spent, 1)
    total["seeds_per_second"] = round(total["seeds"] / spent, 2)
    total["simulated_hours"] = round(total["simulated_hours"], 2)
    if failed and not asked.keep_going:
        print(report(failed[0][0], asked.shrink), file=sys.stderr)
    if asked.json:
        print(json.dumps({**total, "failed": sorted(seed for seed, _ in failed)}))
    else:
        print(
            f"{total['seeds']} seeds, {total['simulated_hours']} simulated hours, "
            f"{total['requests']} requests, {total['checks']} histories checked "
            f"in {total['seconds']} s ({total['seeds_per_second']} seeds/s); {len(failed)} failed"
        )
    return 1 if failed else 0


def _seeds(asked: Any, started: float) -> Iterator[list[int]]:
    seed = asked.start
    while asked.seeds is None or seed < asked.start + asked.seeds:
        if seed >= asked.start + asked.floor and _is_late(asked, started):
            return
        last = seed + CHUNK
        if asked.seeds is not None:
            last = min(last, asked.start + asked.seeds)
        yield list(range(seed, last))
        seed = last
        if asked.seeds is None:
            # The pool would consume an endless list immediately.
            time.sleep(0.05)


def _is_late(asked: Any, started: float) -> bool:
    return asked.seconds is not None and time.monotonic() - started > asked.seconds


def _work(seeds: list[int]) -> list[tuple[int, str | None, float, int, int]]:
    found = []
    for seed in seeds:
        outcome = run(make(seed))
        found.append((seed, outcome.error, outcome.seconds, outcome.requests, outcome.checks))
    return found


def report(seed: int, seconds: float) -> str:
    """Report a failing seed: the shortest schedule that fails in the same way, and its history."""
    first = run(make(seed))
    if first.error is None:
        return f"seed {seed} does not fail here"
    kind = _kind(first)
    short = shrink(first.schedule, lambda fewer: _kind(run(fewer)) == kind, seconds=seconds)
    last = run(short)
    return "\n".join(
        [
            *(str(short), repr(short), "  the history:"),
            *(f"    {line}" for line in last.history[-400:]),
            *(f"seed {seed}: {last.error}", f"trace {last.hash}"),
        ]
    )


def _kind(outcome: Outcome) -> str | None:
    """Return the failure without the items that it names."""
    if outcome.error is None:
        return None
    line = outcome.error.strip().splitlines()[-1]
    return "".join(c for c in line if not c.isdigit())[:24]


if __name__ == "__main__":
    sys.exit(main())
