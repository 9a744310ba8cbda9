"""How an operation is cut into parts, one memory each, and put together again byte for byte.

Frozen by golden tests: every replica must cut alike, or the parts of one operation sent by two of
them would not fit together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from cached_session.history.ops import GONE, Dot, Kind, Operation

__all__ = ["PART_BYTES", "Part", "assemble", "cut", "is_intact", "part_count", "split"]

PART_BYTES = 24 * 1024
"""UTF-8 bytes of a payload in one memory: a metadata field of modest size on any server."""
MOST_CHECKED = 100_000
"""Batch size up to which a lone part is checked against its seal: a hostile count is not."""


@dataclass(frozen=True)
class Part:
    """One part of one payload of one operation, with what is needed to know the rest by."""

    dot: Dot
    kind: Kind
    stamp: int
    said_ms: int
    private: bool
    digest: str
    seal: str
    """Of the whole payload."""
    count: int
    """Payloads of the operation."""
    index: int
    """The payload that this part belongs to."""
    parts: int
    """Parts of that payload."""
    part: int
    text: str


def cut(payload: str) -> list[str]:
    """The parts of a payload, each at most `PART_BYTES` long in UTF-8; at least one."""
    data = payload.encode()
    if len(data) <= PART_BYTES:
        return [payload]
    parts, start = [], 0
    while start < len(data):
        end = min(start + PART_BYTES, len(data))
        # Never inside a character: step back over its continuation bytes.
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        parts.append(data[start:end].decode())
        start = end
    return parts


def part_count(payload: str) -> int:
    """How many parts `cut` makes."""
    # No character takes more than four bytes.
    return 1 if len(payload) * 4 <= PART_BYTES else len(cut(payload))


def split(op: Operation, digest: str, key: str) -> list[Part]:
    """All parts of an operation, in order; none of payloads that are gone."""
    return [
        Part(
            dot=op.dot,
            kind=op.kind,
            stamp=op.stamp,
            said_ms=op.said_ms,
            private=op.private,
            digest=digest,
            seal=seal,
            count=len(op.payloads),
            index=index,
            parts=len(pieces),
            part=number,
            text=text,
        )
        for index, payload in enumerate(op.payloads)
        if payload != GONE
        for pieces, seal in ((cut(payload), op.seal(key, digest, index)),)
        for number, text in enumerate(pieces)
    ]


def assemble(parts: Iterable[Part], key: str, popped: Collection[int] = ()) -> Operation | None:
    """The operation that these parts of one dot and digest make; None while some are missing.

    Payloads that are known to be ``popped`` need not be there: the server has been asked to forget
    them, and nobody will ever show them.

    Raises:
        ValueError: a payload does not fit its seal: it was cut, rewritten or merged on the way.
    """
    by_place = {(part.index, part.part): part for part in parts}
    first = next(iter(by_place.values()), None)
    if first is None or len({index for index, _ in by_place} | set(popped)) < first.count:
        return None
    payloads, arrived = [], []
    for index in range(first.count):
        head = by_place.get((index, 0))
        pieces = [by_place.get((index, number)) for number in range(head.parts if head else 0)]
        found = [piece.text for piece in pieces if piece is not None]
        if head is not None and len(found) == head.parts:
            payloads.append("".join(found))
            arrived.append(index)
        elif index in popped:
            payloads.append(GONE)
        else:
            return None
    op = Operation(
        first.dot, first.kind, first.stamp, first.said_ms, tuple(payloads), first.private
    )
    # An empty text that came is not `GONE`: it was cut on the way, and its seal tells.
    for index in arrived:
        if op.seal(key, first.digest, index) != by_place[index, 0].seal:
            raise ValueError(f"payload {index} of operation {first.dot} does not fit its seal")
    return op


def is_intact(part: Part, key: str) -> bool:
    """Whether a payload of one part fits its seal; a part of a longer payload cannot be told."""
    if part.parts > 1:
        return True
    payloads = [GONE] * part.count if part.count <= MOST_CHECKED else []
    if part.index >= len(payloads):
        return True
    payloads[part.index] = part.text
    op = Operation(part.dot, part.kind, part.stamp, part.said_ms, tuple(payloads), part.private)
    return op.seal(key, part.digest, part.index) == part.seal
