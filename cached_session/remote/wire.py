"""An operation to memories and back.

What other replicas act on travels in flat metadata under ``cs_``; ``content`` is for people and
for the server's own recall. Frozen by golden tests.

| field | what it says |
|---|---|
| `cs_v` | wire version |
| `cs_op` | append, pop, clear, or void (the placeholder of a parked operation) |
| `cs_w` | writer |
| `cs_c` | counter |
| `cs_s` | stamp, 16 hex digits: JSON numbers past 2**53 are not safe everywhere |
| `cs_t` | when it was said: milliseconds by the writer's clock |
| `cs_n` | payloads of the operation |
| `cs_i` | which payload this is |
| `cs_p` | parts of that payload |
| `cs_j` | which part this is |
| `cs_d` | the identity of the operation's whole content |
| `cs_e` | the seal over this payload |
| `cs_x` | the part's text |
| `cs_h` | 1 if readable text is kept from the server's index |
| `cs_sid` | the session id, in the operation's first memory (where it can be said in Unicode) |

A confirmed pop leaves a *claim note* on the item that it wants, before it asks for the deletion. It
is no operation, and its id (``csn1-…``) is of another form, so that readers of the history pass it
over, also those of an earlier version. It is tagged with its item's name, and says:

| field | what it says |
|---|---|
| `cs_v` | wire version |
| `cs_op` | claim |
| `cs_w` | writer of the operation that appended the item |
| `cs_c` | counter of that operation |
| `cs_i` | the item within it |
| `cs_by` | who claims: the writer of the pop, if it is granted |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cached_session.history.clock import MAX_STAMP
from cached_session.history.ids import session_key
from cached_session.history.item_text import ROLES, role_and_text
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.parts import PART_BYTES, Part, split
from cached_session.remote.ids import (
    WIRE_VERSION,
    claim_id,
    memory_id,
    placeholder_id,
    version_of,
)

__all__ = [
    "ITEM_TAGS",
    "TAG",
    "EncodedMemory",
    "Placeholder",
    "Unreadable",
    "claim_note",
    "claim_tag",
    "claimers",
    "decode",
    "memories_of",
    "placeholder",
]

TAG = "cached-session"
"""On every memory of ours."""
ITEM_TAGS = tuple(sorted(f"cs-{role}" for role in ROLES))
"""One of these is on every memory with an item's text, and none on bookkeeping."""
HIDDEN = "(kept on the devices)"
"""Content of an item whose session keeps its text out of the server's index."""
TTL_SECONDS = 50 * 365 * 86400
"""Counted by the server's clock from when it stores: a device in 1970 must not expire its data.
The server allows at most 100 years."""
EVENT_LAST = 9_999_999_999
"""The server refuses an event time past the year 2286."""
MOST = 1 << 31
"""Counts above this are nonsense."""

_KINDS = {kind.value: kind for kind in Kind}
_WRITER = re.compile(r"[a-z2-7]{8,64}")


class Unreadable(Exception):
    """A memory that bears our mark and makes no sense, or comes from a newer version."""


@dataclass(frozen=True)
class Placeholder:
    """A placeholder: its writer says that the server refuses this operation."""

    dot: Dot


def memories_of(op: Operation, digest: str, session_id: str) -> Iterator[dict[str, Any]]:
    """The store request's entries for an operation, in order; the same bytes every time."""
    key = session_key(session_id)
    for part in split(op, digest, key):
        metadata: dict[str, Any] = {
            "cs_v": WIRE_VERSION,
            "cs_op": part.kind.value,
            "cs_w": part.dot.writer,
            "cs_c": part.dot.counter,
            "cs_s": f"{part.stamp:016x}",
            "cs_t": part.said_ms,
            "cs_n": part.count,
            "cs_i": part.index,
            "cs_p": part.parts,
            "cs_j": part.part,
            "cs_d": part.digest,
            "cs_e": part.seal,
            "cs_x": part.text,
        }
        if op.private:
            metadata["cs_h"] = 1
        if part.index == 0 and part.part == 0 and _is_unicode(session_id):
            metadata["cs_sid"] = session_id[:1024]
        content, role = _content(op, part)
        yield _memory(
            memory_id(key, part.dot, part.index, part.part), content, role, metadata, op.said_ms
        )


