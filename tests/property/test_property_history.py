from __future__ import annotations

import json
import random
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.clock import LAST_WALL_STAMP, LOGIC_BITS, MAX_STAMP, next_run, stamp_ms
from cached_session.history.frontier import Frontier
from cached_session.history.ops import (
    Dot,
    ItemRef,
    Kind,
    Operation,
    decode_clear,
    decode_pop,
    encode_clear,
    encode_pop,
)
from cached_session.history.order import position
from cached_session.history.ranges import Ranges
from tests.property.histories import histories
from tests.property.reference_model import marks, order, visible

clocks = st.one_of(
    st.integers(-(1 << 53), 1 << 53),
    st.integers(-10, 10),
    st.integers(1_700_000_000_000, 1_700_000_100_000),
    st.just((MAX_STAMP >> LOGIC_BITS) + 5),
)
stamps = st.one_of(st.integers(0, 1000), st.integers(0, MAX_STAMP), st.just(MAX_STAMP - 1))


@pytest.mark.promise(number=4)
@given(now=clocks, seen=stamps, mine=st.booleans(), last=clocks, gap=st.integers(0, 10**6))
def test_a_new_run_has_a_later_stamp_than_all_seen(now, seen, mine, last, gap) -> None:
    """A new run has a larger stamp than any seen, whatever the wall clock shows, within the limits
    of journal and wire. Only the very last stamp has no larger one."""
    run = next_run(
        now_ms=now, highest_seen=seen, current=None, last_was_mine=mine, last_ms=last, gap_ms=gap
    )
    assert not run.continued
    assert 0 < run.stamp <= MAX_STAMP
    assert run.stamp > seen or seen == MAX_STAMP
    if 0 <= now < LAST_WALL_STAMP >> LOGIC_BITS and seen < now << LOGIC_BITS:
        assert stamp_ms(run.stamp) == now


@given(
    now=clocks, current=stamps, ahead=st.integers(0, 1000), last=clocks, gap=st.integers(0, 10**6)
)
def test_a_run_continues_until_remote_operations_or_a_pause(now, current, ahead, last, gap) -> None:
    """A run continues exactly while no other operation was applied and no pause was longer than the
    allowed gap. A clock that jumped back is not a pause."""
    seen = min(current + ahead, MAX_STAMP)

    def run(*, mine: bool):
        return next_run(
            now_ms=now,
            highest_seen=seen,
            current=current,
            last_was_mine=mine,
            last_ms=last,
            gap_ms=gap,
        )

    kept = run(mine=True)
    assert kept.continued == (now - last <= gap)
    assert kept.stamp == current if kept.continued else kept.stamp > seen or seen == MAX_STAMP
    assert not run(mine=False).continued


@given(now=clocks, seen=stamps, current=st.none() | stamps, turn=stamps, mine=st.booleans())
def test_an_operation_never_has_a_lower_stamp_than_its_turn(now, seen, current, turn, mine) -> None:
    """This is true even if the journal has lost the head of the turn, and the clock stands
    still."""
    run = next_run(
        now_ms=now,
        highest_seen=seen,
        current=current,
        last_was_mine=mine,
        last_ms=now,
        gap_ms=1000,
        turn_stamp=turn,
    )
    assert turn <= run.stamp <= MAX_STAMP
    assert run.continued == (mine and current is not None and current >= turn)
    if not run.continued:
        assert run.stamp > max(seen, turn) or run.stamp == MAX_STAMP


dots = st.tuples(st.sampled_from("abc"), st.integers(1, 24))


def members(frontier: Frontier) -> set[tuple[str, int]]:
    return {(w, c) for w in "abcd" for c in range(30) if (w, c) in frontier}


