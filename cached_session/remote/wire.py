"""The wire format: encoding of an operation as memories of the server, and decoding.

Replicas read flat metadata fields that begin with ``cs_``. ``content`` is text for people and for
the server's own recall. Golden tests freeze the format.

| field | meaning |
|---|---|
| `cs_v` | wire version |
| `cs_op` | append, pop, clear, or void (the placeholder of a parked operation) |
| `cs_w` | writer |
| `cs_c` | counter |
| `cs_s` | stamp, 16 hex digits: JSON numbers above 2**53 are not exact everywhere |
| `cs_t` | time of the operation: milliseconds by the writer's clock |
| `cs_n` | number of payloads of the operation |
| `cs_i` | index of this payload |
| `cs_p` | number of parts of this payload |
| `cs_j` | index of this part |
| `cs_d` | digest of the whole operation |
| `cs_e` | seal: digest of this payload |
| `cs_x` | text of this part |
| `cs_h` | 1 if readable text is kept out of the server's index |
| `cs_sid` | session id, in the operation's first memory (if it is valid Unicode) |

A confirmed pop stores a *claim note* for its item before it requests the deletion of the item. A
note is not an operation. Its id (``csn1-…``) has another form, so every reader of the history skips
the note, also a reader of an earlier version. One of the note's tags names the item. The metadata
of a note:

| field | meaning |
|---|---|
| `cs_v` | wire version |
| `cs_op` | claim |
| `cs_w` | writer of the operation that appended the item |
| `cs_c` | counter of that operation |
| `cs_i` | index of the item in it |
| `cs_by` | the claimer: the writer of the pop, if the claim is granted |
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
"""Tag of every memory that this package stores."""
ITEM_TAGS = tuple(sorted(f"cs-{role}" for role in ROLES))
"""Tags of the memories that contain an item's text. Each such memory has one of these tags. No
other memory has any of these tags."""
HIDDEN = "(kept on the devices)"
"""Content that replaces an item's text if the session keeps text out of the server's index."""
TTL_SECONDS = 50 * 365 * 86400
"""Lifetime of a memory in seconds: 50 years. The server allows at most 100 years. The lifetime
starts when the server stores the memory, so a device whose clock shows 1970 does not store expired
memories."""
EVENT_LAST = 9_999_999_999
"""Latest event time in Unix seconds (the year 2286): the server refuses a later time."""
MOST_COUNTED = 1 << 31
"""Exclusive upper limit of the numbers of payloads and parts. A memory with a larger number is
unreadable."""

_KINDS = {kind.value: kind for kind in Kind}
_WRITER = re.compile(r"[a-z2-7]{8,64}")


class Unreadable(Exception):
    """A memory with an id of this package is invalid, or has a newer wire version."""


@dataclass(frozen=True)
class Placeholder:
    """A decoded placeholder: the writer parked this operation, so it may never arrive."""

    dot: Dot


def memories_of(op: Operation, digest: str, session_id: str) -> Iterator[dict[str, Any]]:
    """Yield the store request's entries for an operation, in order.

    The entries of an operation are always identical.
    """
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
    """Return the small memory that replaces an operation that the server refuses."""
    metadata = {
        "cs_v": WIRE_VERSION,
        "cs_op": "void",
        "cs_w": op.dot.writer,
        "cs_c": op.dot.counter,
    }
    identity = placeholder_id(session_key(session_id), op.dot)
    return _memory(identity, "(an entry kept on its device)", "op", metadata, op.said_ms)


def claim_tag(dot: Dot, index: int) -> str:
    """Return the tag of every claim note on one item."""
    return f"cs-on-{dot.writer}-{dot.counter}-{index}"


def claim_note(session_id: str, dot: Dot, index: int, claimer: str, now_ms: int) -> dict[str, Any]:
    """Return the claim note of one claimer on one item."""
    metadata = {
        "cs_v": WIRE_VERSION,
        "cs_op": "claim",
        "cs_w": dot.writer,
        "cs_c": dot.counter,
        "cs_i": index,
        "cs_by": claimer,
    }
    identity = claim_id(session_key(session_id), dot, index, claimer)
    # The content names the claimer, so that a server that merges similar memories does not merge
    # the notes of two claimers.
    memory = _memory(identity, f"(claimed by {claimer})", "op", metadata, now_ms)
    memory["tags"].append(claim_tag(dot, index))
    return memory


def claimers(memories: Iterable[Mapping[str, Any]], key: str, dot: Dot, index: int) -> set[str]:
    """Return the claimers of an item whose notes are among these memories."""
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
        # The key may lack permission to set the namespace's policy. So each memory has three guards
        # against expiry: the type whose importance does not decay, full importance, and a lifetime.
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
    """Return (readable text, role) of one memory."""
    if op.kind is not Kind.APPEND:
        return ("(removed an item)" if op.kind is Kind.POP else "(cleared the session)"), "op"
    if part.part:
        return f"(continued, part {part.part + 1} of {part.parts})", "part"
    role, text = role_and_text(op.payloads[part.index])
    return (HIDDEN if op.private else text), role


def decode(memory: Mapping[str, Any], key: str) -> Part | Placeholder | None:
    """Decode a memory of the session with this key; return None if this package did not store it.

    The id must match the metadata. Sub-memories that a server derives from a memory of this package
    may have its tags and metadata, but never its id.

    Raises:
        Unreadable: the memory has an id of this package and cannot be read.
    """
    identity = memory.get("id")
    version = version_of(identity)
    if version is None:
        return None
    if version > WIRE_VERSION:
        raise Unreadable(f"{identity} is of wire version {version}; upgrade cached-session")
    metadata = memory.get("metadata")
    if not isinstance(metadata, Mapping):
        raise Unreadable(f"{identity} has no metadata")
    dot = Dot(_writer(metadata, identity), _integer(metadata, "cs_c", 1, 1 << 53, identity))
    if metadata.get("cs_op") == "void":
        if identity != placeholder_id(key, dot):
            raise Unreadable(f"{identity} is not the id that its metadata yields")
        return Placeholder(dot)
    kind_name = metadata.get("cs_op")
    kind = _KINDS.get(kind_name) if isinstance(kind_name, str) else None
    if kind is None:
        raise Unreadable(f"{identity} is of the unknown kind {kind_name!r:.80}")
    count = _integer(metadata, "cs_n", 1, MOST_COUNTED, identity)
    parts = _integer(metadata, "cs_p", 1, MOST_COUNTED, identity)
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
        raise Unreadable(f"{identity} is not the id that its metadata yields")
    return part


def _writer(metadata: Mapping[str, Any], identity: object) -> str:
    writer = metadata.get("cs_w")
    if not isinstance(writer, str) or not _WRITER.fullmatch(writer):
        raise Unreadable(f"{identity} has no valid writer: cs_w={writer!r:.80}")
    return writer


def _integer(
    metadata: Mapping[str, Any], field: str, lowest: int, below: int, identity: object
) -> int:
    value = metadata.get(field)
    if type(value) is int and lowest <= value < below:
        return value
    # A server may return numbers as floats, or as text.
    is_float = isinstance(value, float) and value.is_integer()
    is_text = isinstance(value, str) and len(value) < 20 and value.lstrip("-").isdecimal()
    if is_float or is_text:
        value = int(value)  # type: ignore[arg-type]
    if type(value) is not int or not lowest <= value < below:
        raise Unreadable(f"{identity} has an invalid {field}={value!r:.80}")
    return value


def _string(metadata: Mapping[str, Any], field: str, most: int, identity: object) -> str:
    value = metadata.get(field)
    if not isinstance(value, str) or len(value) > most:
        raise Unreadable(f"{identity} has no valid {field}")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unreadable(f"{identity} has no valid {field}") from error
    return value


def _stamp(metadata: Mapping[str, Any], identity: object) -> int:
    text = _string(metadata, "cs_s", 16, identity)
    try:
        stamp = int(text, 16)
    except ValueError as error:
        raise Unreadable(f"{identity} has an invalid stamp: cs_s={text!r}") from error
    if not 0 < stamp <= MAX_STAMP:
        raise Unreadable(f"{identity} has a stamp out of range: cs_s={text!r}")
    return stamp


def _is_unicode(session_id: str) -> bool:
    try:
        session_id.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(slots=True)
class EncodedMemory:
    """A memory, encoded once as an entry of a store request. It uses little space until it is sent.

    The object also stores the metadata that shows whether a server has this exact memory. Treat the
    object as immutable. As with `Part`, the class is not frozen, because a frozen class would more
    than double the time to create an object.
    """

    id: str
    data: bytes
    dot: tuple[object, object]
    seal: tuple[object, ...]

    @classmethod
    def of(cls, memory: Mapping[str, Any]) -> EncodedMemory:
        """Encode a memory."""
        metadata = memory["metadata"]
        dot = metadata.get("cs_w"), metadata.get("cs_c")
        return cls(memory["id"], orjson.dumps(memory), dot, _seal(metadata))

    def is_held(self, memory: Mapping[str, Any] | None) -> bool:
        """Return whether a memory that a server returned for this id has this content."""
        metadata = memory.get("metadata") if memory else None
        return isinstance(metadata, dict) and _seal(metadata) == self.seal


def _seal(metadata: Mapping[str, Any]) -> tuple[object, ...]:
    return metadata.get("cs_d"), metadata.get("cs_e"), metadata.get("cs_j")