def placeholder(op: Operation, session_id: str) -> dict[str, Any]:
    """The small memory that stands where the server refuses an operation."""
    metadata = {
        "cs_v": WIRE_VERSION,
        "cs_op": "void",
        "cs_w": op.dot.writer,
        "cs_c": op.dot.counter,
    }
    identity = placeholder_id(session_key(session_id), op.dot)
    return _memory(identity, "(an entry kept on its device)", "op", metadata, op.said_ms)


def claim_tag(dot: Dot, index: int) -> str:
    """By which every note on one item is found."""
    return f"cs-on-{dot.writer}-{dot.counter}-{index}"


def claim_note(session_id: str, dot: Dot, index: int, claimer: str, now_ms: int) -> dict[str, Any]:
    """The memory that says that this claimer wants this item."""
    metadata = {
        "cs_v": WIRE_VERSION,
        "cs_op": "claim",
        "cs_w": dot.writer,
        "cs_c": dot.counter,
        "cs_i": index,
        "cs_by": claimer,
    }
    identity = claim_id(session_key(session_id), dot, index, claimer)
    # Distinct words, so that a server that merges what is alike keeps both of two claimers' notes.
    memory = _memory(identity, f"(claimed by {claimer})", "op", metadata, now_ms)
    memory["tags"].append(claim_tag(dot, index))
    return memory


def claimers(memories: Iterable[Mapping[str, Any]], key: str, dot: Dot, index: int) -> set[str]:
    """Who has left a note on an item, among these memories."""
    found = set()
    for memory in memories:
        metadata = memory.get("metadata")
        claimer = metadata.get("cs_by") if isinstance(metadata, Mapping) else None
        if isinstance(claimer, str) and memory.get("id") == claim_id(key, dot, index, claimer):
            found.add(claimer)
    return found


def _memory(
    identity: str, content: str, role: str, metadata: dict[str, Any], said_ms: int
) -> dict[str, Any]:
    memory: dict[str, Any] = {
        "id": identity,
        "content": content,
        # The type whose importance does not decay, full importance, and a life of its own: three
        # guards, because a key may not be allowed to set the namespace's policy.
        "memory_type": "procedural",
        "importance": 1.0,
        "ttl_seconds": TTL_SECONDS,
        "tags": [TAG, f"cs-{role}"],
        "metadata": metadata,
    }
    if 0 <= said_ms // 1000 <= EVENT_LAST:
        memory["event_time"] = said_ms // 1000
    return memory


def _content(op: Operation, part: Part) -> tuple[str, str]:
    """(readable text, role) of one memory."""
    if op.kind is not Kind.APPEND:
        return ("(removed an item)" if op.kind is Kind.POP else "(cleared the session)"), "op"
    if part.part:
        return f"(continued, part {part.part + 1} of {part.parts})", "part"
    role, text = role_and_text(op.payloads[part.index])
    return (HIDDEN if op.private else text), role


