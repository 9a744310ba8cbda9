"""Plots in `docs/plots/`. The same figures always give the same bytes.

The plots need matplotlib, which the extra `bench` installs.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends import OURS

__all__ = ["compact", "draw", "draw_recovery"]

PLOTS = Path(__file__).parent.parent / "docs" / "plots"
PLOTTED_CALLS = (
    "read 20",
    "read 20 after a write",
    "read 200",
    "read all",
    "add 1",
    "add 100",
    "pop",
)
EMPHASIS = "#d62728"
COLOURS = (
    "#7f7f7f",
    "#1f77b4",
    "#17becf",
    "#9467bd",
    "#bcbd22",
    EMPHASIS,
    "#ff9896",
    "#ff7f0e",
    "#8c564b",
)


def _pyplot() -> Any:
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    pyplot.rcParams.update(
        {
            "svg.hashsalt": "cached-session",
            "svg.fonttype": "none",
            "font.size": 9,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.axisbelow": True,
        }
    )
    PLOTS.mkdir(exist_ok=True)
    return pyplot


def _save(pyplot: Any, figure: Any, name: str) -> None:
    figure.tight_layout()
    path = PLOTS / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    path.write_text(compact(path.read_text(encoding="utf-8")), encoding="utf-8")


def compact(svg: str) -> str:
    """Return the same picture in fewer bytes: coordinates to a tenth of a point, a path a line."""
    svg = re.sub(r" *<metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}".removesuffix(".0"), svg)
    svg = re.sub(r' \n(?=[LMQCz"])', " ", svg)
    return re.sub(r"^ +| *<!--.*?-->\n", "", svg, flags=re.MULTILINE)


def draw(parts: dict[str, Any]) -> list[str]:
    """Draw each plot for which the parts have figures; return the names."""
    pyplot = _pyplot()
    drawn = []
    for name, part, plot in (
        ("calls", "calls", _calls),
        ("lengths", "calls", _lengths),
        ("growth", "growth", _growth),
        ("sync", "sync", _sync),
        ("idle", "idle", _idle),
        ("memory", "memory", _memory),
    ):
        if part in parts:
            _save(pyplot, plot(pyplot, parts[part]), name)
            drawn.append(name)
    return drawn


def draw_recovery(recoveries: Mapping[str, Mapping[int, Sequence[int]]], seconds: int) -> None:
    """Plot the requests a second of a fleet after an outage, by settings and nodes."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(
        1, len(recoveries), figsize=(4.5 * len(recoveries), 3.8), sharey=True, squeeze=False
    )
    for axes, (name, by_nodes) in zip(panels[0], recoveries.items(), strict=True):
        for nodes, requests in by_nodes.items():
            clipped = [max(one, 0.9) for one in requests[:seconds]]
            axes.semilogy(range(len(clipped)), clipped, linewidth=1, label=f"{nodes} nodes")
        axes.set_title(name)
        axes.set_xlabel("seconds since the server is reachable again")
    panels[0][0].set_ylabel("requests per second")
    panels[0][0].legend(fontsize="small")
    _save(pyplot, figure, "storm")


def _calls(pyplot: Any, part: dict[str, Any]) -> Any:
    """Plot the median of each call on each backend."""
    found = part["histories"]["10000"]["calls"]
    names = [name for name in found["read 20"] if not name.startswith("one request")]
    figure, axes = pyplot.subplots(figsize=(9, 7))
    height = 0.8 / len(names)
    for position, name in enumerate(names):
        axes.barh(
            [row + position * height for row in range(len(PLOTTED_CALLS))],
            [found[what][name]["median"] * 1000 for what in PLOTTED_CALLS],
            height,
            label=name,
            color=COLOURS[position % len(COLOURS)],
        )
    axes.set_yticks([row + 0.4 for row in range(len(PLOTTED_CALLS))], PLOTTED_CALLS)
    axes.set_xscale("log")
    axes.set_xlabel("median, ms; a history of 10,000 items")
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="upper right")
    return figure


