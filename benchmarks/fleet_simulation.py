"""A discrete-event simulation of 100,000 devices and a cluster of servers, from one seed.

The requests of a device and their cost are those that the benchmark measured (`measured.json`,
written by `report.py`). The cost was measured on the development server, so it can be overridden by
arguments. A node serves one request at a time, and a device has one request at a time. The results
are the requests a second, the kind of request that saturates the nodes first, and the time in which
the fleet recovers from an outage of an hour.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from cached_session import SyncOptions

__all__ = ["Fleet", "Mix", "NormalLoad", "Recovery", "simulate_normal_load", "simulate_recovery"]

OUTAGE = 3600.0
NORMAL_LOAD_SECONDS = 120.0
RECOVERY_LIMIT = 1800.0
"""Simulated seconds of a recovery; an overloaded cluster does not recover."""
HOUR = 3600.0
DEFAULTS = SyncOptions()


@dataclass(frozen=True)
class Mix:
    """The requests of devices and their costs, from a run of the benchmark."""

    turn: dict[str, dict[str, dict[str, float]]]
    """Requests a turn, by "events" or "polling", by "talks" or "listens", and by kind."""
    idle: dict[str, float]
    """Requests an hour of an idle cache with one open session."""
    items_a_store: float
    """Items in each store request of a backlog."""
    reconnect_requests: float
    """Requests of a session that has missed some turns."""
    item_ms: float
    """Milliseconds of a node to store one item."""
    row_ms: float
    """Milliseconds of a node to list one row."""
    event_ms: float
    """Milliseconds of a node to send one event to one device."""
    event_bytes: float
    """Bytes of one event."""

    @classmethod
    def of(cls, parts: dict[str, Any]) -> Mix:
        """Return the mix of a run.

        Raises:
            KeyError: a required part is missing.
        """
        cells = [cell for cell in parts["sync"]["cells"] if "push_server_cpu_seconds" in cell]
        # Use the largest push at 20 ms, so that the clock ticks of the processor time do not
        # matter.
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
    """The devices and their settings."""

    mix: Mix
    devices: int = 100_000
    talking: float = 0.025
    """Share of devices with an active conversation. The same number of devices has the same session
    open and only receives."""
    sessions: int = 3
    """Open sessions on each device."""
    turn_seconds: float = 30.0
    """Seconds between two turns of a conversation."""
    turn_items: int = 3
    """Items of a turn."""
    options: SyncOptions = DEFAULTS
    shared_key: bool = False
    """True if all devices have one API key; then the server sends every event to each device."""

    @property
    def update_method(self) -> str:
        """Return whether devices get updates by "events" or by "polling"."""
        return "events" if self.options.listen else "polling"

    @property
    def page_ms(self) -> float:
        """Return the milliseconds of a node for the first page of a pull."""
        return self.mix.row_ms * self.options.first_page_size

    @property
    def listeners(self) -> float:
        """Return the number of devices that get an event for each stored item."""
        if not self.options.listen:
            return 0.0
        return self.devices if self.shared_key else 2.0

    def kinds(self) -> dict[str, tuple[float, float]]:
        """Return (requests a second of the fleet, ms of a node for each) by kind."""
        talking = self.devices * self.talking
        turns = talking / self.turn_seconds
        asked = self.mix.turn[self.update_method]
        pages = sum(one.get("page", 0.0) + one.get("fetch", 0.0) for one in asked.values())
        stores = asked["talks"].get("store", 1.0)
        silent = self.devices - 2 * talking
        # With events, one session is polled at a time; without, each session is polled.
        idle = self.mix.idle[self.update_method] * (1 if self.options.listen else self.sessions)
        slower = DEFAULTS.poll_interval_idle / self.options.poll_interval_idle
        if self.options.listen:
            slower = DEFAULTS.poll_interval_listening / self.options.poll_interval_listening
        return {
            "store": (turns * stores, self.turn_items / stores * self.mix.item_ms),
            "page, turns": (turns * pages, self.page_ms),
            "page, idle": (silent * idle * slower / HOUR, self.page_ms),
        }

    def events(self) -> float:
        """Return the events a second that are sent to all devices."""
        return self.devices * self.talking / self.turn_seconds * self.turn_items * self.listeners

    def busy(self, nodes: int) -> dict[str, float]:
        """Return the used share of the nodes' time by kind; a sum above 1 means overload."""
        found = {kind: rate * cost / 1000 / nodes for kind, (rate, cost) in self.kinds().items()}
        return {**found, "event": self.events() * self.mix.event_ms / 1000 / nodes}


@dataclass(frozen=True)
class NormalLoad:
    """The result of a simulation without outages."""

    requests_a_second: float
    busy: float
    """Share of the nodes' time that is used."""
    most: str
    """The kind that uses the largest share."""
    p99_ms: float
    """99th percentile of the time from request to response, without network latency."""
    streams: float
    """Open event streams a node."""


