"""The wire format: encoding of an operation as memories of the server, and decoding.

Replicas read flat metadata fields that begin with ``cs_``. ``content`` is text for people and for
the server's own recall. `docs/reference/wire.md` is the whole protocol with all fields. Golden
tests freeze the format.

A confirmed pop stores a *claim note* for its item before it requests the deletion of the item. A
note is not an operation. Its id (``csn1-…``) has another form, so every reader of the history skips
the note, also a reader of an earlier version. One of the note's tags names the item.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cached_session.history.ids import session_key
from cached_session.history.item_text import ROLES, role_and_text
from cached_session.history.ops import (
    COUNT_LIMIT,
    MARK_BYTES,
    Dot,
    Kind,
    Operation,
    TurnKey,
    normalize_turn,
)
from cached_session.history.parts import PART_BYTES, Part, split
from cached_session.history.session_name import split_name
from cached_session.remote.ids import (
    READABLE_VERSIONS,
    WIRE_VERSION,
    claim_id,
    memory_id,
    placeholder_id,
    version_of,
)
from cached_session.remote.memory_fields import MetadataFields, Unreadable

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
ENCRYPTED = "(encrypted)"
"""Content of the memories of an operation with encrypted payloads."""
TTL_SECONDS = 50 * 365 * 86400
"""Lifetime of a memory in seconds: 50 years. The server allows at most 100 years. The lifetime
starts when the server stores the memory, so a device whose clock shows 1970 does not store expired
memories."""
EVENT_LAST = 9_999_999_999
"""Latest event time in Unix seconds (the year 2286): the server refuses a later time."""
MARK_PARTS = 3 * MARK_BYTES // (PART_BYTES // 2) + 1
"""Maximum number of parts of a mark: escaping makes a payload at most three times as long, and a
part that is not the last has more than half of `PART_BYTES`."""
CLAIM_VERSION = 1
"""`cs_v` of a claim note. It does not change with `WIRE_VERSION`, because devices of all versions
read each other's notes."""

_KINDS = {
    1: {kind.value: kind for kind in (Kind.APPEND, Kind.POP, Kind.CLEAR)},
    2: {kind.value: kind for kind in Kind},
}
_REMARKS = {
    Kind.POP: "(removed an item)",
    Kind.CLEAR: "(cleared the session)",
    Kind.MARK: "(mark)",
}
"""Content of the memories of operations without items."""


@dataclass(frozen=True)
class Placeholder:
    """A decoded placeholder: the writer parked this operation, so it may never arrive."""

    dot: Dot


