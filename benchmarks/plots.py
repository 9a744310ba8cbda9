"""The pictures in `docs/plots/`: the same bytes for the same numbers, so that a commit shows what
has changed. The library that draws them is in the extra `bench`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends import OURS

__all__ = ["draw", "storms"]

PLOTS = Path(__file__).parent.parent / "docs" / "plots"
SHOWN = ("read 20", "read 20 after a write", "read 200", "read all", "add 1", "add 100", "pop")
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
    figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def draw(parts: dict[str, Any]) -> list[str]:
    """Every picture for which these parts have the numbers; their names."""
    pyplot = _pyplot()
    drawn = []
    for name, needs, picture in (
        ("calls", "calls", _calls),
        ("lengths", "calls", _lengths),
        ("growth", "growth", _growth),
        ("sync", "sync", _sync),
        ("idle", "idle", _idle),
        ("memory", "memory", _memory),
    ):
        if needs in parts:
            _save(pyplot, picture(pyplot, parts[needs]), name)
            drawn.append(name)
    return drawn


def storms(returns: Mapping[str, Mapping[int, Sequence[int]]], seconds: int) -> None:
    """Requests a second of a fleet that comes back: by settings, by nodes."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(
        1, len(returns), figsize=(4.5 * len(returns), 3.8), sharey=True, squeeze=False
    )
    for axes, (name, by_nodes) in zip(panels[0], returns.items(), strict=True):
        for nodes, requests in by_nodes.items():
            shown = [max(one, 0.9) for one in requests[:seconds]]
            axes.semilogy(range(len(shown)), shown, linewidth=1, label=f"{nodes} nodes")
        axes.set_title(name)
        axes.set_xlabel("seconds since the server is reachable again")
    panels[0][0].set_ylabel("requests per second")
    panels[0][0].legend(fontsize="small")
    _save(pyplot, figure, "storm")


def _calls(pyplot: Any, part: dict[str, Any]) -> Any:
    """Every arm, call by call."""
    found = part["histories"]["10000"]["calls"]
    names = [name for name in found["read 20"] if not name.startswith("one request")]
    figure, axes = pyplot.subplots(figsize=(9, 7))
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        axes.barh(
            [row + place * height for row in range(len(SHOWN))],
            [found[what][name]["median"] * 1000 for what in SHOWN],
            height,
            label=name,
            color=COLOURS[place % len(COLOURS)],
        )
    axes.set_yticks([row + 0.4 for row in range(len(SHOWN))], SHOWN)
    axes.set_xscale("log")
    axes.set_xlabel("median, ms; a history of 10,000 items")
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="upper right")
    return figure


def _lengths(pyplot: Any, part: dict[str, Any]) -> Any:
    """The reads that an agent makes, as its history grows, of those that were measured at each."""
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
    """A panel for each thing that grows."""
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
    """Push, hydration and reconnect beside one request per item."""
    cells = part["cells"]
    latencies = sorted({cell["latency_ms"] for cell in cells})
    figure, panels = pyplot.subplots(
        1, len(latencies), figsize=(3.4 * len(latencies), 4), sharey=True, squeeze=False
    )
    shown = {
        "one_by_one_seconds": ("one request per item", "#7f7f7f"),
        "push_seconds": ("push", EMPHASIS),
        "hydrate_seconds": ("hydrate", "#1f77b4"),
        "tail_seconds": ("first 200 readable", "#2ca02c"),
        "reconnect_seconds": ("reconnect", "#9467bd"),
    }
    for axes, latency in zip(panels[0], latencies, strict=True):
        row = [cell for cell in cells if cell["latency_ms"] == latency]
        for key, (label, colour) in shown.items():
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
    """Requests an hour, over the sessions that are open."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for events, label in ((True, "with the event stream"), (False, "polling")):
        rows = [row for row in part["rows"] if row["events"] is events]
        axes.loglog(
            [row["sessions"] for row in rows],
            [sum(row["an_hour"].values()) for row in rows],
            marker="o",
            label=label,
        )
    axes.axhline(20, color="#7f7f7f", linestyle="--", label="the target")
    axes.set_xlabel("open sessions of one idle cache")
    axes.set_ylabel("requests per hour")
    axes.legend(fontsize="small")
    return figure


def _memory(pyplot: Any, part: dict[str, Any]) -> Any:
    """Resident memory over the length of the history."""
    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    axes.semilogx(part["lengths"][1:], part["resident_mib"][1:], marker="o", color=EMPHASIS)
    axes.axhline(part["resident_mib"][0], color="#7f7f7f", linestyle="--", label="no history")
    axes.set_ylim(0, 1.4 * max(part["resident_mib"]))
    axes.set_xlabel("items in the history")
    axes.set_ylabel("MiB of a process that reads the tail")
    axes.legend(fontsize="small")
    return figure
