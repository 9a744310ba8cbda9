"""Operations as plain JSON, as the test vectors contain them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cached_session.history.ops import GONE, Dot, Kind, Operation, TurnKey

__all__ = ["HERE", "load", "operation", "operation_json", "repeated"]

HERE = Path(__file__).parent


def load(name: str) -> list[dict[str, Any]]:
    """Return the cases of a file."""
    cases: list[dict[str, Any]] = json.loads((HERE / f"{name}.json").read_text(encoding="ascii"))
    return cases


def operation_json(op: Operation) -> dict[str, Any]:
    """Return an operation without the fields that have their default. Stamps are hex digits,
    because JSON numbers above 2**53 are not exact everywhere."""
    data: dict[str, Any] = {
        "version": op.version,
        "kind": op.kind.value,
        "writer": op.dot.writer,
        "counter": op.dot.counter,
        "stamp": f"{op.stamp:016x}",
        "time": op.said_ms,
        "payloads": [None if payload == GONE else payload for payload in op.payloads],
    }
    if op.private:
        data["private"] = True
    if op.turn is not None:
        stamp, writer, counter = op.turn
        data["turn"] = {"stamp": f"{stamp:016x}", "writer": writer, "counter": counter}
    if op.branch:
        data["branch"] = op.branch
    if op.key_id:
        data["key"] = op.key_id
    return data


def operation(data: dict[str, Any]) -> Operation:
    """Return the operation that `operation_json` has written."""
    turn = data.get("turn")
    return Operation(
        Dot(data["writer"], data["counter"]),
        Kind(data["kind"]),
        int(data["stamp"], 16),
        data["time"],
        tuple(GONE if payload is None else payload for payload in data["payloads"]),
        data.get("private", False),
        TurnKey(int(turn["stamp"], 16), turn["writer"], turn["counter"]) if turn else None,
        data.get("branch", ""),
        data.get("key", ""),
        data["version"],
    )


def repeated(pieces: list[list[Any]]) -> str:
    """Return a long text that is written as a list of [text, repetitions]."""
    return "".join(text * times for text, times in pieces)