def memories_of(op: Operation, digest: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the store request's entries for an operation of the session with this name, in order.

    The entries of an operation are always identical.
    """
    key = session_key(name)
    for part in split(op, digest, key):
        metadata: dict[str, Any] = {
            "cs_v": op.version,
            "cs_op": part.kind.value,
            "cs_w": part.dot.writer,
            "cs_c": part.dot.counter,
            "cs_s": f"{part.stamp:016x}",
            **_turn_fields(op),
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
        is_first = part.index == 0 and part.part == 0
        if is_first and not op.key_id:
            metadata.update(_session_fields(name))
        content, role = _content(op, part)
        identity = memory_id(key, part.dot, part.index, part.part, op.version)
        yield _memory(identity, content, role, metadata, op.said_ms)


def _session_fields(name: str) -> dict[str, Any]:
    """Return the fields that tell a person whose memory this is. Replicas do not read them."""
    prefix, session_id = split_name(name)
    fields = {"cs_sid": session_id[:1024]} if _is_unicode(session_id) else {}
    return {**fields, "cs_pre": prefix} if prefix and _is_unicode(prefix) else fields


def _turn_fields(op: Operation) -> dict[str, Any]:
    """Return the metadata fields of turn, branch and key, without those that have defaults."""
    fields: dict[str, Any] = {}
    if op.turn is not None:
        fields = {
            "cs_ts": f"{op.turn.stamp:016x}",
            "cs_tw": op.turn.writer,
            "cs_tc": op.turn.counter,
        }
    if op.branch:
        fields["cs_b"] = op.branch
    if op.key_id:
        fields["cs_k"] = op.key_id
    return fields


def placeholder(op: Operation, name: str) -> dict[str, Any]:
    """Return the small memory that replaces an operation that the server refuses."""
    metadata = {
        "cs_v": op.version,
        "cs_op": "void",
        "cs_w": op.dot.writer,
        "cs_c": op.dot.counter,
    }
    identity = placeholder_id(session_key(name), op.dot, op.version)
    return _memory(identity, "(an entry kept on its device)", "op", metadata, op.said_ms)


def claim_tag(dot: Dot, index: int) -> str:
    """Return the tag of every claim note on one item."""
    return f"cs-on-{dot.writer}-{dot.counter}-{index}"


def claim_note(name: str, dot: Dot, index: int, claimer: str, now_ms: int) -> dict[str, Any]:
    """Return the claim note of one claimer on one item."""
    metadata = {
        "cs_v": CLAIM_VERSION,
        "cs_op": "claim",
        "cs_w": dot.writer,
        "cs_c": dot.counter,
        "cs_i": index,
        "cs_by": claimer,
    }
    identity = claim_id(session_key(name), dot, index, claimer)
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
    if op.key_id:
        return ENCRYPTED, "op"
    if op.kind is not Kind.APPEND:
        return _REMARKS[op.kind], "op"
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
    if version not in READABLE_VERSIONS:
        raise Unreadable(f"{identity} is of wire version {version}, which does not exist")
    metadata = memory.get("metadata")
    if not isinstance(metadata, Mapping):
        raise Unreadable(f"{identity} has no metadata")
    fields = MetadataFields(metadata, identity)
    dot = Dot(fields.writer("cs_w"), fields.counter("cs_c"))
    if metadata.get("cs_op") == "void":
        if identity != placeholder_id(key, dot, version):
            raise Unreadable(f"{identity} is not the id that its metadata yields")
        return Placeholder(dot)
    part = _decode_part(fields, dot, version)
    if identity != memory_id(key, dot, part.index, part.part, version):
        raise Unreadable(f"{identity} is not the id that its metadata yields")
    return part


def _decode_part(fields: MetadataFields, dot: Dot, version: int) -> Part:
    kind_name = fields.metadata.get("cs_op")
    kind = _KINDS[version].get(kind_name) if isinstance(kind_name, str) else None
    if kind is None:
        raise fields.invalid("cs_op")
    stamp = fields.stamp("cs_s")
    count = fields.integer("cs_n", 1, COUNT_LIMIT)
    parts = fields.integer("cs_p", 1, COUNT_LIMIT)
    part = Part(
        dot=dot,
        kind=kind,
        stamp=stamp,
        said_ms=fields.integer("cs_t", -(1 << 53), 1 << 53),
        private=fields.metadata.get("cs_h") in (1, "1"),
        digest=fields.text("cs_d", 64),
        seal=fields.text("cs_e", 64),
        count=count,
        index=fields.integer("cs_i", 0, count),
        parts=parts,
        part=fields.integer("cs_j", 0, parts),
        text=fields.text("cs_x", PART_BYTES),
        version=version,
    )
    if version > 1:
        _decode_version_2(part, fields)
    return part


def _decode_version_2(part: Part, fields: MetadataFields) -> None:
    """Read the fields that version 2 adds, and check the limits that version 1 does not have."""
    is_append = part.kind is Kind.APPEND
    part.turn = _decode_turn(part, fields)
    part.branch, part.key_id = fields.optional_id("cs_b"), fields.optional_id("cs_k")
    if part.turn is not None and not is_append:
        raise Unreadable(f"{fields.identity} has a turn, and only an append can have one")
    if part.branch and part.kind is Kind.MARK:
        raise Unreadable(f"{fields.identity} is a mark and has a branch")
    if part.key_id and part.kind in (Kind.POP, Kind.CLEAR):
        raise Unreadable(f"{fields.identity} is encrypted, and only items and marks can be")
    if part.count > 1 and not is_append:
        raise fields.invalid("cs_n")
    if part.parts > MARK_PARTS and part.kind is Kind.MARK:
        raise fields.invalid("cs_p")
    if not part.text.isascii():
        raise fields.invalid("cs_x")


def _decode_turn(part: Part, fields: MetadataFields) -> TurnKey | None:
    """Return the turn of a memory; None if it has none or if the operation is the head."""
    if not any(name in fields.metadata for name in ("cs_ts", "cs_tw", "cs_tc")):
        return None
    turn = TurnKey(fields.stamp("cs_ts"), fields.writer("cs_tw"), fields.counter("cs_tc"))
    try:
        return normalize_turn(turn, part.stamp, part.dot)
    except ValueError as error:
        raise Unreadable(f"{fields.identity}: {error}") from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
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
