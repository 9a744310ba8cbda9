"""Operations: the only thing that is ever written. A dot names one; its digest seals it."""

from __future__ import annotations

import hashlib
import re
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
    "head_of",
    "own_text",
    "pop_payload",
    "popped_by",
    "seal",
    "wire_text",
]

DIGEST_BYTES = 16
"""128 bits: against damage by chance and by carelessness; whoever may write may write anything."""
SEAL_BYTES = 8
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
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
        whole = hashlib.sha256(self.head(session_key))
        for payload in self.payloads:
            whole.update(hashlib.sha256(wire_text(payload).encode()).digest())
        return whole.digest()[:DIGEST_BYTES].hex()

    def head(self, session_key: str) -> bytes:
        """See `head_of`."""
        return head_of(
            session_key, self.dot, self.kind, self.stamp, self.private, len(self.payloads)
        )


def head_of(session_key: str, dot: Dot, kind: Kind, stamp: int, private: bool, count: int) -> bytes:
    """What other replicas act on besides the payloads, as it goes into digest and seals."""
    return (
        f"1|{session_key}|{dot.writer}|{dot.counter}|{kind.value}|{stamp}|{private:d}|{count}|"
    ).encode()


def seal(head: bytes, digest: str, index: int, text: str) -> str:
    """A seal over one payload, as it is on the wire, and all that goes with it. It can be checked
    without the other payloads, which may have been popped and forgotten."""
    sealed = hashlib.sha256(head)
    sealed.update(f"{digest}|{index}|".encode())
    sealed.update(text.encode())
    return sealed.digest()[:SEAL_BYTES].hex()


def wire_text(payload: str) -> str:
    """A payload in ASCII: what is outside of it stands in JSON strings only, and is escaped there.

    No server on the way can take this apart: normal forms, byte order marks and line separators
    are the letters, digits and backslashes of their escapes.
    """
    return payload if payload.isascii() else _BEYOND_ASCII.sub(_escaped, payload)


def own_text(text: str) -> str:
    """The inverse of `wire_text`: the payload as the fast JSON library writes it, if that is where
    the text came from."""
    if "\\u" not in text:
        return text
    try:
        payload = orjson.dumps(orjson.loads(text)).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return text
    return payload if wire_text(payload) == text else text


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


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
