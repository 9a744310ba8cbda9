"""Operations: the only thing that is ever written. A dot names one; its digest seals it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import orjson

from cached_session.history.frontier import Frontier

__all__ = [
    "GONE",
    "Dot",
    "ItemRef",
    "Kind",
    "Operation",
    "clear_payload",
    "cleared_by",
    "pop_payload",
    "popped_by",
]

DIGEST_BYTES = 16
"""128 bits: against damage by chance and by carelessness; whoever may write may write anything."""
SEAL_BYTES = 8
GONE = ""
"""Stands in an operation's payloads where an item has been popped and nobody keeps its text."""


class Kind(str, Enum):
    """What an operation does."""

    APPEND = "append"
    POP = "pop"
    CLEAR = "clear"


class Dot(NamedTuple):
    """The name of one operation: the counter-th of its writer in one session."""

    writer: str
    counter: int


@dataclass(frozen=True)
class ItemRef:
    """One item, by the operation that appended it, and how many items that operation has."""

    dot: Dot
    index: int
    count: int


@dataclass(frozen=True)
class Operation:
    """One operation.

    ``payloads`` are JSON texts: an append has one an item (`GONE` where it has been popped), a pop
    names its item in one, a clear carries the frontier that it removes in one. ``said_ms`` is the
    writer's wall clock, for people. ``private`` keeps readable text out of the server's index.
    """

    dot: Dot
    kind: Kind
    stamp: int
    said_ms: int
    payloads: tuple[str, ...]
    private: bool = False

    def digest(self, session_key: str) -> str:
        """The identity of the operation's content: two operations of one dot that differ here are
        a conflict. Only whoever writes the operation has all of its payloads to compute it from."""
        whole = hashlib.sha256(self._head(session_key))
        for payload in self.payloads:
            whole.update(hashlib.sha256(payload.encode()).digest())
        return whole.digest()[:DIGEST_BYTES].hex()

    def seal(self, session_key: str, digest: str, index: int) -> str:
        """A seal over one payload and everything that other replicas act on with it. It can be
        checked without the other payloads, which may have been popped and forgotten."""
        seal = hashlib.sha256(self._head(session_key))
        seal.update(f"{digest}|{index}|".encode())
        seal.update(self.payloads[index].encode())
        return seal.digest()[:SEAL_BYTES].hex()

    def _head(self, session_key: str) -> bytes:
        return (
            f"1|{session_key}|{self.dot.writer}|{self.dot.counter}|{self.kind.value}"
            f"|{self.stamp}|{int(self.private)}|{len(self.payloads)}|"
        ).encode()


def pop_payload(ref: ItemRef) -> str:
    """The payload of a pop. It carries the batch size so that a replica that never saw the append
    can still tell when all of it has been popped."""
    return orjson.dumps(
        {"w": ref.dot.writer, "c": ref.dot.counter, "i": ref.index, "n": ref.count}
    ).decode()


def popped_by(payload: str) -> ItemRef:
    """The item that a pop names.

    Raises:
        ValueError: if the payload names none.
    """
    data = orjson.loads(payload)
    if not isinstance(data, dict):
        raise ValueError("a pop names its item by an object")
    writer, counter, index, count = (data.get(key) for key in "wcin")
    if (
        not isinstance(writer, str)
        or type(counter) is not int
        or type(index) is not int
        or type(count) is not int
        or not (1 <= counter < 1 << 53 and 0 <= index < count < 1 << 31)
    ):
        raise ValueError(f"a pop names no item: {payload[:200]!r}")
    return ItemRef(Dot(writer, counter), index, count)


def clear_payload(frontier: Frontier) -> str:
    """The payload of a clear."""
    return orjson.dumps(frontier.encode()).decode()


def cleared_by(payload: str) -> Frontier:
    """The operations that a clear removes.

    Raises:
        ValueError: if the payload holds no frontier.
    """
    return Frontier.decode(orjson.loads(payload))