@given(st.lists(dots))
def test_a_frontier_is_the_set_of_its_dots(added) -> None:
    """Adding dots in any order gives the set, its prefixes and its gaps, and equal frontiers are
    equal however they were made."""
    frontier = Frontier()
    for writer, counter in added:
        frontier.add(writer, counter)
    known = set(added)
    assert members(frontier) == known
    assert set(frontier.writers()) == {writer for writer, _ in known}
    for writer in "abcd":
        mine = {counter for w, counter in known if w == writer}
        missing = [counter for counter in range(1, max(mine, default=0)) if counter not in mine]
        first_missing = next(c for c in range(1, 100) if c not in mine)
        assert frontier.contiguous_end(writer) == first_missing - 1
        for most in (0, 1, 3, 100):
            assert frontier.gaps(writer, most) == missing[:most]
    assert frontier == Frontier.of(reversed(added))
    with pytest.raises(TypeError):
        hash(frontier)


ranges = st.tuples(st.integers(1, 30), st.integers(0, 8)).map(lambda p: (p[0], p[0] + p[1]))


@given(st.lists(ranges))
def test_ranges_are_disjoint_and_not_adjacent(added) -> None:
    """Ranges that overlap or touch are merged, and the set of dots stays the same."""
    found = Ranges(added)
    expected = {counter for first, last in added for counter in range(first, last + 1)}
    listed = list(found)
    assert {counter for first, last in listed for counter in range(first, last + 1)} == expected
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(listed))
    assert len(found) == len(listed)
    assert {counter for counter in range(60) if counter in found} == expected
    for counter in expected:
        end = found.end_of(counter)
        assert set(range(counter, end + 1)) <= expected
        assert end + 1 not in expected


@given(st.lists(dots), st.lists(dots), st.lists(dots))
def test_merging_frontiers_is_a_union(one, two, three) -> None:
    """Merging is commutative, associative and idempotent, and does not change its argument."""

    def merged(*parts) -> Frontier:
        whole = Frontier()
        for part in parts:
            other = Frontier.of(part)
            whole.merge(other)
            assert other == Frontier.of(part)
        return whole

    assert members(merged(one, two, three)) == {*one, *two, *three}
    assert merged(one, two, three) == merged(three, one, two, one)
    nested = merged(one)
    nested.merge(merged(two, three))
    assert nested == merged(one, two, three)


@given(st.lists(dots))
def test_an_encoded_frontier_decodes_to_itself(added) -> None:
    """Encoding and decoding, also through JSON and a clear's payload, gives an equal frontier."""
    frontier = Frontier.of(added)
    assert Frontier.decode(json.loads(json.dumps(frontier.encode()))) == frontier
    assert decode_clear(encode_clear(frontier)) == frontier


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "w", "c", "i", "n"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_like)
def test_an_invalid_payload_is_a_value_error(data) -> None:
    """Other JSON is neither a pop nor a clear, and decoding it raises nothing but ValueError."""
    text = json.dumps(data)
    for read, back in ((decode_pop, encode_pop), (decode_clear, encode_clear)):
        try:
            found = read(text)
        except ValueError:
            continue
        assert read(back(found)) == found


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {"a": []},
        {"a": [1]},
        {"a": [[1]]},
        {"a": [[1, 2, 3]]},
        {"a": [[2, 1]]},
        {"a": [[0, 1]]},
        {"a": [[-1, 1]]},
        {"a": [[True, 1]]},
        {"a": [[1.0, 2]]},
        {"a": [[1, 1 << 53]]},
        {"a": {"1": 2}},
        {1: [[1, 1]]},
    ],
)
def test_a_frontier_of_another_shape_is_refused(data) -> None:
    """Only an object of writers with lists of ordered ranges of counters from 1 is a frontier."""
    with pytest.raises(ValueError):  # noqa: PT011
        Frontier.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        [],
        "x",
        {},
        {"w": "a", "c": 0, "i": 0, "n": 1},
        {"w": "a", "c": 1, "i": 1, "n": 1},
        {"w": "a", "c": 1, "i": -1, "n": 1},
        {"w": "a", "c": True, "i": 0, "n": 1},
        {"w": "a", "c": 1.0, "i": 0, "n": 1},
        {"w": 7, "c": 1, "i": 0, "n": 1},
        {"w": "a", "c": 1 << 53, "i": 0, "n": 1},
        {"w": "a", "c": 1, "i": 0, "n": 1 << 31},
    ],
)
def test_an_invalid_pop_is_refused(data) -> None:
    """A pop consists of a writer, a counter from 1 and an index within the batch, each of its
    type."""
    with pytest.raises(ValueError):  # noqa: PT011
        decode_pop(json.dumps(data))


