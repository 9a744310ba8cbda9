from __future__ import annotations

import json
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.ops import GONE, Dot, Kind, Operation, escape_payload, unescape_payload
from cached_session.history.parts import (
    PART_BYTES,
    Part,
    assemble,
    cut,
    is_intact,
    part_count,
    split,
)

KEY = "k" * 32
BIG = '"' + "é😀x" * 10_000 + '"'


def operation(*payloads: str, kind: Kind = Kind.APPEND) -> Operation:
    return Operation(Dot("writerwriter", 3), kind, 1 << 40, 5, payloads)


def parts_of(op: Operation) -> list[Part]:
    return split(op, op.digest(KEY), KEY)


@given(
    st.integers(0, 3).flatmap(
        lambda pad: st.lists(st.sampled_from(["x", "é", "€", "😀"]), max_size=4).map(
            lambda chars: "a" * pad + "".join(chars) * 9_000
        )
    )
)
def test_a_payload_is_cut_between_characters_and_joins_again(payload: str) -> None:
    """Whatever characters fall on the edges, parts are ASCII of at most the limit, none begins or
    ends with a space beside which it was cut, and they join byte for byte."""
    text = escape_payload(payload)
    pieces = cut(text)
    assert "".join(pieces) == text
    assert text.isascii()
    assert all(len(piece) <= PART_BYTES for piece in pieces)
    assert all(len(piece) >= PART_BYTES // 2 for piece in pieces[:-1])
    assert all(pieces) or pieces == [""]
    assert part_count(payload) == len(pieces)


def test_no_part_is_cut_beside_a_space() -> None:
    """A server that trims what it stores changes no part of a text."""
    pieces = cut('"' + "word and word " * 3000 + '"')
    assert len(pieces) > 3
    assert all(piece == piece.strip() for piece in pieces)


@pytest.mark.parametrize(
    "value", ["plain", "\u00e4\u2028\ufeff", "e\u0301\U0001f600", '\\ " \x7f \x01']
)
def test_a_payload_is_ascii_on_the_wire_and_itself_at_home(value: str) -> None:
    """Nothing on the way can change what is only letters, digits and backslashes."""
    payload = orjson.dumps({"content": value}).decode()
    assert escape_payload(payload).isascii()
    assert json.loads(escape_payload(payload)) == {"content": value}
    assert unescape_payload(escape_payload(payload)) == payload


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_edge_of_a_part_is_exact(over: int) -> None:
    """A payload of exactly the limit is one part; one byte more makes two."""
    payload = "a" * (PART_BYTES + over)
    assert part_count(payload) == len(cut(payload)) == (2 if over > 0 else 1)


def test_parts_come_together_in_any_order() -> None:
    """All parts of an operation, shuffled and repeated, give it back; any one less gives none."""
    op = operation('"one"', BIG, "3")
    parts = parts_of(op)
    assert len(parts) == 2 + part_count(BIG)
    assert assemble([*reversed(parts), *parts], KEY) == op
    for missing in parts:
        assert assemble([part for part in parts if part != missing], KEY) is None
    assert assemble([], KEY) is None
    assert assemble([], KEY, popped={0, 1, 2}) is None


def test_a_popped_payload_need_not_be_there() -> None:
    """What is popped is not waited for: its place is marked as gone, and the rest is whole."""
    op = operation('"one"', BIG, "3")
    parts = [part for part in parts_of(op) if part.index != 1]
    assert assemble(parts, KEY) is None
    assert assemble(parts, KEY, popped={0}) is None
    found = assemble(parts, KEY, popped={1})
    assert found == operation('"one"', GONE, "3")
    assert split(found, op.digest(KEY), KEY) == parts


CHANGES = {
    "one character": {"text": '"onE"'},
    "one character less": {"text": '"one'},
    "all of it cut away": {"text": ""},
    "an earlier stamp": {"stamp": (1 << 40) - 1},
    "another writer": {"dot": Dot("writerwrites", 3)},
    "another counter": {"dot": Dot("writerwriter", 4)},
    "fewer payloads": {"count": 1},
    "another kind": {"kind": Kind.CLEAR},
    "privacy": {"private": True},
    "another digest": {"digest": "0" * 32},
    "another seal": {"seal": "0" * 16},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_part_does_not_fit_its_seal(what: str) -> None:
    """Whatever other replicas act on, when it is altered on the way it is noticed, in one part
    and in all of them."""
    parts = parts_of(operation('"one"', "2"))
    changed = replace(parts[0], **CHANGES[what])
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble([changed, *parts[1:]], KEY)
    assert is_intact(parts[0], KEY)
    assert not is_intact(changed, KEY)
    if what not in ("one character", "one character less", "all of it cut away"):
        with pytest.raises(ValueError, match="does not match its seal"):
            assemble([replace(part, **CHANGES[what]) for part in parts], KEY)


def test_more_payloads_than_were_written_are_never_whole() -> None:
    """A count that was raised leaves the operation incomplete, and a lone part tells."""
    parts = [replace(part, count=3) for part in parts_of(operation('"one"', "2"))]
    assert assemble(parts, KEY) is None
    assert not is_intact(parts[0], KEY)


def test_another_session_s_part_does_not_fit() -> None:
    """A seal holds in one session only: a memory that was moved is noticed."""
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble(parts_of(operation('"one"')), "other" + KEY)


def test_pieces_that_changed_places_are_noticed() -> None:
    """The parts of a long payload swapped with each other do not fit its seal."""
    first, second, *rest = parts_of(operation(BIG))
    swapped = [replace(first, text=second.text), replace(second, text=first.text), *rest]
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble(swapped, KEY)


def test_a_hostile_count_costs_nothing() -> None:
    """A count of two thousand million neither waits for memory nor for time."""
    part = replace(parts_of(operation("1"))[0], count=(1 << 31) - 1)
    assert assemble([part], KEY) is None
    assert not is_intact(part, KEY)


def test_an_operation_s_digest_names_all_of_its_content() -> None:
    """Any change of payloads, their number or order, kind, stamp, dot or session is another
    digest; the writer's wall clock is only for people."""
    op = operation("1", "2")
    others = [
        operation("1", "3"),
        operation("2", "1"),
        operation("12"),
        operation("1", "2", "3"),
        replace(op, kind=Kind.POP),
        replace(op, stamp=op.stamp + 1),
        replace(op, dot=Dot("writerwriter", 33)),
        replace(op, private=True),
    ]
    digests = [other.digest(KEY) for other in [op, *others]] + [op.digest("x" + KEY)]
    assert len(set(digests)) == len(digests)
    assert replace(op, said_ms=7).digest(KEY) == op.digest(KEY)
