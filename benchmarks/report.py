"""From the numbers of a run: the plots in `docs/plots/`, the tables in `docs/performance.md`."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path
from typing import Any

import targets
from arms import PEER

DOCS = Path(__file__).parent.parent / "docs"
TAIL = "read 20 after a write"


def plots(numbers: dict[str, Any]) -> None:
    """Three pictures. The library that draws them is in the extra `bench`."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    # The same bytes for the same numbers, so that a commit shows what has changed.
    pyplot.rcParams.update({"svg.hashsalt": "cached-session", "svg.fonttype": "none"})
    (DOCS / "plots").mkdir(exist_ok=True)

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(DOCS / "plots" / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)

    long = numbers["histories"]["10000"]["calls"]
    shown = ["read 20", TAIL, "read 200", "read all", "add 1", "add 100", "pop"]
    figure, axes = pyplot.subplots(figsize=(9, 7))
    names = list(long[TAIL])
    for place, name in enumerate(names):
        height = 0.8 / len(names)
        axes.barh(
            [row + place * height for row in range(len(shown))],
            [long[what][name]["median"] * 1000 for what in shown],
            height,
            label=name,
        )
    axes.set_yticks([row + 0.4 for row in range(len(shown))], shown)
    axes.set_xscale("log")
    axes.set_xlabel("median, ms; a history of 10,000 items")
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    save(figure, "calls")

    growth = numbers["growth"]
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for what, seconds in growth["seconds"].items():
        label = f"{what}: exponent {growth['exponents'][what]:.2f}"
        axes.loglog(growth["lengths"], [one * 1000 for one in seconds], marker="o", label=label)
    axes.set_xlabel("items in the history")
    axes.set_ylabel("ms")
    axes.legend(fontsize="small")
    save(figure, "growth")

    memory = numbers["memory"]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.semilogx(memory["lengths"], memory["resident_mib"], marker="o")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("items in the history")
    axes.set_ylabel("resident MiB of a process that reads its tail")
    save(figure, "memory")


def tables(numbers: dict[str, Any]) -> str:
    """Everything that the text may refer to."""
    lines = [
        (
            f"{numbers['machine']}; load average {numbers['load']:.1f} at the start; "
            f"{'a quick' if numbers['quick'] else 'a full'} run of {numbers['seconds']:.0f} s."
        ),
        "",
        targets.as_text(numbers["targets"]),
    ]
    for length, found in numbers["histories"].items():
        lines += ["", f"A history of {length} items, medians; in brackets times as fast as {PEER}:"]
        names = list(found["calls"]["read 20"])
        lines += ["", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for what, arms in found["calls"].items():
            peer = arms[PEER]["median"]
            cells = [
                f"{arms[name]['median'] * 1000:.3f} ms ({peer / arms[name]['median']:.1f})"
                for name in names
            ]
            lines.append(f"| {what} | " + " | ".join(cells) + " |")
        for what, arms in found["held_ms"].items():
            cells = [f"{arms[name]:.1f} ms" for name in names]
            lines.append(f"| {what}: loop held | " + " | ".join(cells) + " |")
    growth, sync = numbers["growth"], numbers["sync"]
    lengths = growth["lengths"]
    lines += ["", "| items | " + " | ".join(map(str, lengths)) + " | exponent |"]
    lines.append("|---" * (len(lengths) + 2) + "|")
    for what, seconds in growth["seconds"].items():
        cells = [f"{one * 1000:.3f} ms" for one in seconds]
        lines.append(f"| {what} | {' | '.join(cells)} | {growth['exponents'][what]:.2f} |")
    for what, values in (
        ("journal bytes a payload byte", growth["journal_bytes_a_payload_byte"]),
        ("resident MiB", numbers["memory"]["resident_mib"]),
    ):
        lines.append(f"| {what} | " + " | ".join(f"{one:.2f}" for one in values) + " | |")
    lines += ["", f"| {sync['items']} items over {numbers['latency_ms']} ms | |", "|---|---|"]
    lines += [
        f"| {what} | {sync[key]:.2f} |"
        for what, key in (
            ("push, s", "push_seconds"),
            ("one request an item, s (from a sample)", "one_by_one_seconds"),
            ("push, CPU s a 1,000 items", "push_cpu_per_1000"),
            ("first 200 readable elsewhere, s", "first_200_seconds"),
            ("hydration, s", "hydrate_seconds"),
            ("hydration, CPU s a 1,000 items", "hydrate_cpu_per_1000"),
        )
    ]
    return "\n".join(lines)


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("json", type=Path, help="what `bench.py --json` wrote")
    numbers = json.loads(parser.parse_args().json.read_text(encoding="utf-8"))
    plots(numbers)
    page = DOCS / "performance.md"
    text = page.read_text(encoding="utf-8")
    marked = re.compile("(<!-- figures -->\n).*(<!-- end -->)", re.DOTALL)
    found = tables(numbers)
    page.write_text(
        marked.sub(lambda match: f"{match[1]}\n{found}\n\n{match[2]}", text), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
