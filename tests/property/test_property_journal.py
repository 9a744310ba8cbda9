from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.ops import (
    Dot,
    Kind,
    Mark,
    Operation,
    decode_clear,
    decode_mark,
    decode_pop,
)
from cached_session.history.parts import Part, split
from cached_session.journal.tables import item_rows, writes
from tests.hypothesis_profiles import examples
from tests.journal_rows import ITEMS
from tests.property.histories import (
    CLOCKS,
    GAP_MS,
    KEY,
    SESSION,
    complete,
    deliveries,
    histories,
    names,
    payload,
)
from tests.property.reference_model import visible
from tests.property.replicas import Replica
from tests.property.turn_choices import APPENDS, assert_is_last_of_turn, choose_turn

History = dict[Dot, Operation]


@pytest.mark.promise(number=4)
@examples(100)
@given(histories(), deliveries())
def test_a_journal_agrees_with_the_reference_after_every_page(ops: History, delivery) -> None:
    """Items, ranks, counters and frontier are those of exactly the complete operations, for any
    order, partition and repetition of the parts."""
    with closing(Replica()) as replica:
        arrived = []
        for page in delivery.pages(ops):
            replica.apply(page)
            arrived += page
            replica.check(complete(arrived, [], ops))


@pytest.mark.promise(number=4)
@given(histories(), deliveries(lost=0), deliveries(lost=0))
def test_the_order_of_arrival_changes_nothing(ops: History, one, other) -> None:
    """Two journals that got the same operations in different orders are equal row for row."""
    states = []
    for delivery in (one, other):
        with closing(Replica()) as replica:
            arrived = [part for page in delivery.pages(ops) for part in page]
            for page in delivery.pages(ops):
                replica.apply(page)
            # A popped item may be missing in one of the two deliveries. The second journal gets the
            # rest.
            for op in ops.values():
                replica.apply(_parts(op))
            assert {part.dot for part in arrived} <= set(ops)
            states.append(replica.state())
            replica.check(ops.values())
            assert replica.rows("SELECT * FROM parts") == []
    assert states[0] == states[1]


@pytest.mark.promise(number=3)
@given(histories(), deliveries(lost=0))
def test_a_repeated_operation_is_applied_once(ops: History, delivery) -> None:
    """A second delivery of a whole history changes nothing and reports nothing new."""
    with closing(Replica()) as replica:
        for op in ops.values():
            replica.apply(_parts(op))
        before = replica.state()
        for page in delivery.pages(ops):
            result = replica.apply(page)
            assert result.is_known
            assert (result.conflicts, result.damaged) == (0, 0)
        assert replica.state() == before


@pytest.mark.promise(number=10)
@given(histories(), st.integers(0, 30))
def test_a_tail_is_the_end_of_the_history(ops: History, limit: int) -> None:
    """The latest n rows, the latest n entries and their ranks agree with the whole history."""
    with closing(Replica()) as replica:
        for op in ops.values():
            replica.apply(_parts(op))
        expected = visible(ops.values())[-limit:] if limit else []
        (session,) = replica.row("SELECT id FROM sessions") or (0,)
        rows = replica.journal.read_blocking(lambda c: item_rows.tail(c, session, limit, 1 << 20))
        assert [text.decode() for text, _ in rows] == [text for _, _, text in expected]
        whole = replica.entries()
        assert replica.entries(limit) == (whole[-limit:] if limit else [])


@given(histories(), deliveries(lost=0), st.data())
def test_damaged_parts_are_never_shown_and_undamaged_ones_replace_them(
    ops: History, delivery, data
) -> None:
    """Parts that were cut, rewritten or merged show nothing that was never written, and their items
    are shown once undamaged parts come."""
    parts = [part for page in delivery.pages(ops) for part in page]
    hurt = data.draw(
        st.lists(st.tuples(st.integers(0, 200), st.sampled_from(sorted(DAMAGE))), max_size=4)
    )
    for place, how in hurt if parts else ():
        parts[place % len(parts)] = DAMAGE[how](parts[place % len(parts)])
    written = {(op.dot, i, text) for op in ops.values() for i, text in enumerate(op.payloads)}
    with closing(Replica()) as replica:
        for start in range(0, len(parts), delivery.page):
            replica.apply(parts[start : start + delivery.page])
            shown = replica.rows(f"SELECT writer, counter, idx, payload FROM {ITEMS}")
            assert {(Dot(*row[:2]), *row[2:]) for row in shown} <= written
        for op in ops.values():
            replica.apply(_parts(op))
        # An operation that waited for its missing parts has been discarded.
        for op in ops.values():
            replica.apply(_parts(op))
        replica.check(ops.values())


