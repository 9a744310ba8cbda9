"""How an operation is cut into parts, one memory each, and put together again byte for byte.

Frozen by golden tests: every replica must cut alike, or the parts of one operation sent by two of
them would not fit together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cached_session.history.ops import (
    GONE,
    Dot,
    Kind,
    Operation,
    head_of,
    own_text,
    seal,
    wire_text,
)

__all__ = ["PART_BYTES", "Part", "assemble", "cut", "is_intact", "part_count", "split"]

PART_BYTES = 12 * 1024
"""ASCII characters of a payload in one memory. Written as JSON they at most double, which leaves
the whole of a memory's metadata below 32 KiB: a modest size on any server."""


@dataclass(slots=True)
class Part:
    """One part of one payload of one operation, with what is needed to know the rest by.

    Nobody changes one. It is not frozen, because one is made for each memory that is sent or
    listed, and a frozen one takes three times as long to make.
    """

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


def cut(text: str) -> list[str]:
    """The parts of an ASCII text, each at most `PART_BYTES` long; at least one."""
    parts, start = [], 0
    while True:
        end = start + PART_BYTES
        # Not beside a space: a server may trim what it stores.
        while start + PART_BYTES // 2 < end < len(text) and (
            text[end].isspace() or text[end - 1].isspace()
        ):
            end -= 1
        parts.append(text[start:end])
        if end >= len(text):
            return parts
        start = end


def part_count(payload: str) -> int:
    """How many parts a payload takes."""
    # No character takes more than twelve in ASCII: two escapes of six.
    return 1 if len(payload) * 12 <= PART_BYTES else len(cut(wire_text(payload)))


def split(op: Operation, digest: str, key: str) -> list[Part]:
    """All parts of an operation, in order; none of payloads that are gone."""
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
        )
        for index, payload in enumerate(op.payloads)
        if payload != GONE
        for text in (wire_text(payload),)
        for pieces, sealed in ((cut(text), seal(head, digest, index, text)),)
        for number, piece in enumerate(pieces)
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
    head = _head(first, key)
    payloads = []
    for index in range(first.count):
        text = _text(by_place, index)
        if text is None and index not in popped:
            return None
        if text is None or seal(head, first.digest, index, text) != by_place[index, 0].seal:
            if index not in popped:
                raise ValueError(f"payload {index} of operation {first.dot} does not fit its seal")
            text = GONE
        payloads.append(own_text(text))
    return Operation(
        first.dot, first.kind, first.stamp, first.said_ms, tuple(payloads), first.private
    )


def is_intact(part: Part, key: str) -> bool:
    """Whether a payload of one part fits its seal; a part of a longer payload cannot be told."""
    return part.parts > 1 or part.seal == seal(_head(part, key), part.digest, part.index, part.text)


def _head(part: Part, key: str) -> bytes:
    return head_of(key, part.dot, part.kind, part.stamp, part.private, part.count)


def _text(by_place: Mapping[tuple[int, int], Part], index: int) -> str | None:
    """The whole text of a payload; None while parts of it are missing."""
    head = by_place.get((index, 0))
    if head is not None and head.parts == 1:
        return head.text
    if head is None or any((index, number) not in by_place for number in range(1, head.parts)):
        return None
    return "".join(by_place[index, number].text for number in range(head.parts))
