"""A hundred thousand devices against a cluster: discrete events, from one seed.

What a device asks for is what the benchmark counted (`measured.json`, written by `report.py`), and
so is what a request costs a node, except that the node was the development server: a stand-in,
whose costs are arguments here. A node answers one request after the other; a device does one thing
at a time. What is asked for is an answer to: how many requests a second, what saturates first, and
how long does a fleet take to come back after an hour without a server?
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import plots
from cached_session import SyncOptions
from markdown_pages import write_block

__all__ = ["Fleet", "Mix", "Quiet", "Storm", "quiet", "storm"]

MEASURED = Path(__file__).parent / "measured.json"
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
NODES = (3, 10, 30)
OUTAGE = 3600.0
QUIET_SECONDS = 120.0
HORIZON = 1800.0
"""Seconds of a storm that are simulated: a cluster that is asked for more than it can do never
recovers."""
HOUR = 3600.0
DEFAULTS = SyncOptions()


@dataclass(frozen=True)
class Mix:
    """What devices ask for, and what it costs: from a run of the benchmark."""

    turn: dict[str, dict[str, dict[str, float]]]
    """Requests a turn: by ("events" or "polling"), (who "talks" or "listens"), kind."""
    idle: dict[str, float]
    """Requests an hour of a cache with one open session to which nothing happens."""
    items_a_store: float
    """Of a backlog."""
    reconnect_requests: float
    """Of a session that has missed some turns."""
    item_ms: float
    """What storing one item costs a node, ..."""
    row_ms: float
    """... one row of a listing, ..."""
    event_ms: float
    """... and one event told to one device."""
    event_bytes: float

    @classmethod
    def of(cls, parts: dict[str, Any]) -> Mix:
        """From the parts of a run.

        Raises:
            KeyError: one that is needed is not among them.
        """
        cells = [cell for cell in parts["sync"]["cells"] if "push_server_cpu_seconds" in cell]
        # The longest push at an ordinary latency: what it costs does not hang on a few ticks.
        cell = max(cells, key=lambda one: (one["latency_ms"] == 20.0, one["items"]))
        rows = [row for row in parts["idle"]["rows"] if row["sessions"] == 1]
        items = cell["items"]
        return cls(
            turn=parts["idle"]["turn"],
            idle={
                "events" if row["events"] else "polling": sum(row["an_hour"].values())
                for row in rows
            },
            items_a_store=items / cell["push_requests"],
            reconnect_requests=cell["reconnect_requests"],
            item_ms=cell["push_server_cpu_seconds"] / items * 1000,
            row_ms=cell["hydrate_server_cpu_seconds"] / items * 1000,
            event_ms=parts["events"]["fan_out"]["server_cpu_ms_an_event"],
            event_bytes=parts["events"]["fan_out"]["bytes_an_event"],
        )


@dataclass(frozen=True)
class Fleet:
    """Who asks, and how they are set up."""

    mix: Mix
    devices: int = 100_000
    talking: float = 0.025
    """The share of devices on which somebody talks right now. As many have the same session open
    elsewhere and listen."""
    sessions: int = 3
    """Open on each device."""
    turn_seconds: float = 30.0
    turn_items: int = 3
    options: SyncOptions = DEFAULTS
    shared_key: bool = False
    """Whether all devices have one API key: the server then tells each of them everything."""

    @property
    def way(self) -> str:
        """How devices learn of news."""
        return "events" if self.options.listen else "polling"

    @property
    def page_ms(self) -> float:
        """What the first page of a pull costs a node."""
        return self.mix.row_ms * self.options.first_page_size

    @property
    def told(self) -> float:
        """Devices that each stored item is told to."""
        if not self.options.listen:
            return 0.0
        return self.devices if self.shared_key else 2.0

    def kinds(self) -> dict[str, tuple[float, float]]:
        """(requests per second of the whole fleet, ms of a node for each) in normal operation."""
        talking = self.devices * self.talking
        turns = talking / self.turn_seconds
        asked = self.mix.turn[self.way]
        pages = sum(one.get("page", 0.0) + one.get("fetch", 0.0) for one in asked.values())
        stores = asked["talks"].get("store", 1.0)
        silent = self.devices - 2 * talking
        # With events one session is looked at at a time; without, each for itself.
        idle = self.mix.idle[self.way] * (1 if self.options.listen else self.sessions)
        slower = DEFAULTS.poll_interval_idle / self.options.poll_interval_idle
        if self.options.listen:
            slower = DEFAULTS.poll_interval_listening / self.options.poll_interval_listening
        return {
            "store": (turns * stores, self.turn_items / stores * self.mix.item_ms),
            "page, turns": (turns * pages, self.page_ms),
            "page, idle": (silent * idle * slower / HOUR, self.page_ms),
        }

    def events(self) -> float:
        """Events told a second, to all devices together."""
        return self.devices * self.talking / self.turn_seconds * self.turn_items * self.told

    def busy(self, nodes: int) -> dict[str, float]:
        """The share of the nodes' time by kind: above 1 in all, a queue grows without end."""
        found = {kind: rate * cost / 1000 / nodes for kind, (rate, cost) in self.kinds().items()}
        return {**found, "event": self.events() * self.mix.event_ms / 1000 / nodes}


