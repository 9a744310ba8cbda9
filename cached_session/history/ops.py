"""Operations: appends, pops and clears, their payloads, digests and seals.

A history consists of operations only. A dot identifies an operation, a digest its content.
"""

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
    "TurnKey",
    "decode_clear",
    "decode_pop",
    "encode_clear",
    "encode_head",
    "encode_pop",
    "escape_payload",
    "seal",
    "unescape_payload",
]

DIGEST_BYTES = 16
"""Length of a digest in bytes. 128 bits detect accidental damage. They do not protect against a
peer with write access, which can compute a digest for any content."""
SEAL_BYTES = 8
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
GONE = ""
"""The payload of an item that was popped and whose text is no longer stored."""


class Kind(str, Enum):
    """The kinds of operations."""

    APPEND = "append"
    POP = "pop"
    CLEAR = "clear"
    MARK = "mark"


class Dot(NamedTuple):
    """The identity of an operation within a session: its writer and the writer's counter."""

    writer: str
    counter: int


class TurnKey(NamedTuple):
    """The identity of a turn: the stamp and the dot of its head, the append that opened the turn.

    Turns sort by this key.
    """

    stamp: int
    writer: str
    counter: int


@dataclass(frozen=True)
class ItemRef:
    """A reference to one item: the dot of its append, its index, and the append's item count."""

    dot: Dot
    index: int
    count: int


@dataclass(frozen=True)
class Operation:
    """An append, a pop, a clear or a mark."""

    dot: Dot
    kind: Kind
    stamp: int
    said_ms: int
    """The writer's wall clock in Unix milliseconds, for display. It does not affect the order."""
    payloads: tuple[str, ...]
    """JSON texts. An append has one text for each item (`GONE` for a popped item). A pop has one
    text that identifies the item. A clear has one text with the frontier that it removes."""
    private: bool = False
    """True if no readable text of the items is sent to the server."""
    turn: TurnKey | None = None
    """The turn of an append; None if the append is the head of its turn, and for other kinds."""
    branch: str = ""
    """Id of the branch of an append, a pop or a clear; empty for the main branch."""
    key_id: str = ""
    """Id of the key that encrypts the payloads; empty if they are not encrypted."""
    version: int = 2
    """The wire version of the operation. Version 1 has no turn, branch or key."""

    @property
    def turn_key(self) -> TurnKey:
        """The turn of the operation. An operation without a turn is the head of its own turn."""
        return self.turn or TurnKey(self.stamp, *self.dot)

    def digest(self, session_key: str) -> str:
        """Return the digest of the content.

        Two operations with the same dot and different digests conflict. Only the writer can compute
        the digest of every operation: other replicas may lack popped payloads.
        """
        whole = hashlib.sha256(self.head(session_key))
        for payload in self.payloads:
            whole.update(hashlib.sha256(escape_payload(payload).encode()).digest())
        return whole.digest()[:DIGEST_BYTES].hex()

    def head(self, session_key: str) -> bytes:
        """Return the result of `encode_head` for this operation."""
        return encode_head(
            session_key,
            self.dot,
            self.kind,
            self.stamp,
            self.private,
            len(self.payloads),
            turn=self.turn,
            branch=self.branch,
            key_id=self.key_id,
            version=self.version,
        )


def encode_head(
    session_key: str,
    dot: Dot,
    kind: Kind,
    stamp: int,
    private: bool,
    count: int,
    *,
    turn: TurnKey | None = None,
    branch: str = "",
    key_id: str = "",
    version: int = 2,
) -> bytes:
    """Encode the fields that the digest and the seals protect, except the payloads.

    Branch and key ids contain no ``|`` (`remote.wire`), so two operations never have one encoding.
    """
    common = f"{session_key}|{dot.writer}|{dot.counter}|{kind.value}|{stamp}|{private:d}|{count}|"
    if version == 1:
        return f"1|{common}".encode()
    stamp, writer, counter = turn or TurnKey(stamp, *dot)
    return f"{version}|{common}{stamp}|{writer}|{counter}|{branch}|{key_id}|".encode()


def seal(head: bytes, digest: str, index: int, text: str) -> str:
    """Return the seal of one payload: a hash of the head, the digest, the index and the wire text.

    A replica can check a seal without the other payloads, which may have been popped.
    """
    sealed = hashlib.sha256(head)
    sealed.update(f"{digest}|{index}|".encode())
    sealed.update(text.encode())
    return sealed.digest()[:SEAL_BYTES].hex()


def escape_payload(payload: str) -> str:
    """Escape a payload to ASCII.

    Characters outside ASCII occur only inside JSON strings, where an escape is equivalent. A server
    that normalises Unicode, strips byte order marks or splits lines at special separators cannot
    change an ASCII text.
    """
    return payload if payload.isascii() else _NOT_ASCII.sub(_escape, payload)


def unescape_payload(text: str) -> str:
    """Reverse `escape_payload` for a payload that orjson has written; return other texts unchanged.

    A text counts as escaped if escaping the result again returns the identical text.
    """
    if "\\u" not in text:
        return text
    try:
        payload = orjson.dumps(orjson.loads(text)).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, RecursionError):
        return text
    return payload if escape_payload(payload) == text else text


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def encode_pop(ref: ItemRef) -> str:
    """Return the payload of a pop.

    The payload includes the item count of the append, so that a replica without the append knows
    when all items of the append have been popped.
    """
    return orjson.dumps(
        {"w": ref.dot.writer, "c": ref.dot.counter, "i": ref.index, "n": ref.count}
    ).decode()


def decode_pop(payload: str) -> ItemRef:
    """Decode the payload of a pop.

    Raises:
        ValueError: the payload does not identify an item.
    """
    data = orjson.loads(payload)
    if not isinstance(data, dict):
        raise ValueError(f"the payload of a pop must be an object, not {payload[:200]!r}")
    writer, counter, index, count = (data.get(key) for key in "wcin")
    if (
        not isinstance(writer, str)
        or type(counter) is not int
        or type(index) is not int
        or type(count) is not int
        or not (1 <= counter < 1 << 53 and 0 <= index < count < 1 << 31)
    ):
        raise ValueError(f"the payload of a pop must identify an item: {payload[:200]!r}")
    return ItemRef(Dot(writer, counter), index, count)


def encode_clear(frontier: Frontier) -> str:
    """Return the payload of a clear that removes the operations of ``frontier``."""
    return orjson.dumps(frontier.encode()).decode()


def decode_clear(payload: str) -> Frontier:
    """Decode the payload of a clear into the operations that the clear removes.

    Raises:
        ValueError: the payload is not a frontier.
    """
    return Frontier.decode(orjson.loads(payload))
