from __future__ import annotations

import json
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.ops import (
    GONE,
    Dot,
    Kind,
    Operation,
    TurnKey,
    escape_payload,
    unescape_payload,
)
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
    """Parts are ASCII, at most as long as the limit, have no space at a cut, and join to the same
    bytes."""
    text = escape_payload(payload)
    pieces = cut(text)
    assert "".join(pieces) == text
    assert text.isascii()
    assert all(len(piece) <= PART_BYTES for piece in pieces)
    assert all(len(piece) >= PART_BYTES // 2 for piece in pieces[:-1])
    assert all(pieces) or pieces == [""]
    assert part_count(payload) == len(pieces)


def test_no_part_is_cut_beside_a_space() -> None:
    """A server that trims texts changes no part."""
    pieces = cut('"' + "word and word " * 3000 + '"')
    assert len(pieces) > 3
    assert all(piece == piece.strip() for piece in pieces)


@pytest.mark.parametrize(
    "value", ["plain", "\u00e4\u2028\ufeff", "e\u0301\U0001f600", '\\ " \x7f \x01']
)
def test_a_payload_is_ascii_on_the_wire_and_restored_here(value: str) -> None:
    """A transport cannot change a text that has only letters, digits and backslashes."""
    payload = orjson.dumps({"content": value}).decode()
    assert escape_payload(payload).isascii()
    assert json.loads(escape_payload(payload)) == {"content": value}
    assert unescape_payload(escape_payload(payload)) == payload


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_limit_of_a_part_is_exact(over: int) -> None:
    """A payload of exactly the limit is one part, and one byte more makes two."""
    payload = "a" * (PART_BYTES + over)
    assert part_count(payload) == len(cut(payload)) == (2 if over > 0 else 1)


def test_parts_come_together_in_any_order() -> None:
    """All parts of an operation, shuffled and repeated, restore it, and any one less does not."""
    op = operation('"one"', BIG, "3")
    parts = parts_of(op)
    assert len(parts) == 2 + part_count(BIG)
    assert assemble([*reversed(parts), *parts], KEY) == op
    for missing in parts:
        assert assemble([part for part in parts if part != missing], KEY) is None
    assert assemble([], KEY) is None
    assert assemble([], KEY, popped={0, 1, 2}) is None


@pytest.mark.parametrize("version", [1, 2])
def test_parts_have_all_fields_of_their_operation(version: int) -> None:
    """Turn, branch, key and version come back, too."""
    op = replace(operation('"one"', BIG), version=version, private=True)
    if version == 2:
        turn = TurnKey(1 << 39, "phonephone", 7)
        op = replace(op, turn=turn, branch="draft", key_id="2026-11")
    assert assemble(parts_of(op), KEY) == op
    assert {is_intact(part, KEY) for part in parts_of(op)} == {True}


def test_a_popped_payload_is_not_required() -> None:
    """Its position is marked as gone, and the other payloads make the operation complete."""
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
    "a turn": {"turn": TurnKey(1 << 39, "writerwriter", 2)},
    "a branch": {"branch": "draft"},
    "a key": {"key_id": "2026-11"},
    "another version": {"version": 1},
    "another digest": {"digest": "0" * 32},
    "another seal": {"seal": "0" * 16},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_part_does_not_fit_its_seal(what: str) -> None:
    """A change to any field that other replicas use is detected, in one part and in all of them."""
    parts = parts_of(operation('"one"', "2"))
    changed = replace(parts[0], **CHANGES[what])
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble([changed, *parts[1:]], KEY)
    assert is_intact(parts[0], KEY)
    assert not is_intact(changed, KEY)
    if what not in ("one character", "one character less", "all of it cut away"):
        with pytest.raises(ValueError, match="does not match its seal"):
            assemble([replace(part, **CHANGES[what]) for part in parts], KEY)


def test_a_raised_payload_count_is_detected() -> None:
    """The operation stays incomplete, and a lone part shows the change."""
    parts = [replace(part, count=3) for part in parts_of(operation('"one"', "2"))]
    assert assemble(parts, KEY) is None
    assert not is_intact(parts[0], KEY)


def test_another_session_s_part_does_not_fit() -> None:
    """A seal is valid in one session only, so that a moved memory is detected."""
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble(parts_of(operation('"one"')), "other" + KEY)


def test_swapped_parts_are_detected() -> None:
    """The parts of a long payload do not fit its seal in another order."""
    first, second, *rest = parts_of(operation(BIG))
    swapped = [replace(first, text=second.text), replace(second, text=first.text), *rest]
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble(swapped, KEY)


def test_a_hostile_count_costs_nothing() -> None:
    """A count of two thousand million costs neither memory nor time."""
    part = replace(parts_of(operation("1"))[0], count=(1 << 31) - 1)
    assert assemble([part], KEY) is None
    assert not is_intact(part, KEY)


def test_a_digest_covers_the_whole_operation() -> None:
    """Another payload, number, order, kind, stamp, dot or session gives another digest, and the
    wall clock is not part of it."""
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