@dataclass(frozen=True)
class Quiet:
    """Some minutes without trouble."""

    requests_a_second: float
    busy: float
    most: str
    """The kind that takes most of it."""
    p99_ms: float
    """From a request to its answer, without the way there and back."""
    streams: float
    """Event streams that a node holds open."""


def quiet(fleet: Fleet, nodes: int, seed: int) -> Quiet:
    """Every request of the fleet for a while; each device has its node."""
    shares = fleet.busy(nodes)
    chance = Random(seed)
    # What is told comes on top: a node has that much less time for requests.
    stretch = 1 / max(1e-3, 1 - shares["event"])
    free = [0.0] * nodes
    waits: list[float] = []
    streams = [_arrivals(chance, rate, cost) for rate, cost in fleet.kinds().values() if rate]
    for now, cost in heapq.merge(*streams):
        node = chance.randrange(nodes)
        free[node] = max(now, free[node]) + cost / 1000 * stretch
        waits.append(free[node] - now)
    waits.sort()
    return Quiet(
        requests_a_second=len(waits) / QUIET_SECONDS,
        busy=sum(shares.values()),
        most=max(shares, key=lambda kind: shares[kind]),
        p99_ms=waits[int(len(waits) * 0.99)] * 1000,
        streams=fleet.devices / nodes if fleet.options.listen else 0.0,
    )


def _arrivals(chance: Random, rate: float, cost: float) -> Iterator[tuple[float, float]]:
    now = chance.expovariate(rate)
    while now < QUIET_SECONDS:
        yield now, cost
        now += chance.expovariate(rate)


@dataclass(frozen=True)
class Storm:
    """How a fleet came back."""

    peak_a_second: int
    timed_out: int
    share_back: float
    half_s: float
    last_s: float
    by_second: tuple[int, ...]