@given(st.text(max_size=8), st.integers(1, (1 << 53) - 1), st.integers(0, 5), st.integers(1, 5))
def test_a_pop_decodes_to_its_item(writer, counter, index, more) -> None:
    """The payload of a pop decodes to the item for which it was made."""
    ref = ItemRef(Dot(writer, counter), index, index + more)
    assert decode_pop(encode_pop(ref)) == ref


@pytest.mark.promise(number=4)
@given(histories(), st.integers(0, 1 << 20))
def test_visible_items_depend_on_neither_order_nor_repetition(ops, seed) -> None:
    """The reference model shows the same for any order and any repetition of operations."""
    again = [*ops.values(), *ops.values()]
    random.Random(seed).shuffle(again)
    assert visible(again) == visible(ops.values())
    assert marks(again) == marks(ops.values())


@pytest.mark.promise(number=5)
@given(histories())
def test_visible_items_are_whole_batches_without_removed_items(ops) -> None:
    """An independent computation in ten lines agrees with the reference model: sort, then
    filter."""
    shown = []
    appends = [op for op in ops.values() if op.kind is Kind.APPEND]
    for *_, dot in sorted((op.turn or (op.stamp, *op.dot), op.stamp, op.dot) for op in appends):
        for index, text in enumerate(ops[dot].payloads):
            pop = json.loads(encode_pop(ItemRef(dot, index, len(ops[dot].payloads))))
            gone = any(
                json.loads(op.payloads[0]) == pop
                if op.kind is Kind.POP
                else any(
                    first <= dot.counter <= last
                    for first, last in json.loads(op.payloads[0]).get(dot.writer, [])
                )
                for op in ops.values()
                if op.kind in (Kind.POP, Kind.CLEAR)
            )
            if not gone:
                shown.append((dot, index, text))
    assert visible(ops.values()) == shown


@pytest.mark.promise(number=5)
@given(histories())
def test_turns_are_contiguous_and_begin_with_their_head(ops) -> None:
    """No item of another turn is between two items of a turn, and the head comes first."""
    appends = sorted((op for op in ops.values() if op.kind is Kind.APPEND), key=order)
    turns = [key for key, _ in groupby(appends, key=lambda op: op.turn_key)]
    assert len(turns) == len(set(turns))
    for key, parts in groupby(appends, key=lambda op: op.turn_key):
        first, *rest = parts
        assert first.turn is None
        assert first.turn_key == key
        assert all(op.turn == key for op in rest)
    assert [op.dot for op in appends] == [op.dot for op in sorted(appends, key=position)]


@given(histories())
def test_the_last_mark_wins_and_no_clear_covers_it(ops) -> None:
    """An independent computation agrees with the reference model: the largest (stamp, dot) of each
    type and key."""
    written = [op for op in ops.values() if op.kind is Kind.MARK]
    found = marks(ops.values())
    values = [(json.loads(op.payloads[0]), op) for op in written]
    assert found.keys() == {(value["type"], value["key"]) for value, _ in values}
    for name, (dot, value) in found.items():
        rivals = [op for data, op in values if (data["type"], data["key"]) == name]
        assert dot == max(rivals, key=lambda op: (op.stamp, op.dot)).dot
        assert value == json.loads(ops[dot].payloads[0])["value"]
    clear = Operation(
        Dot("clearclear", 1),
        Kind.CLEAR,
        1,
        1,
        (encode_clear(Frontier.of(op.dot for op in written)),),
    )
    assert marks([*ops.values(), clear]) == found
