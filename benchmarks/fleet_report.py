"""The report of the fleet simulation: tables for `docs/scaling.md` and a plot.

Run it with `make bench-scaling`; `ARGS=--write` writes the page.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import plots
from cached_session import SyncOptions
from fleet_simulation import (
    Fleet,
    Mix,
    NormalLoad,
    Recovery,
    simulate_normal_load,
    simulate_recovery,
)
from markdown_pages import write_block

__all__ = ["main", "tables"]

MEASURED = Path(__file__).parent.parent / "build" / "measured.json"
"""Kept from run to run, and not in the repository: the pages have the figures that matter."""
PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
NODES = (3, 10, 30)

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults, one shared key": {"shared_key": True},
    "defaults, one key per user": {},
    "`listen=False`": {"options": SyncOptions(listen=False)},
    "one key per user, longer intervals": {
        "options": SyncOptions(poll_interval_listening=1800.0, backoff_max=600.0)
    },
}


PLOTTED = ("defaults, one key per user", "one key per user, longer intervals")
PLOTTED_SECONDS = 700


def tables(fleet: Fleet, seed: int) -> tuple[str, dict[str, dict[int, Recovery]]]:
    """Return both tables as Markdown, and the recoveries by settings and nodes."""
    recoveries: dict[str, dict[int, Recovery]] = {}
    load_rows, recovery_rows = [], []
    for name, changes in SETTINGS.items():
        configured = replace(fleet, **changes)
        for nodes in NODES:
            load = simulate_normal_load(configured, nodes, seed)
            load_rows.append(_load_row(name, nodes, load, configured.events()))
            if load.busy >= 1:
                recovery_rows.append(
                    f"| {name} | {nodes} | | | overloaded in normal operation | never | never |"
                )
                continue
            recovery = simulate_recovery(configured, nodes, seed)
            recoveries.setdefault(name, {})[nodes] = recovery
            recovery_rows.append(_recovery_row(name, nodes, recovery))
    lines = [
        _describe(fleet, seed),
        "",
        _head(
            "normal operation, nodes, requests/s, events/s, utilization, largest part, p99, "
            "streams per node"
        ),
        *load_rows,
        "",
        _head("after an outage of one hour, nodes, peak requests/s, timed out, back, half, all"),
        *recovery_rows,
    ]
    return "\n".join(lines), recoveries


def _load_row(name: str, nodes: int, load: NormalLoad, events: float) -> str:
    wait = f"{load.p99_ms:.0f} ms" if load.busy < 1 else "unbounded"
    return (
        f"| {name} | {nodes} | {load.requests_a_second:.0f} | {events:.0f} | "
        f"{load.busy:.0%} | {load.most} | {wait} | {load.streams:.0f} |"
    )


def _recovery_row(name: str, nodes: int, recovery: Recovery) -> str:
    times = (
        f"{recovery.half_s:.0f} s | {recovery.last_s:.0f} s"
        if recovery.share_recovered == 1.0
        else "never | never"
    )
    return (
        f"| {name} | {nodes} | {recovery.peak_a_second} | {recovery.timed_out} | "
        f"{recovery.share_recovered:.0%} | {times} |"
    )


def _head(names: str) -> str:
    columns = names.split(", ")
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"


def _describe(fleet: Fleet, seed: int) -> str:
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
    """Print the tables, and write them into the page if requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--measured", type=Path, default=MEASURED, help="figures from report.py")
    parser.add_argument("--devices", type=int, default=Fleet.devices, help="devices in the fleet")
    parser.add_argument(
        "--talking", type=float, default=Fleet.talking, help="share with a conversation"
    )
    parser.add_argument(
        "--sessions", type=int, default=Fleet.sessions, help="open sessions on each device"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the simulation")
    parser.add_argument("--item-ms", type=float, help="cost of a node to store an item")
    parser.add_argument("--row-ms", type=float, help="cost of a node to list a row")
    parser.add_argument("--event-ms", type=float, help="cost of a node to send an event")
    parser.add_argument(
        "--write", action="store_true", help="write the tables into docs/scaling.md"
    )
    arguments = parser.parse_args()
    if not arguments.measured.exists():
        parser.error(f"{arguments.measured} does not exist: run make bench-report first")
    mix = Mix.of(json.loads(arguments.measured.read_text(encoding="utf-8"))["parts"])
    overrides = {name: getattr(arguments, name) for name in ("item_ms", "row_ms", "event_ms")}
    mix = replace(mix, **{name: cost for name, cost in overrides.items() if cost is not None})
    fleet = Fleet(
        mix, devices=arguments.devices, talking=arguments.talking, sessions=arguments.sessions
    )
    text, recoveries = tables(fleet, arguments.seed)
    print(text)
    if arguments.write:
        write_block(PAGE, "fleet", text)
        shown = {
            name: {nodes: one.by_second for nodes, one in recoveries[name].items()}
            for name in PLOTTED
            if name in recoveries
        }
        plots.draw_recovery(shown, PLOTTED_SECONDS)


if __name__ == "__main__":
    main()