def storm(fleet: Fleet, nodes: int, seed: int) -> Storm:
    """The server is back after an outage: until each device has had everything that it came for.

    Every device tries again within its pause, with full jitter; one request asks whether anybody
    is there, then the sessions are pulled, what was said meanwhile is stored, and the stream is
    opened. A request that waits longer than `request_timeout` counts as a failure: the device backs
    off again, while the node still does the work. What was stored before that need not be stored
    again, because ids follow from the operations.
    """
    chance, options = Random(seed), fleet.options
    # Ordinary life goes on beside it.
    stretch = 1 / max(1e-3, 1 - sum(fleet.busy(nodes).values()))
    free = [0.0] * nodes
    talking = int(fleet.devices * fleet.talking)
    said = OUTAGE / fleet.turn_seconds * fleet.turn_items
    errands = {
        "talks": _errand(fleet, said * fleet.mix.item_ms, said / fleet.mix.items_a_store),
        "listens": _errand(fleet, said * fleet.mix.row_ms, said / options.page_size),
        "silent": _errand(fleet, 0.0, 0.0),
    }
    tries = [(chance.uniform(0, options.backoff_max), one, 0, 0) for one in range(fleet.devices)]
    heapq.heapify(tries)
    back: list[float] = []
    by_second: Counter[int] = Counter()
    timed_out = 0
    while tries and tries[0][0] < HORIZON:
        now, device, step, failures = heapq.heappop(tries)
        role = "talks" if device < talking else "listens" if device < 2 * talking else "silent"
        costs = errands[role]
        by_second[int(now)] += 1
        node = device % nodes
        free[node] = max(now, free[node]) + costs[step] / 1000 * stretch
        if free[node] - now > options.request_timeout:
            timed_out += 1
            pause = min(options.backoff_max, options.backoff_base * 2 ** min(failures, 16))
            later = now + options.request_timeout + chance.uniform(0, pause)
            heapq.heappush(tries, (later, device, step, failures + 1))
        elif step + 1 < len(costs):
            heapq.heappush(tries, (free[node], device, step + 1, 0))
        else:
            back.append(free[node])
    back.sort()
    return Storm(
        peak_a_second=max(by_second.values()),
        timed_out=timed_out,
        share_back=len(back) / fleet.devices,
        half_s=back[len(back) // 2] if back else HORIZON,
        last_s=back[-1] if back else HORIZON,
        by_second=tuple(by_second[second] for second in range(max(by_second) + 1)),
    )


def _errand(fleet: Fleet, backlog_ms: float, requests: float) -> list[float]:
    """The costs of the requests that a device makes when the server is back, in order."""
    pages = max(1, round(fleet.sessions * fleet.mix.reconnect_requests))
    costs = [fleet.page_ms] * (1 + pages)
    count = -(-requests // 1)
    if count:
        costs += [backlog_ms / count] * int(count)
    return [*costs, 0.0] if fleet.options.listen else costs


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults, one shared key": {"shared_key": True},
    "defaults, one key per user": {},
    "`listen=False`": {"options": SyncOptions(listen=False)},
    "one key per user, longer intervals": {
        "options": SyncOptions(poll_interval_listening=1800.0, backoff_max=600.0)
    },
}


DRAWN = ("defaults, one key per user", "one key per user, longer intervals")
DRAWN_SECONDS = 700


def tables(fleet: Fleet, seed: int) -> tuple[str, dict[str, dict[int, Storm]]]:
    """Both, as Markdown; and the storms, by settings and nodes."""
    found: dict[str, dict[int, Storm]] = {}
    lines = [
        _told(fleet, seed),
        "",
        _head(
            "normal operation, nodes, requests/s, events/s, utilization, largest part, p99, "
            "streams per node"
        ),
    ]
    storms = []
    for name, changes in SETTINGS.items():
        set_up = replace(fleet, **changes)
        for nodes in NODES:
            calm = quiet(set_up, nodes, seed)
            waits = f"{calm.p99_ms:.0f} ms" if calm.busy < 1 else "unbounded"
            lines.append(
                f"| {name} | {nodes} | {calm.requests_a_second:.0f} | {set_up.events():.0f} | "
                f"{calm.busy:.0%} | {calm.most} | {waits} | {calm.streams:.0f} |"
            )
            if calm.busy >= 1:
                storms.append(
                    f"| {name} | {nodes} | | | overloaded in normal operation | never | never |"
                )
                continue
            one = storm(set_up, nodes, seed)
            found.setdefault(name, {})[nodes] = one
            is_back = one.share_back == 1.0
            storms.append(
                f"| {name} | {nodes} | {one.peak_a_second} | {one.timed_out} | "
                f"{one.share_back:.0%} | "
                + (f"{one.half_s:.0f} s | {one.last_s:.0f} s |" if is_back else "never | never |")
            )
    lines += [
        "",
        _head("after an outage of one hour, nodes, peak requests/s, timed out, back, half, all"),
        *storms,
    ]
    return "\n".join(lines), found


def _head(names: str) -> str:
    columns = names.split(", ")
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def _told(fleet: Fleet, seed: int) -> str:
    mix = fleet.mix
    turn = "; ".join(
        f"{'the writing' if who == 'talks' else 'the following'} device "
        f"{', '.join(f'{count:.2f} {kind}' for kind, count in kinds.items())}"
        for who, kinds in mix.turn["events"].items()
    )
    return (
        f"{fleet.devices:,} devices with {fleet.sessions} open sessions each. On "
        f"{fleet.talking:.1%} of them a user writes a turn of {fleet.turn_items} items every "
        f"{fleet.turn_seconds:g} s, and the same number of devices follows these sessions. "
        f"Seed {seed}.\n\n"
        f"Counted by the benchmark: requests per turn with events: {turn}. An idle hour takes "
        f"{mix.idle['events']:.1f} requests per cache with events and {mix.idle['polling']:.1f} "
        f"per session without. A backlog is sent in requests of {mix.items_a_store:.0f} items. A "
        f"session that reconnects takes {mix.reconnect_requests:.0f} requests. Measured on the "
        f"development server, in ms of one core: {mix.item_ms:.3f} per stored item, "
        f"{mix.row_ms:.3f} per listed row, {mix.event_ms:.3f} per delivered event "
        f"({mix.event_bytes:.0f} bytes)."
    )


def main() -> None:
    """Print the tables, and put them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measured", type=Path, default=MEASURED, help="what report.py wrote")
    parser.add_argument("--devices", type=int, default=Fleet.devices)
    parser.add_argument("--talking", type=float, default=Fleet.talking, help="share of them")
    parser.add_argument("--sessions", type=int, default=Fleet.sessions, help="open on each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--item-ms", type=float, help="a node's cost of storing an item")
    parser.add_argument("--row-ms", type=float, help="a node's cost of a row of a listing")
    parser.add_argument("--event-ms", type=float, help="a node's cost of telling one event to one")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    asked = parser.parse_args()
    mix = Mix.of(json.loads(asked.measured.read_text(encoding="utf-8"))["parts"])
    given = {name: getattr(asked, name) for name in ("item_ms", "row_ms", "event_ms")}
    mix = replace(mix, **{name: cost for name, cost in given.items() if cost is not None})
    fleet = Fleet(mix, devices=asked.devices, talking=asked.talking, sessions=asked.sessions)
    text, storms = tables(fleet, asked.seed)
    print(text)
    if asked.write:
        write_block(PAGE, "fleet", text)
        shown = {
            name: {nodes: one.by_second for nodes, one in storms[name].items()}
            for name in DRAWN
            if name in storms
        }
        plots.storms(shown, DRAWN_SECONDS)


if __name__ == "__main__":
    main()
