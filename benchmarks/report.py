"""The report of one or more runs: `measured.json`, the plots, and the tables of the page.

If several files have the same part, or the same cell of `sync`, the last file wins; so a slow part
can be measured separately. Without files, the report is made from `measured.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import plots
import targets
from backends import PEER
from markdown_pages import write_block

MEASURED = Path(__file__).parent.parent / "build" / "measured.json"
"""Kept from run to run, and not in the repository: the pages have the figures that matter."""
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

Parts = dict[str, Any]

ROLES = {"talks": "writing device", "listens": "following device"}
"""Names of the devices of `idle` in the report."""


def merge(files: list[Path], kept: Path | None = None) -> dict[str, Any]:
    """Merge runs, and the kept run if it was measured on the same machine.

    Raises:
        ValueError: the files were measured on different machines.
    """
    found: dict[str, Any] = {}
    for file in files:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        if found and numbers["machine"] != found["machine"]:
            raise ValueError(
                f"{file} was measured on {numbers['machine']!r}, "
                f"the files before it on {found['machine']!r}"
            )
        found = {
            "machine": numbers["machine"],
            "parts": _merge_parts(found.get("parts"), numbers["parts"]),
        }
    if kept is not None and kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if not found or before["machine"] == found["machine"]:
            found["machine"] = before["machine"]
            found["parts"] = _merge_parts(before["parts"], found.get("parts", {}))
    return found


def _merge_parts(old: Parts | None, new: Parts) -> Parts:
    """Return the old parts, replaced by new ones; `sync` is merged cell by cell."""
    parts = {**(old or {}), **new}
    cells = [*(old or {}).get("sync", {}).get("cells", ()), *new.get("sync", {}).get("cells", ())]
    if cells:
        latest = {(cell["items"], cell["latency_ms"]): cell for cell in cells}
        parts["sync"] = {**parts["sync"], "cells": [latest[key] for key in sorted(latest)]}
    return parts


def round_floats(value: Any) -> Any:
    """Round floats to four digits, which is precise enough and keeps the file small."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: round_floats(one) for key, one in value.items()}
    return [round_floats(one) for one in value] if isinstance(value, list) else value


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


def conditions_block(machine: str, parts: Parts) -> str:
    """Return the machine, and the scale, duration and load of each part."""
    rows = [
        [name, part["scale"], f"{part['took']:.0f} s", f"{part['load']:.1f}"]
        for name, part in parts.items()
    ]
    whole = sum(part["took"] for part in parts.values())
    return f"{machine}; {whole:.0f} s in total.\n\n" + _table(
        ["part", "scale", "duration", "load average before"], rows
    )


def calls_block(part: Parts) -> str:
    """Return the times of calls, in a table for each length of the history."""
    found = []
    for length, history in part["histories"].items():
        names = list(history["calls"]["read 20"])
        rows = []
        for what, backends in history["calls"].items():
            peer = backends[PEER]["median"]
            cells = []
            for name in names:
                one = backends.get(name)
                cells.append(
                    f"{_time(one['median'])}, p99 {_time(one['p99'])} ({peer / one['median']:.2f})"
                    if one
                    else ""
                )
            rows.append([what, *cells])
        for what, holds in history["held_ms"].items():
            cells = [f"{holds[name]:.1f} ms" if name in holds else "" for name in names]
            rows.append([f"{what}: event loop blocked", *cells])
        found.append(
            f"A history of {int(length):,} items: median, p99, and in brackets how many times as "
            f"fast as {PEER} (medians). The online variants use a server with an added latency of "
            f"{part['latency_ms']:g} ms.\n\n" + _table(["", *names], rows)
        )
    return "\n\n".join(found)


def concurrent_block(part: Parts) -> str:
    """Return the table of concurrent sessions."""
    peer = part["seconds"][PEER]
    rows = [
        [
            name,
            _time(seconds),
            f"{part['sessions'] / seconds:.0f}",
            f"{peer / seconds:.1f}",
            f"{part['held_ms'][name]:.1f} ms",
        ]
        for name, seconds in part["seconds"].items()
    ]
    head = [f"{part['sessions']} sessions write one item each", "total time", "writes/s"]
    return _table([*head, f"times as fast as {PEER}", "event loop blocked"], rows)


def busy_block(part: Parts) -> str:
    """Return the table of reads during a push."""
    rows = [
        [name, f"{one['calls']}", _time(one["median"]), _time(one["p99"])]
        for name, one in part["read 20"].items()
    ]
    head = [f"read 20 while {part['items']:,} items are pushed", "reads", "median", "p99"]
    blocked = f"{part['pull_held_ms']:.1f} ms"
    return (
        f"{_table(head, rows)}\n\nWhile the same number of items is pulled, the event loop is "
        f"blocked for at most {blocked}."
    )


def sync_block(part: Parts) -> str:
    """Return the table of sync, and the bytes on the wire."""
    head = [
        "items",
        "latency",
        "push",
        "requests",
        "times as fast as one request per item",
        "first 200 readable, round trips",
        "hydrate",
        "requests",
        "reconnect, requests",
        "requests of the first pull after the backlog",
        "CPU s per 1,000 items: push / hydrate",
        "server CPU s per 1,000 items: push / hydrate",
        "event loop blocked: push / hydrate",
    ]
    cells = _table(head, [_sync_row(cell) for cell in part["cells"]])
    wire = part["wire"]
    wire_head = [f"bytes on the wire per byte of payload, {wire['items']:,} items"]
    wire_rows = [
        [
            what,
            f"{wire[what]['sent']:.2f}",
            f"{wire[what]['received']:.2f}",
            f"{wire[what]['requests']}",
        ]
        for what in ("push", "hydrate")
    ]
    return f"{cells}\n\n{_table([*wire_head, 'sent', 'received', 'requests'], wire_rows)}"


