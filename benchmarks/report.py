"""From the numbers of one or more runs: `measured.json`, the plots, the figures of the page.

A part that several files have, or a cell of `sync`, is taken from the last one: what takes long can
be measured by itself.
Without files, what `measured.json` holds is drawn and written again.
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

MEASURED = Path(__file__).parent / "measured.json"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

Parts = dict[str, Any]

ROLES = {"talks": "writing device", "listens": "following device"}
"""The devices of `idle`, as the page names them."""


def merge(files: list[Path], kept: Path | None = None) -> dict[str, Any]:
    """One run out of several, and out of the kept one where it was measured on the same machine.

    Raises:
        ValueError: they come from different machines.
    """
    found: dict[str, Any] = {}
    for file in files:
        numbers = json.loads(file.read_text(encoding="utf-8"))
        if found and numbers["machine"] != found["machine"]:
            raise ValueError(f"{file} was measured on {numbers['machine']!r}")
        found = {
            "machine": numbers["machine"],
            "parts": _over(found.get("parts"), numbers["parts"]),
        }
    if kept is not None and kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if not found or before["machine"] == found["machine"]:
            found["machine"] = before["machine"]
            found["parts"] = _over(before["parts"], found.get("parts", {}))
    return found


def _over(old: Parts | None, new: Parts) -> Parts:
    """Parts, the new ones first; of `sync`, cell by cell: some take minutes."""
    parts = {**(old or {}), **new}
    cells = [*(old or {}).get("sync", {}).get("cells", ()), *new.get("sync", {}).get("cells", ())]
    if cells:
        latest = {(cell["items"], cell["latency_ms"]): cell for cell in cells}
        parts["sync"] = {**parts["sync"], "cells": [latest[key] for key in sorted(latest)]}
    return parts


def rounded(value: Any) -> Any:
    """Four digits say all that a measurement can, and keep the file small."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"


def conditions(machine: str, parts: Parts) -> str:
    """Where and how."""
    rows = [
        [name, part["scale"], f"{part['took']:.0f} s", f"{part['load']:.1f}"]
        for name, part in parts.items()
    ]
    whole = sum(part["took"] for part in parts.values())
    return f"{machine}; {whole:.0f} s in total.\n\n" + _table(
        ["part", "scale", "duration", "load average before"], rows
    )


def calls(part: Parts) -> str:
    """A table for each length."""
    found = []
    for length, history in part["histories"].items():
        names = list(history["calls"]["read 20"])
        rows = []
        for what, arms in history["calls"].items():
            peer = arms[PEER]["median"]
            cells = []
            for name in names:
                one = arms.get(name)
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


def concurrent(part: Parts) -> str:
    """Sessions side by side."""
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


def busy(part: Parts) -> str:
    """Reads beside a push."""
    rows = [
        [name, f"{one['calls']}", _time(one["median"]), _time(one["p99"])]
        for name, one in part["read 20"].items()
    ]
    head = [f"read 20 while {part['items']:,} items are pushed", "reads", "median", "p99"]
    return (
        _table(head, rows)
        + "\n\nWhile the same number of items is pulled, the event loop is blocked for at most "
        f"{part['pull_held_ms']:.1f} ms."
    )


def sync(part: Parts) -> str:
    """A row for each cell; the wire."""
    rows = []
    for cell in part["cells"]:
        thousands = cell["items"] / 1000
        rows.append(
            [
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
                *(
                    " / ".join(
                        f"{cell[f'{what}{whose}cpu_seconds'] / thousands:.3f}"
                        if f"{what}{whose}cpu_seconds" in cell
                        else "?"
                        for what in ("push", "hydrate")
                    )
                    for whose in ("_", "_server_")
                ),
                f"{cell['push_held_ms']:.0f} / {cell['hydrate_held_ms']:.0f} ms",
            ]
        )
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
    wire = part["wire"]
    bytes_rows = [
        [
            what,
            f"{wire[what]['sent']:.2f}",
            f"{wire[what]['received']:.2f}",
            f"{wire[what]['requests']}",
        ]
        for what in ("push", "hydrate")
    ]
    return (
        _table(head, rows)
        + "\n\n"
        + _table(
            [
                f"bytes on the wire per byte of payload, {wire['items']:,} items",
                "sent",
                "received",
                "requests",
            ],
            bytes_rows,
        )
    )


def events(part: Parts) -> str:
    """Latency, and what telling costs."""
    rows = [[f"{part['calls']}", _time(part["median"]), _time(part["p99"])]]
    return _table(["writes seen on another device, over loopback", "median", "p99"], rows)


def idle(part: Parts) -> str:
    """An hour, and a turn."""
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


def growth(part: Parts) -> str:
    """A table for each thing that grows."""
    found = []
    for what, row in part["rows"].items():
        rows = [
            [call, *map(_time, seconds), f"{row['exponents'][call]:+.2f}"]
            for call, seconds in row["seconds"].items()
        ]
        found.append(_table([what, *(f"{size:,}" for size in row["sizes"]), "exponent"], rows))
    return "\n\n".join(found)


def disk(part: Parts) -> str:
    """The stages of a journal's life."""
    rows = [[one["stage"], f"{one['ratio']:.2f}", f"{one['operations']}"] for one in part["stages"]]
    head = [f"{part['items']:,} items", "file bytes per byte of payload", "operations kept"]
    return _table(head, rows)


def memory(part: Parts) -> str:
    """One row."""
    head = ["items in the history", *(f"{length:,}" for length in part["lengths"])]
    return _table(head, [["resident MiB", *(f"{one:.1f}" for one in part["resident_mib"])]])


BLOCKS = {
    "calls": calls,
    "concurrent": concurrent,
    "busy": busy,
    "sync": sync,
    "events": events,
    "idle": idle,
    "growth": growth,
    "disk": disk,
    "memory": memory,
}


def main() -> None:
    """Write all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path, nargs="*", help="what `bench.py --json` wrote")
    parser.add_argument(
        "--add", action="store_true", help="keep the parts of measured.json that no file has"
    )
    asked = parser.parse_args()
    kept = MEASURED if asked.add or not asked.json else None
    numbers = rounded(merge(asked.json, kept))
    parts = {name: numbers["parts"][name] for name in BLOCKS if name in numbers["parts"]}
    MEASURED.write_text(
        json.dumps({"machine": numbers["machine"], "parts": parts}, indent=1) + "\n",
        encoding="utf-8",
    )
    print("drawn:", ", ".join(plots.draw(parts)))
    found = targets.judge(parts)
    write_block(PAGE, "targets", targets.as_text(found))
    write_block(PAGE, "missed", targets.reasons(found))
    write_block(PAGE, "conditions", conditions(numbers["machine"], parts))
    for name, block in BLOCKS.items():
        write_block(PAGE, name, block(parts[name]) if name in parts else "Not measured.")


if __name__ == "__main__":
    main()
