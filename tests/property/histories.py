"""Histories of several writers as data, with their meaning computed by brute force: the reference
for the journal's bookkeeping."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from cached_session.history.clock import next_run
from cached_session.history.frontier import Frontier
from cached_session.history.ids import session_key
from cached_session.history.ops import (
    Dot,
    ItemRef,
    Kind,
    Mark,
    Operation,
    TurnKey,
    decode_clear,
    decode_pop,
    encode_clear,
    encode_mark,
    encode_pop,
)
from cached_session.history.parts import Part, split
from tests.property.reference_model import order

SESSION = "talk"
KEY = session_key(SESSION)
GAP_MS = 600_000
SMALL_PARTS = 56
"""Bytes of a part in these tests, so that most operations take several."""
NOW = 1_700_000_000_000

CLOCKS = {
    "true": lambda tick: NOW + 1_000 * tick,
    "frozen": lambda tick: NOW,
    "backward": lambda tick: NOW - 3_600_000 * tick,
    "skewed": lambda tick: NOW + 7 * 86_400_000 + 700_000 * tick,
    "1970": lambda tick: tick,
    "before 1970": lambda tick: -5_000 - tick,
    "far future": lambda tick: (1 << 52) + 1_000 * tick,
}


def names(count: int) -> list[str]:
    """Return writer ids like those of the library. Their order is not that of their clocks."""
    return [f"{letter * 4}writer" for letter in "mazbyc"[:count]]


def payload(dot: Dot, index: int, size: int) -> str:
    """Return a payload with its writer. Some need the exact codec, some take several parts."""
    item = {"is": f"{dot.writer}.{dot.counter}.{index}", "text": "é😀x" * size}
    if size % 3 == 2:
        item["big"] = 1 << 70  # type: ignore[assignment]
    return json.dumps(item, separators=(",", ":"), ensure_ascii=size % 3 == 2)


def completely_popped(ops: Iterable[Operation]) -> set[Dot]:
    """Return the operations of which every item is popped."""
    named: dict[Dot, set[int]] = {}
    sizes: dict[Dot, int] = {}
    for op in ops:
        if op.kind is Kind.POP:
            ref = decode_pop(op.payloads[0])
            named.setdefault(ref.dot, set()).add(ref.index)
            sizes[ref.dot] = ref.count
    return {dot for dot, indexes in named.items() if len(indexes) == sizes[dot]}


def frontier_of(ops: Iterable[Operation]) -> set[Dot]:
    """Return the dots that a replica with these operations counts as applied, one by one: its
    operations, and from the start of each writer also those that need not be sent."""
    ops = list(ops)
    here = {op.dot for op in ops}
    gone = completely_popped(ops)
    covers = [decode_clear(op.payloads[0]) for op in ops if op.kind is Kind.CLEAR]
    writers = {dot.writer for dot in here | gone} | {w for c in covers for w in c.writers()}
    found = set(here)
    for writer in writers:
        dot = Dot(writer, 1)
        while dot in here or dot in gone or any(dot in cover for cover in covers):
            found.add(dot)
            dot = Dot(writer, dot.counter + 1)
    return found


def complete(arrived: Iterable[Part], own: Iterable[Operation], ops: dict[Dot, Operation]) -> list:
    """Return the complete operations: those with all parts of every payload that no applied pop
    covers."""
    places: dict[Dot, set[tuple[int, int]]] = {}
    needed: dict[Dot, dict[int, set[tuple[int, int]]]] = {}
    for part in arrived:
        places.setdefault(part.dot, set()).add((part.index, part.part))
    for dot in places:
        for part in split(ops[dot], "", KEY):
            needed.setdefault(dot, {}).setdefault(part.index, set()).add((part.index, part.part))
    applied = {op.dot for op in own}
    while True:
        popped = {
            (ref.dot, ref.index)
            for dot in applied
            if ops[dot].kind is Kind.POP
            for ref in [decode_pop(ops[dot].payloads[0])]
        }
        more = {
            dot
            for dot, have in places.items()
            if dot not in applied
            and all((dot, i) in popped or all_of <= have for i, all_of in needed[dot].items())
        }
        if not more:
            return [ops[dot] for dot in applied]
        applied |= more


@dataclass
class Writer:
    """A replica without a journal: one writer and the set of operations that it has applied."""

    name: str
    clock: str
    version: int = 2
    """The wire version of its operations. A writer of version 1 has no turns and no marks, and does
    not apply operations of version 2."""
    known: dict[Dot, Operation] = field(default_factory=dict)
    counter: int = 0
    stamp: int | None = None
    last_ms: int = 0
    last_was_mine: bool = False
    ticks: int = 0

    def write(
        self, kind: Kind, payloads: tuple[str, ...], turn: TurnKey | None = None
    ) -> Operation:
        self.ticks += 1
        now_ms = CLOCKS[self.clock](self.ticks)
        run = next_run(
            now_ms=now_ms,
            highest_seen=max((op.stamp for op in self.known.values()), default=0),
            current=self.stamp,
            last_was_mine=self.last_was_mine,
            last_ms=self.last_ms,
            gap_ms=GAP_MS,
            turn_stamp=turn.stamp if turn else 0,
        )
        self.stamp, self.last_ms, self.last_was_mine = run.stamp, now_ms, True
        self.counter += 1
        dot = Dot(self.name, self.counter)
        op = Operation(dot, kind, run.stamp, now_ms, payloads, turn=turn, version=self.version)
        for seen in self.known.values():
            assert (seen.stamp, seen.dot) < (op.stamp, op.dot)
            # A late part of a turn sorts before turns that began after the turn did.
            if turn is None or seen.turn_key <= turn:
                assert order(seen) < order(op)
        self.known[op.dot] = op
        return op

    def turn(self, choice: int) -> TurnKey | None:
        """Choose the turn of the next append: a new turn, or any turn that this replica has
        seen."""
        if self.version == 1:
            return None
        heads = [op.turn_key for op in self.known.values() if op.kind is Kind.APPEND]
        return heads[choice % len(heads)] if heads and choice % 3 else None

    def learn(self, ops: Iterable[Operation]) -> None:
        for op in ops:
            if op.dot not in self.known and op.version <= self.version:
                self.known[op.dot] = op
                self.last_was_mine = False


@st.composite
def histories(draw: st.DrawFn, most: int = 14) -> dict[Dot, Operation]:
    """Draw operations of one to four writers, who receive each other's operations completely or in
    part, and continue each other's turns. Some write operations of version 1."""
    clocks = draw(st.lists(st.sampled_from(sorted(CLOCKS)), min_size=1, max_size=4))
    versions = draw(st.lists(st.sampled_from([2, 2, 1]), min_size=4, max_size=4))
    writers = [Writer(*one) for one in zip(names(4), clocks, versions, strict=False)]
    steps = draw(
        st.lists(
            st.tuples(
                st.integers(0, len(writers) - 1),
                st.sampled_from(["append"] * 4 + ["pop"] * 3 + ["clear", "learn", "learn", "mark"]),
                st.integers(0, 1 << 12),
                st.integers(0, 5),
            ),
            min_size=1,
            max_size=most,
        )
    )
    ops: dict[Dot, Operation] = {}
    for who, what, choice, size in steps:
        writer = writers[who]
        if what == "learn":
            writer.learn(op for bit, op in enumerate(ops.values()) if choice >> (bit % 12) & 1)
            continue
        if what == "append":
            dot = Dot(writer.name, writer.counter + 1)
            texts = tuple(payload(dot, i, (size + i) % 6) for i in range(1 + choice % 3))
            op = writer.write(Kind.APPEND, texts, writer.turn(choice // 4))
        elif what == "mark":
            if writer.version == 1:
                continue
            mark = Mark(("title", "usage")[choice % 2], str(size % 2), choice)
            op = writer.write(Kind.MARK, (encode_mark(mark),))
        elif what == "pop":
            items = [
                ItemRef(op.dot, index, len(op.payloads))
                for op in ops.values()
                if op.kind is Kind.APPEND
                for index in range(len(op.payloads))
            ]
            # A pop may also cover items that no replica has shown.
            items += [ItemRef(Dot("ghostwriter", 1 + size // 2), size % 2, 2)]
            op = writer.write(Kind.POP, (encode_pop(items[choice % len(items)]),))
        else:
            marked = {dot for dot, op in writer.known.items() if op.kind is Kind.MARK}
            covered = Frontier.of(frontier_of(writer.known.values()) - marked)
            op = writer.write(Kind.CLEAR, (encode_clear(covered),))
        ops[op.dot] = op
    return ops


@dataclass(frozen=True)
class Delivery:
    """How a server lists a history: pages of parts, in any order, repeated, some never."""

    seed: int
    page: int
    lost: float

    def pages(self, ops: dict[Dot, Operation]) -> list[list[Part]]:
        chance = random.Random(self.seed)
        popped = {
            (ref.dot, ref.index)
            for op in ops.values()
            if op.kind is Kind.POP
            for ref in [decode_pop(op.payloads[0])]
        }
        parts = [
            part
            for op in ops.values()
            for part in split(op, op.digest(KEY), KEY)
            if chance.random() >= (0.5 if (part.dot, part.index) in popped else self.lost)
        ]
        parts += chance.sample(parts, len(parts) // 4)
        chance.shuffle(parts)
        return [parts[start : start + self.page] for start in range(0, len(parts), self.page)]


def deliveries(lost: float = 0.1) -> st.SearchStrategy[Delivery]:
    """Draw a delivery."""
    return st.builds(
        Delivery,
        seed=st.integers(0, 1 << 30),
        page=st.sampled_from([1, 2, 3, 5, 8, 1000]),
        lost=st.sampled_from([0.0, lost]),
    )
