"""Operations: appends, pops, clears and marks, their payloads, digests and seals.

A history consists of operations only. A dot identifies an operation, a digest its content.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import orjson

from cached_session.history.frontier import Frontier

__all__ = [
    "COUNT_LIMIT",
    "GONE",
    "MARK_BYTES",
    "Dot",
    "ItemRef",
    "Kind",
    "Mark",
    "Operation",
    "TurnKey",
    "decode_clear",
    "decode_mark",
    "decode_pop",
    "encode_clear",
    "encode_head",
    "encode_mark",
    "encode_pop",
    "escape_payload",
    "is_id",
    "normalize_turn",
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
COUNT_LIMIT = 1 << 31
"""Exclusive upper limit of the numbers of payloads and parts. A memory with a larger number is
unreadable."""
MARK_BYTES = 1 << 20
"""Maximum UTF-8 bytes of the payload of a mark. A mark is state that every device loads, such as a
title. Larger data belongs into an item."""
MARK_KEY_CHARACTERS = 256
MARK_DEPTH = 64
"""Maximum nesting of a mark's value. All replicas must accept the same marks; otherwise they
would show different states. So the limit is far below the limit of every JSON parser."""
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


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


def is_id(text: str) -> bool:
    """Return whether a text is a valid branch id, key id or type of a mark.

    Such an id contains no ``|``, so that `encode_head` is unambiguous.
    """
    return _ID.fullmatch(text) is not None


def normalize_turn(turn: TurnKey, stamp: int, dot: Dot) -> TurnKey | None:
    """Return the value of `Operation.turn` for an append of this turn: None if the append is the
    head.

    Raises:
        ValueError: the head would sort after the append. A writer never appends to a turn before
            it has the head of the turn.
    """
    if turn == (stamp, *dot):
        return None
    same_writer = turn.writer == dot.writer
    if turn.stamp > stamp or (same_writer and turn.counter >= dot.counter):
        raise ValueError(f"the head {tuple(turn)} of a turn is later than operation {tuple(dot)}")
    return turn


@dataclass(frozen=True)
class Mark:
    """A named value of a session that is not an item, such as the title."""

    type: str
    key: str
    value: Any
    """JSON data: numbers are finite, and integers have at most 64 bits."""


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
    text that identifies the item. A clear has one text with the frontier that it removes. A mark
    has one text with type, key and value."""
    private: bool = False
    """True if no readable text of the items is sent to the server."""
    turn: TurnKey | None = None
    """The turn of an append; None if the append is the head of its turn, and for other kinds."""
    branch: str = ""
    """Id of the branch of an append, a pop or a clear; empty for the main branch."""
    key_id: str = ""
    """Id of the key that encrypts the payloads of an append or a mark; empty if they are not
    encrypted. Pops and clears are never encrypted: every replica must be able to apply them."""
    version: int = 2
    """The wire version of the operation. Version 1 has no turn, branch, key or marks."""

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

    No field contains a ``|`` (`is_id`), so two operations never have one encoding.
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
        or not (1 <= counter < 1 << 53 and 0 <= index < count < COUNT_LIMIT)
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


def encode_mark(mark: Mark) -> str:
    """Return the payload of a mark.

    Raises:
        ValueError: type, key or value is not valid, or the payload is too large.
    """
    _check_mark(mark.type, mark.key, mark.value)
    payload = orjson.dumps({"type": mark.type, "key": mark.key, "value": mark.value})
    if len(payload) > MARK_BYTES:
        raise ValueError(f"a mark has at most {MARK_BYTES} bytes, not {len(payload)}")
    return payload.decode()


def decode_mark(payload: str) -> Mark:
    """Decode the payload of a mark.

    Raises:
        ValueError: the payload is not a mark, or is too large.
    """
    if len(payload) > MARK_BYTES or len(payload.encode("utf-8", "replace")) > MARK_BYTES:
        raise ValueError(f"a mark has at most {MARK_BYTES} bytes")
    data = orjson.loads(payload)
    if not isinstance(data, dict) or data.keys() != {"type", "key", "value"}:
        raise ValueError(f"a mark must have a type, a key and a value: {payload[:200]!r}")
    _check_mark(data["type"], data["key"], data["value"])
    return Mark(data["type"], data["key"], data["value"])


def _check_mark(kind: object, key: object, value: object) -> None:
    if not isinstance(kind, str) or not is_id(kind):
        raise ValueError(f"the type of a mark must match {_ID.pattern}, not {kind!r:.80}")
    if not isinstance(key, str) or len(key) > MARK_KEY_CHARACTERS:
        raise ValueError(
            f"the key of a mark must be a text of at most {MARK_KEY_CHARACTERS} characters"
        )
    _check_text(key)
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MARK_DEPTH:
            raise ValueError(f"the value of a mark is nested more than {MARK_DEPTH} levels deep")
        level = [inner for outer in level for inner in _check_json(outer)]


def _check_json(value: object) -> list[object]:
    """Check a JSON value without the values inside it, and return these."""
    if isinstance(value, dict):
        for name in value:
            _check_text(name)
        return list(value.values())
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the value of a mark contains the number {value}")
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("the value of a mark contains an integer of more than 64 bits")
    elif value is not None:
        raise ValueError(
            f"the value of a mark contains a {type(value).__name__}, which is not JSON"
        )
    return []


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"a name in the value of a mark is not a text: {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a mark contains a text that is not valid Unicode") from error