DAMAGE = {
    "cut": lambda part: replace(part, text=part.text[:-1]),
    "emptied": lambda part: replace(part, text=""),
    "rewritten": lambda part: replace(part, text=part.text.swapcase()),
    "another stamp": lambda part: replace(part, stamp=part.stamp + 1),
    "another kind": lambda part: replace(
        part, kind=Kind.APPEND if part.kind is not Kind.APPEND else Kind.CLEAR
    ),
    "another count": lambda part: replace(part, count=part.count + 1),
    "fewer parts": lambda part: replace(part, parts=1, part=0),
    "another seal": lambda part: replace(part, seal="0" * 16),
    "made private": lambda part: replace(part, private=not part.private),
}

Step = st.tuples(
    st.sampled_from(
        "append append join join call answer answer mark pop pop clear page page".split()
    ),
    st.integers(0, 2),
    st.integers(0, 5),
    st.sampled_from(sorted(CLOCKS)),
)


@examples(100)
@given(histories(most=10), deliveries(), st.lists(Step, max_size=16))
def test_local_writes_and_pulled_operations_mix_in_any_order(ops: History, delivery, steps) -> None:
    """Appends, pops, clears and marks by several openings of a journal, between pages of other
    devices, agree with the reference. Each sorts after everything that was applied before it, and
    an append that joins a turn is the last of the turn."""
    pages = delivery.pages(ops)
    authors = [f"local{name}" for name in names(3)]
    known: History = dict(ops)
    own: list[Operation] = []
    arrived = []
    with closing(Replica()) as replica:
        for tick, (what, who, size, clock) in enumerate(steps):
            applied = complete(arrived, own, known)
            if what == "page":
                page = pages.pop() if pages else []
                replica.apply(page)
                arrived += page
            else:
                author = writes.Author(authors[who], CLOCKS[clock](tick), GAP_MS)
                op = _write(replica, author, what, size, applied)
                if op is not None:
                    assert_is_last_of_turn(op, applied)
                    own.append(op)
                    known[op.dot] = op
            replica.check(complete(arrived, own, known))


def _write(
    replica: Replica, author: writes.Author, what: str, size: int, applied: list[Operation]
) -> Operation | None:
    """Write, and check the recorded operation against the call."""
    before = replica.row("SELECT count(*) FROM ops")[0]
    shown = visible(applied)
    mine = sum(op.dot.writer == author.writer for op in applied)
    turn = None
    if what in APPENDS:
        texts = [payload(Dot(author.writer, mine + 1), i, size) for i in range(1 + size % 3)]
        choice, turn, items = choose_turn(what, size, applied)
        texts += items
        replica.append(author, texts, choice=choice)
    elif what == "mark":
        replica.mark(author, Mark("title", str(size % 2), size))
    elif what == "pop":
        assert replica.pop(author) == (shown[-1][2] if shown else None)
    else:
        replica.journal.write_blocking(lambda conn: writes.clear(conn, author, SESSION))
    if what in ("pop", "clear") and not shown:
        assert replica.row("SELECT count(*) FROM ops")[0] == before
        return None
    op = replica.newest().op
    assert op.dot == (author.writer, mine + 1)
    assert op.said_ms == author.now_ms
    assert op.kind.value == ("append" if what in APPENDS else what)
    if op.kind is Kind.APPEND:
        assert list(op.payloads) == texts
        assert op.turn == turn
    elif op.kind is Kind.MARK:
        assert decode_mark(op.payloads[0]) == Mark("title", str(size % 2), size)
    elif op.kind is Kind.POP:
        ref = decode_pop(op.payloads[0])
        assert (ref.dot, ref.index) == shown[-1][:2]
    else:
        # An earlier clear that every replica knows need not be repeated.
        covers = [decode_clear(c.payloads[0]) for c in [*applied, op] if c.kind is Kind.CLEAR]
        appends = [seen for seen in applied if seen.kind is Kind.APPEND]
        assert all(any(seen.dot in cover for cover in covers) for seen in appends)
        # The items that a clear covers are not looked for; the clear is, until it is there.
        assert not any(seen.dot in covers[-1] for seen in applied if seen.kind in LASTING)
        assert not any(op.dot in cover for cover in covers)
    return op


LASTING = (Kind.CLEAR, Kind.MARK)
"""Kinds of operations that no clear names."""


def _parts(op: Operation) -> list[Part]:
    return split(op, op.digest(KEY), KEY)