def _sync_row(cell: dict[str, Any]) -> list[str]:
    return [
        f"{cell['items']:,}",
        f"{cell['latency_ms']:g} ms",
        f"{cell['push_seconds']:.2f} s",
        f"{cell['push_requests']}",
        f"{cell['one_by_one_seconds'] / cell['push_seconds']:.0f}",
        f"{cell['tail_seconds']:.2f} s, {cell['tail_round_trips']}",
        f"{cell['hydrate_seconds']:.2f} s",
        f"{cell['hydrate_requests']}",
        f"{cell['reconnect_seconds']:.2f} s, {cell['reconnect_requests']}",
        f"{cell['news_requests']}",
        _cpu_seconds(cell, "cpu_seconds"),
        _cpu_seconds(cell, "server_cpu_seconds"),
        f"{cell['push_held_ms']:.0f} / {cell['hydrate_held_ms']:.0f} ms",
    ]


def _cpu_seconds(cell: dict[str, Any], figure: str) -> str:
    """Return the processor seconds a 1,000 items of push and hydrate; "?" if not measured."""
    found = [cell.get(f"{what}_{figure}") for what in ("push", "hydrate")]
    thousands = cell["items"] / 1000
    return " / ".join("?" if one is None else f"{one / thousands:.3f}" for one in found)


def events_block(part: Parts) -> str:
    """Return the table of event latency."""
    rows = [[f"{part['calls']}", _time(part["median"]), _time(part["p99"])]]
    return _table(["writes seen on another device, over loopback", "median", "p99"], rows)


def idle_block(part: Parts) -> str:
    """Return the tables of requests an hour and requests a turn."""
    rows = []
    for row in part["rows"]:
        kinds = ", ".join(f"{count:.1f} {what}" for what, count in row["an_hour"].items())
        first = sum(row["first_hour"].values())
        rows.append(
            [
                f"{row['sessions']}",
                "yes" if row["events"] else "no",
                f"{first:.0f}",
                f"{sum(row['an_hour'].values()):.1f}",
                kinds,
            ]
        )
    turns = [
        [
            f"{ROLES[who]}, {'with events' if way == 'events' else 'polling'}",
            ", ".join(f"{count:.2f} {what}" for what, count in kinds.items()),
        ]
        for way, devices in part["turn"].items()
        for who, kinds in devices.items()
    ]
    head = ["open sessions", "event stream", "requests in the first hour", "in each later hour"]
    return (
        _table([*head, "by kind"], rows) + "\n\n" + _table(["device", "requests per turn"], turns)
    )


def growth_block(part: Parts) -> str:
    """Return the times of calls, in a table for each quantity that grows."""
    found = []
    for what, row in part["rows"].items():
        rows = [
            [call, *map(_time, seconds), f"{row['exponents'][call]:+.2f}"]
            for call, seconds in row["seconds"].items()
        ]
        found.append(_table([what, *(f"{size:,}" for size in row["sizes"]), "exponent"], rows))
    return "\n\n".join(found)


def disk_block(part: Parts) -> str:
    """Return the table of file sizes."""
    rows = [[one["stage"], f"{one['ratio']:.2f}", f"{one['operations']}"] for one in part["stages"]]
    head = [f"{part['items']:,} items", "file bytes per byte of payload", "operations kept"]
    return _table(head, rows)


def memory_block(part: Parts) -> str:
    """Return the table of resident memory."""
    head = ["items in the history", *(f"{length:,}" for length in part["lengths"])]
    return _table(head, [["resident MiB", *(f"{one:.1f}" for one in part["resident_mib"])]])


BLOCKS = {
    "calls": calls_block,
    "concurrent": concurrent_block,
    "busy": busy_block,
    "sync": sync_block,
    "events": events_block,
    "idle": idle_block,
    "growth": growth_block,
    "disk": disk_block,
    "memory": memory_block,
}


def main() -> None:
    """Write the figures, the plots and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path, nargs="*", help="files of `bench.py --json`")
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep the parts of measured.json that the files do not have",
    )
    asked = parser.parse_args()
    if not asked.json and not MEASURED.exists():
        parser.error(f"{MEASURED} does not exist: name a file that bench.py --json wrote")
    kept = MEASURED if MEASURED.exists() and (asked.add or not asked.json) else None
    MEASURED.parent.mkdir(exist_ok=True)
    numbers = round_floats(merge(asked.json, kept))
    parts = {name: numbers["parts"][name] for name in BLOCKS if name in numbers["parts"]}
    MEASURED.write_text(
        json.dumps({"machine": numbers["machine"], "parts": parts}, indent=1) + "\n",
        encoding="utf-8",
    )
    print("drawn:", ", ".join(plots.draw(parts)))
    found = targets.judge(parts)
    write_block(PAGE, "targets", targets.as_text(found))
    write_block(PAGE, "missed", targets.reasons(found))
    write_block(PAGE, "conditions", conditions_block(numbers["machine"], parts))
    for name, block in BLOCKS.items():
        write_block(PAGE, name, block(parts[name]) if name in parts else "Not measured.")


if __name__ == "__main__":
    main()
