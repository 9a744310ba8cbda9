"""Parts: splitting an operation into pieces that each fit into one memory, and assembling them.

Golden tests freeze the split. All replicas must split an operation identically, because two
replicas may each send some of its parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cached_session.history.ops import (
    GONE,
    Dot,
    Kind,
    Operation,
    TurnKey,
    encode_head,
    escape_payload,
    seal,
    unescape_payload,
)

__all__ = ["PART_BYTES", "Part", "assemble", "cut", "is_intact", "part_count", "split"]

PART_BYTES = 12 * 1024
"""Maximum number of ASCII characters of a payload in one memory. JSON encoding at most doubles the
size, so a memory's metadata stays below 32 KiB, a small size for a server."""


@dataclass(slots=True)
class Part:
    """One part of one payload, with the fields that identify the operation and its other parts.

    Treat a part as immutable. The class is not frozen because a part is created for each memory
    that is sent or listed, and creating a frozen dataclass takes three times as long.
    """

    dot: Dot
    kind: Kind
    stamp: int
    said_ms: int
    private: bool
    digest: str
    seal: str
    """Seal of the whole payload."""
    count: int
    """Number of payloads of the operation."""
    index: int
    """Index of the payload that this part belongs to."""
    parts: int
    """Number of parts of the payload with this index."""
    part: int
    """Index of this part within the payload."""
    text: str
    turn: TurnKey | None = None
    branch: str = ""
    key_id: str = ""
    version: int = 2


def cut(text: str) -> list[str]:
    """Split an ASCII text into one or more parts of at most `PART_BYTES` characters."""
    parts, start = [], 0
    while True:
        end = start + PART_BYTES
        # Do not cut next to a space: a server may trim the text that it stores.
        while start + PART_BYTES // 2 < end < len(text) and (
            text[end].isspace() or text[end - 1].isspace()
        ):
            end -= 1
        parts.append(text[start:end])
        if end >= len(text):
            return parts
        start = end


def part_count(payload: str) -> int:
    """Return the number of parts of a payload."""
    # Escaped, a character takes at most twelve ASCII characters: two escapes of six.
    return 1 if len(payload) * 12 <= PART_BYTES else len(cut(escape_payload(payload)))


def split(op: Operation, digest: str, key: str) -> list[Part]:
    """Return all parts of an operation in order. A payload that is `GONE` has no parts."""
    head = op.head(key)
    return [
        Part(
            dot=op.dot,
            kind=op.kind,
            stamp=op.stamp,
            said_ms=op.said_ms,
            private=op.private,
            digest=digest,
            seal=sealed,
            count=len(op.payloads),
            index=index,
            parts=len(pieces),
            part=number,
            text=piece,
            turn=op.turn,
            branch=op.branch,
            key_id=op.key_id,
            version=op.version,
        )
        for index, payload in enumerate(op.payloads)
        if payload != GONE
        for text in (escape_payload(payload),)
        for pieces, sealed in ((cut(text), seal(head, digest, index, text)),)
        for number, piece in enumerate(pieces)
    ]


def assemble(parts: Iterable[Part], key: str, popped: Collection[int] = ()) -> Operation | None:
    """Build an operation from its parts, which share one dot and digest.

    Return None if parts are missing. The payloads with an index in ``popped`` may be missing,
    because their deletion from the server was requested and no replica shows them.

    Raises:
        ValueError: a payload does not match its seal: the payload was truncated, changed or merged.
    """
    by_position = {(part.index, part.part): part for part in parts}
    first = next(iter(by_position.values()), None)
    if first is None or len({index for index, _ in by_position} | set(popped)) < first.count:
        return None
    head = _head(first, key)
    payloads = []
    for index in range(first.count):
        text = _join(by_position, index)
        if text is None and index not in popped:
            return None
        if text is None or seal(head, first.digest, index, text) != by_position[index, 0].seal:
            if index not in popped:
                raise ValueError(
                    f"payload {index} of operation {first.dot} does not match its seal"
                )
            text = GONE
        payloads.append(unescape_payload(text))
    return Operation(
        first.dot,
        first.kind,
        first.stamp,
        first.said_ms,
        tuple(payloads),
        first.private,
        first.turn,
        first.branch,
        first.key_id,
        first.version,
    )


def is_intact(part: Part, key: str) -> bool:
    """Return False if a payload with a single part does not match its seal.

    A part of a longer payload cannot be checked alone and counts as intact.
    """
    return part.parts > 1 or part.seal == seal(_head(part, key), part.digest, part.index, part.text)


def _head(part: Part, key: str) -> bytes:
    return encode_head(
        key,
        part.dot,
        part.kind,
        part.stamp,
        part.private,
        part.count,
        turn=part.turn,
        branch=part.branch,
        key_id=part.key_id,
        version=part.version,
    )


def _join(by_position: Mapping[tuple[int, int], Part], index: int) -> str | None:
    """Return the whole text of a payload; None if one of its parts is missing."""
    first = by_position.get((index, 0))
    if first is not None and first.parts == 1:
        return first.text
    if first is None or any((index, number) not in by_position for number in range(1, first.parts)):
        return None
    return "".join(by_position[index, number].text for number in range(first.parts))