def decode(memory: Mapping[str, Any], key: str) -> Part | Placeholder | None:
    """What a memory of the session with this key says; None if it is not one of ours.

    A memory is ours if its id is exactly the one that its metadata derives: sub-memories that a
    server makes of ours may carry our tags and metadata, never our ids.

    Raises:
        Unreadable: it bears our mark and cannot be read.
    """
    identity = memory.get("id")
    version = version_of(identity)
    if version is None:
        return None
    if version > WIRE_VERSION:
        raise Unreadable(f"{identity} is of wire version {version}: upgrade cached-session")
    metadata = memory.get("metadata")
    if not isinstance(metadata, Mapping):
        raise Unreadable(f"{identity} has lost its metadata")
    dot = Dot(_writer(metadata, identity), _integer(metadata, "cs_c", 1, 1 << 53, identity))
    if metadata.get("cs_op") == "void":
        if identity != placeholder_id(key, dot):
            raise Unreadable(f"{identity} is not the id of its own content")
        return Placeholder(dot)
    said = metadata.get("cs_op")
    kind = _KINDS.get(said) if isinstance(said, str) else None
    if kind is None:
        raise Unreadable(f"{identity} is of unknown kind {said!r}")
    count = _integer(metadata, "cs_n", 1, MOST, identity)
    parts = _integer(metadata, "cs_p", 1, MOST, identity)
    part = Part(
        dot=dot,
        kind=kind,
        stamp=_stamp(metadata, identity),
        said_ms=_integer(metadata, "cs_t", -(1 << 53), 1 << 53, identity),
        private=metadata.get("cs_h") in (1, "1"),
        digest=_string(metadata, "cs_d", 64, identity),
        seal=_string(metadata, "cs_e", 64, identity),
        count=count,
        index=_integer(metadata, "cs_i", 0, count, identity),
        parts=parts,
        part=_integer(metadata, "cs_j", 0, parts, identity),
        text=_string(metadata, "cs_x", PART_BYTES, identity),
    )
    if identity != memory_id(key, dot, part.index, part.part):
        raise Unreadable(f"{identity} is not the id of its own content")
    return part


def _writer(metadata: Mapping[str, Any], identity: object) -> str:
    writer = metadata.get("cs_w")
    if not isinstance(writer, str) or not _WRITER.fullmatch(writer):
        raise Unreadable(f"{identity} names no writer: {writer!r:.80}")
    return writer


def _integer(
    metadata: Mapping[str, Any], field: str, lowest: int, below: int, identity: object
) -> int:
    value = metadata.get(field)
    if type(value) is int and lowest <= value < below:
        return value
    # A server may keep numbers as floats, or as text.
    is_float = isinstance(value, float) and value.is_integer()
    is_text = isinstance(value, str) and len(value) < 20 and value.lstrip("-").isdecimal()
    if is_float or is_text:
        value = int(value)  # type: ignore[arg-type]
    if type(value) is not int or not lowest <= value < below:
        raise Unreadable(f"{identity} has {field}={value!r:.80}")
    return value


def _string(metadata: Mapping[str, Any], field: str, most: int, identity: object) -> str:
    value = metadata.get(field)
    if not isinstance(value, str) or len(value) > most:
        raise Unreadable(f"{identity} has no usable {field}")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unreadable(f"{identity} has no usable {field}") from error
    return value


def _stamp(metadata: Mapping[str, Any], identity: object) -> int:
    text = _string(metadata, "cs_s", 16, identity)
    try:
        stamp = int(text, 16)
    except ValueError as error:
        raise Unreadable(f"{identity} has cs_s={text!r}") from error
    if not 0 < stamp <= MAX_STAMP:
        raise Unreadable(f"{identity} has a stamp that no clock gives: {text}")
    return stamp


def _is_unicode(session_id: str) -> bool:
    try:
        session_id.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(slots=True)
class EncodedMemory:
    """A memory as it goes into a store request: encoded once, and small to keep until it is sent.

    What its metadata says of whose it is stays at hand, to tell whether a server holds it. Nobody
    changes one; as with `Part`, to freeze it would cost more than the rest of making it."""

    id: str
    data: bytes
    dot: tuple[object, object]
    seal: tuple[object, ...]

    @classmethod
    def of(cls, memory: Mapping[str, Any]) -> EncodedMemory:
        """The encoded form of a memory."""
        metadata = memory["metadata"]
        dot = metadata.get("cs_w"), metadata.get("cs_c")
        return cls(memory["id"], orjson.dumps(memory), dot, _seal(metadata))

    def is_held(self, memory: Mapping[str, Any] | None) -> bool:
        """Whether what a server has under this id is this memory."""
        metadata = memory.get("metadata") if memory else None
        return isinstance(metadata, dict) and _seal(metadata) == self.seal


def _seal(metadata: Mapping[str, Any]) -> tuple[object, ...]:
    return metadata.get("cs_d"), metadata.get("cs_e"), metadata.get("cs_j")