def _lengths(pyplot: Any, part: dict[str, Any]) -> Any:
    """Plot reads over the length of the history, for the backends measured at every length."""
    histories = part["histories"]
    lengths = sorted(map(int, histories))
    names = list(histories[str(lengths[-1])]["calls"]["read 20"])
    figure, both = pyplot.subplots(1, 2, figsize=(9, 4), sharey=True)
    for axes, what in zip(both, ("read 20 after a write", "read all"), strict=True):
        for name in names:
            axes.loglog(
                lengths,
                [histories[str(n)]["calls"][what][name]["median"] * 1000 for n in lengths],
                marker="o",
                label=name,
                color=EMPHASIS if name == OURS else None,
                linewidth=2.5 if name == OURS else 1.2,
            )
        axes.set_title(what)
        axes.set_xlabel("items in the history")
    both[0].set_ylabel("median, ms")
    both[0].legend(fontsize="small")
    return figure


def _growth(pyplot: Any, part: dict[str, Any]) -> Any:
    """Plot the calls over each quantity that grows, in a panel each."""
    rows = part["rows"]
    figure, panels = pyplot.subplots(2, 3, figsize=(11, 7))
    for axes, (what, row) in zip(panels.flat, rows.items(), strict=False):
        for call, seconds in row["seconds"].items():
            axes.loglog(
                row["sizes"],
                [one * 1000 for one in seconds],
                marker="o",
                markersize=3,
                label=f"{call}: {row['exponents'][call]:+.2f}",
            )
        axes.set_xlabel(what)
        axes.set_ylabel("median, ms")
        axes.legend(fontsize="x-small", title="call: exponent", title_fontsize="x-small")
    for axes in panels.flat[len(rows) :]:
        axes.set_axis_off()
    return figure


def _sync(pyplot: Any, part: dict[str, Any]) -> Any:
    """Plot push, hydration and reconnect, compared with one request per item."""
    cells = part["cells"]
    latencies = sorted({cell["latency_ms"] for cell in cells})
    figure, panels = pyplot.subplots(
        1, len(latencies), figsize=(3.4 * len(latencies), 4), sharey=True, squeeze=False
    )
    curves = {
        "one_by_one_seconds": ("one request per item", "#7f7f7f"),
        "push_seconds": ("push", EMPHASIS),
        "hydrate_seconds": ("hydrate", "#1f77b4"),
        "tail_seconds": ("first 200 items readable", "#2ca02c"),
        "reconnect_seconds": ("reconnect", "#9467bd"),
    }
    for axes, latency in zip(panels[0], latencies, strict=True):
        row = [cell for cell in cells if cell["latency_ms"] == latency]
        for key, (label, colour) in curves.items():
            axes.loglog(
                [cell["items"] for cell in row],
                [cell[key] for cell in row],
                marker="o",
                label=label,
                color=colour,
            )
        axes.set_title(f"{latency:g} ms added")
        axes.set_xlabel("items")
    panels[0][0].set_ylabel("seconds")
    panels[0][0].legend(fontsize="x-small")
    return figure


def _idle(pyplot: Any, part: dict[str, Any]) -> Any:
    """Plot the requests an hour of an idle cache over its open sessions."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for events, label in ((True, "with the event stream"), (False, "polling")):
        rows = [row for row in part["rows"] if row["events"] is events]
        axes.loglog(
            [row["sessions"] for row in rows],
            [sum(row["an_hour"].values()) for row in rows],
            marker="o",
            label=label,
        )
    axes.axhline(20, color="#7f7f7f", linestyle="--", label="target")
    axes.set_xlabel("open sessions of one idle cache")
    axes.set_ylabel("requests per hour")
    axes.legend(fontsize="small")
    return figure


def _memory(pyplot: Any, part: dict[str, Any]) -> Any:
    """Plot resident memory over the length of the history."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    axes.semilogx(part["lengths"][1:], part["resident_mib"][1:], marker="o", color=EMPHASIS)
    axes.axhline(part["resident_mib"][0], color="#7f7f7f", linestyle="--", label="no history")
    axes.set_ylim(0, 1.4 * max(part["resident_mib"]))
    axes.set_xlabel("items in the history")
    axes.set_ylabel("MiB of a process that reads the tail")
    axes.legend(fontsize="small")
    return figure
