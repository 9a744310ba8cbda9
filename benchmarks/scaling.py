"""A hundred thousand devices against a cluster: discrete events, from one seed.

A node answers one request after the other; a device does one thing at a time. What is asked for is
an answer to: how many requests a second, what saturates first, and how long does a fleet take to
come back after an hour's outage? The mix and the costs are arguments: take them from a run of the
benchmark, or from your own server.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import dataclass
from random import Random

from cached_session import SyncOptions

DEFAULTS = SyncOptions()
HORIZON = 1800.0
"""Seconds that are simulated: a cluster that is asked for more than it can do never recovers."""


@dataclass(frozen=True)
class Fleet:
    """Who asks, and how often."""

    devices: int = 100_000
    active: float = 0.05
    """The share of devices on which somebody talks right now."""
    turn_seconds: float = 30.0
    """Between two turns of an active device: each is one store request."""
    options: SyncOptions = DEFAULTS
    turn_items: int = 3
    item_ms: float = 0.3
    """What storing one item costs a node; ..."""
    page_ms: float = 2.0
    """... and what a listing page does."""

    def rate(self) -> dict[str, float]:
        """Requests a second in quiet weather."""
        talking = self.devices * self.active
        silent = self.devices - talking
        return {
            "store": talking / self.turn_seconds,
            "page, active": talking / self.options.poll_interval,
            "page, idle": silent / self.options.poll_interval_idle,
        }


def utilization(fleet: Fleet, nodes: int) -> float:
    """The share of their time that the nodes are busy: above 1 the queue grows without end."""
    rate = fleet.rate()
    busy_ms = rate["store"] * fleet.turn_items * fleet.item_ms
    busy_ms += (rate["page, active"] + rate["page, idle"]) * fleet.page_ms
    return busy_ms / 1000 / nodes


def storm(fleet: Fleet, nodes: int, outage: float, seed: int) -> dict[str, float]:
    """The server is back after an outage: seconds until each device has had its first answer.

    Every device tries again within its pause, with full jitter (`backoff_max`), and has a backlog
    if it is active. A request that waits longer than `request_timeout` counts as a failure: the
    device backs off again, while the node still does the work: what it stored need not be stored
    again, because ids follow from the operations.
    """
    random, options = Random(seed), fleet.options
    free = [0.0] * nodes
    tries = [(random.uniform(0, options.backoff_max), device, 0) for device in range(fleet.devices)]
    heapq.heapify(tries)
    talking = int(fleet.devices * fleet.active)
    backlog_ms = outage / fleet.turn_seconds * fleet.turn_items * fleet.item_ms
    waits: list[float] = []
    requests = wasted = 0
    busiest: dict[int, int] = {}
    while tries and tries[0][0] < HORIZON:
        now, device, failures = heapq.heappop(tries)
        node = device % nodes
        requests += 1
        busiest[int(now)] = busiest.get(int(now), 0) + 1
        cost = fleet.page_ms + (backlog_ms if device < talking and not failures else 0.0)
        start = max(now, free[node])
        free[node] = start + cost / 1000
        if free[node] - now > options.request_timeout:
            wasted += 1
            pause = min(options.backoff_max, options.backoff_base * 2 ** min(failures, 16))
            later = now + options.request_timeout + random.uniform(0, pause)
            heapq.heappush(tries, (later, device, failures + 1))
        else:
            waits.append(free[node])
    waits.sort()
    return {
        "requests": requests,
        "wasted": wasted,
        "peak_a_second": max(busiest.values()),
        "median_back_s": waits[len(waits) // 2],
        "p99_back_s": waits[int(len(waits) * 0.99)],
        "last_back_s": waits[-1],
        "share_back": len(waits) / fleet.devices,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--item-ms", type=float, default=0.3, help="a node's cost of an item")
    parser.add_argument("--page-ms", type=float, default=2.0, help="a node's cost of a page")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    settings = {
        "defaults": SyncOptions(),
        "calm": SyncOptions(poll_interval=30.0, poll_interval_idle=1800.0, backoff_max=300.0),
    }
    rows = []
    for name, options in settings.items():
        fleet = Fleet(
            devices=asked.devices,
            options=options,
            item_ms=asked.item_ms,
            page_ms=asked.page_ms,
        )
        rate = sum(fleet.rate().values())
        for nodes in (3, 10, 30):
            found = storm(fleet, nodes, 3600.0, asked.seed)
            busy = utilization(fleet, nodes)
            rows.append({"options": name, "nodes": nodes, "rate": rate, "busy": busy, **found})
    if asked.json:
        print(json.dumps(rows, indent=1))
        return
    print("| options | nodes | requests/s | busy | storm peak/s | timed out | back | last after |")
    print("|---" * 8 + "|")
    for row in rows:
        print(
            f"| {row['options']} | {row['nodes']} | {row['rate']:.0f} | {row['busy']:.0%} | "
            f"{row['peak_a_second']} | {row['wasted']} | {row['share_back']:.0%} | "
            f"{row['last_back_s']:.0f} s |"
        )


if __name__ == "__main__":
    main()