def simulate_normal_load(fleet: Fleet, nodes: int, seed: int) -> NormalLoad:
    """Simulate every request of the fleet for `NORMAL_LOAD_SECONDS`."""
    shares = fleet.busy(nodes)
    draw = Random(seed)
    # Sending events takes part of the time of a node, so requests take longer.
    stretch = 1 / max(1e-3, 1 - shares["event"])
    free = [0.0] * nodes
    waits: list[float] = []
    streams = [_arrivals(draw, rate, cost) for rate, cost in fleet.kinds().values() if rate]
    for now, cost in heapq.merge(*streams):
        node = draw.randrange(nodes)
        free[node] = max(now, free[node]) + cost / 1000 * stretch
        waits.append(free[node] - now)
    waits.sort()
    return NormalLoad(
        requests_a_second=len(waits) / NORMAL_LOAD_SECONDS,
        busy=sum(shares.values()),
        most=max(shares, key=lambda kind: shares[kind]),
        p99_ms=waits[int(len(waits) * 0.99)] * 1000,
        streams=fleet.devices / nodes if fleet.options.listen else 0.0,
    )


def _arrivals(draw: Random, rate: float, cost: float) -> Iterator[tuple[float, float]]:
    now = draw.expovariate(rate)
    while now < NORMAL_LOAD_SECONDS:
        yield now, cost
        now += draw.expovariate(rate)


@dataclass(frozen=True)
class Recovery:
    """The result of a simulation of the time after an outage."""

    peak_a_second: int
    """Most requests in one second."""
    timed_out: int
    """Requests that timed out."""
    share_recovered: float
    """Share of devices that recovered within `RECOVERY_LIMIT`."""
    half_s: float
    """Seconds until half of the recovered devices had recovered."""
    last_s: float
    """Seconds until the last of the recovered devices had recovered."""
    by_second: tuple[int, ...]
    """Requests in each second."""


def simulate_recovery(fleet: Fleet, nodes: int, seed: int) -> Recovery:
    """Simulate the time from the end of an outage until each device has completed its requests.

    Each device retries at the end of its pause, with full jitter. Its first request checks the
    server; then it pulls its sessions, stores its pending operations, and opens the event stream. A
    request that waits longer than `request_timeout` fails: the device backs off, but the node still
    does the work. A device does not repeat earlier requests that succeeded, because ids are derived
    from the operations.
    """
    draw, options = Random(seed), fleet.options
    # The normal load continues and takes part of the time of the nodes.
    stretch = 1 / max(1e-3, 1 - sum(fleet.busy(nodes).values()))
    free = [0.0] * nodes
    talking = int(fleet.devices * fleet.talking)
    costs_by_role = _costs_by_role(fleet)
    tries = [(draw.uniform(0, options.backoff_max), one, 0, 0) for one in range(fleet.devices)]
    heapq.heapify(tries)
    recovered: list[float] = []
    by_second: Counter[int] = Counter()
    timed_out = 0
    while tries and tries[0][0] < RECOVERY_LIMIT:
        now, device, step, failures = heapq.heappop(tries)
        role = "talks" if device < talking else "listens" if device < 2 * talking else "silent"
        costs = costs_by_role[role]
        by_second[int(now)] += 1
        node = device % nodes
        free[node] = max(now, free[node]) + costs[step] / 1000 * stretch
        if free[node] - now > options.request_timeout:
            timed_out += 1
            pause = min(options.backoff_max, options.backoff_base * 2 ** min(failures, 16))
            later = now + options.request_timeout + draw.uniform(0, pause)
            heapq.heappush(tries, (later, device, step, failures + 1))
        elif step + 1 < len(costs):
            heapq.heappush(tries, (free[node], device, step + 1, 0))
        else:
            recovered.append(free[node])
    recovered.sort()
    return Recovery(
        peak_a_second=max(by_second.values()),
        timed_out=timed_out,
        share_recovered=len(recovered) / fleet.devices,
        half_s=recovered[len(recovered) // 2] if recovered else RECOVERY_LIMIT,
        last_s=recovered[-1] if recovered else RECOVERY_LIMIT,
        by_second=tuple(by_second[second] for second in range(max(by_second) + 1)),
    )


def _costs_by_role(fleet: Fleet) -> dict[str, list[float]]:
    mix = fleet.mix
    missed = OUTAGE / fleet.turn_seconds * fleet.turn_items
    pages = missed / fleet.options.page_size
    return {
        "talks": _recovery_costs(fleet, missed * mix.item_ms, missed / mix.items_a_store),
        "listens": _recovery_costs(fleet, missed * mix.row_ms, pages),
        "silent": _recovery_costs(fleet, 0.0, 0.0),
    }


def _recovery_costs(fleet: Fleet, backlog_ms: float, requests: float) -> list[float]:
    """Return the costs in ms of the requests of a device after an outage, in order."""
    pages = max(1, round(fleet.sessions * fleet.mix.reconnect_requests))
    costs = [fleet.page_ms] * (1 + pages)
    count = -(-requests // 1)
    if count:
        costs += [backlog_ms / count] * int(count)
    return [*costs, 0.0] if fleet.options.listen else costs
