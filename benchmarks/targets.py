"""What is promised, and how it turned out: each target with what a run measured."""

# ruff: noqa: E501 - a table reads best with a row a line

from __future__ import annotations

from typing import Any

from arms import FLOOR, OURS, PEER

__all__ = ["as_text", "judge"]

LONG = "10000"


def judge(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target as {what, wanted, measured, met}."""
    long, sync = numbers["histories"][LONG], numbers["sync"]
    growth, many = numbers["growth"], numbers["concurrent"]["seconds"]

    def times(what: str, over: str, under: str) -> float:
        arms = long["calls"][what]
        return float(arms[over]["median"] / arms[under]["median"])

    busy, idle = (sync["read_while_pushing"][name]["p99"] for name in ("busy", "idle"))
    rows = [
        ("read 20 of 10,000 after a write, beside the floor", "<=", 1.2, times("read 20 after a write", OURS, FLOOR)),
        ("read 20 of 10,000 warm, beside the floor", "<=", 1.0, times("read 20", OURS, FLOOR)),
        ("read 20 of 10,000, times as fast as AsyncSQLiteSession", ">=", 15, times("read 20", PEER, OURS)),
        ("read all 10,000, times as fast as AsyncSQLiteSession", ">=", 3, times("read all", PEER, OURS)),
        ("read all 10,000, longest hold of the loop in ms", "<=", 5, long["held_ms"]["read all"][OURS]),
        ("read 20, exponent over the history's length", "<=", 0.05, growth["exponents"]["read 20 after a write"]),
        ("read 20 at p99 while pushing, beside idle", "<=", 1.5, busy / idle),
        ("add 1, beside the floor", "<=", 1.3, times("add 1", OURS, FLOOR)),
        ("add 1, times as fast as AsyncSQLiteSession", ">=", 2, times("add 1", PEER, OURS)),
        (f"{numbers['concurrent']['sessions']} sessions at once, times as fast as AsyncSQLiteSession", ">=", 8, many[PEER] / many[OURS]),
        (f"push of {sync['items']} items at {numbers['latency_ms']} ms, times as fast as one by one", ">=", 200, sync["one_by_one_seconds"] / sync["push_seconds"]),
        (f"first 200 of {sync['items']} items readable on another device, round trips", "<=", 3, sync["first_200_seconds"] * 1000 / numbers["latency_ms"]),
    ]  # fmt: skip
    return [
        {
            "what": what,
            "wanted": f"{sign} {bound:g}",
            "measured": value,
            "met": value <= bound if sign == "<=" else value >= bound,
        }
        for what, sign, bound, value in rows
    ]


def as_text(found: list[dict[str, Any]]) -> str:
    """The targets as a table of Markdown."""
    lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
    lines += [
        f"| {one['what']} | {one['wanted']} | {one['measured']:.3g} | {'met' if one['met'] else 'missed'} |"
        for one in found
    ]
    return "\n".join(lines)
