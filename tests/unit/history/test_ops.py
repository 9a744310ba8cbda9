from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.ops import (
    MARK_BYTES,
    MARK_DEPTH,
    MARK_KEY_CHARACTERS,
    Dot,
    Kind,
    Mark,
    Operation,
    TurnKey,
    decode_mark,
    encode_mark,
    escape_payload,
    is_id,
    normalize_turn,
    unescape_payload,
)

KEY = "k" * 32
DOT = Dot("writerwriter", 3)
HEAD = TurnKey(9, "anotherwriter", 7)
OP = Operation(DOT, Kind.APPEND, 10, 5, ("1", "2"))

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


def test_an_append_without_a_turn_is_the_head_of_its_own() -> None:
    """A head may leave out its turn or name itself: key and digest are the same."""
    assert OP.turn_key == TurnKey(10, *DOT)
    explicit = replace(OP, turn=OP.turn_key)
    assert explicit.turn_key == OP.turn_key
    assert explicit.digest(KEY) == OP.digest(KEY)
    assert replace(OP, turn=HEAD).turn_key == HEAD


def test_a_digest_covers_what_version_2_adds() -> None:
    """Each part of the turn, the branch, the key and the version change the digest."""
    ops = [
        OP,
        replace(OP, turn=HEAD),
        replace(OP, turn=HEAD._replace(stamp=8)),
        replace(OP, turn=HEAD._replace(writer="anotherwritez")),
        replace(OP, turn=HEAD._replace(counter=8)),
        replace(OP, branch="draft"),
        replace(OP, key_id="draft"),
        replace(OP, version=1),
        replace(OP, kind=Kind.MARK),
    ]
    assert len({op.digest(KEY) for op in ops}) == len(ops)


def test_a_digest_of_version_1_covers_no_later_field() -> None:
    """Devices of version 1 compute the same digest."""
    old = replace(OP, version=1)
    assert old.head(KEY) == f"1|{KEY}|writerwriter|3|append|10|0|2|".encode()
    assert replace(old, turn=HEAD, branch="draft").digest(KEY) == old.digest(KEY)


@pytest.mark.parametrize("text", ["a", "2026-11", "A_b.c-9", "x" * 64])
def test_an_id_has_legal_characters(text: str) -> None:
    """Branches, keys and types of marks have such ids."""
    assert is_id(text)


@pytest.mark.parametrize("text", ["", "x" * 65, "a|b", "a b", "é", "a\n", "٣"])
def test_other_texts_are_not_ids(text: str) -> None:
    """Above all, no id contains the separator of `encode_head`."""
    assert not is_id(text)


@pytest.mark.parametrize(
    ("turn", "normal"),
    [
        (TurnKey(10, *DOT), None),
        (HEAD, HEAD),
        # Two writers may share a stamp if a forged operation has used up the stamps.
        (TurnKey(10, "zwriter23456", 900), TurnKey(10, "zwriter23456", 900)),
        (TurnKey(10, DOT.writer, 2), TurnKey(10, DOT.writer, 2)),
    ],
)
def test_a_turn_begins_before_its_append(turn: TurnKey, normal: TurnKey | None) -> None:
    """An append that names itself is a head; another turn is kept."""
    assert normalize_turn(turn, 10, DOT) == normal


@pytest.mark.parametrize(
    "turn",
    [
        TurnKey(11, "awriter23456", 1),
        TurnKey(11, *DOT),
        TurnKey(9, *DOT),
        TurnKey(10, DOT.writer, 4),
        TurnKey(9, DOT.writer, 4),
    ],
)
def test_a_head_after_its_append_is_refused(turn: TurnKey) -> None:
    """Stamp and counter of the head are not larger than those of the append."""
    with pytest.raises(ValueError, match="later than"):
        normalize_turn(turn, 10, DOT)


@given(st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True), st.text(max_size=256), values)
def test_a_mark_comes_back(kind: str, key: str, value: Any) -> None:
    """Type, key and value are decoded without loss, also after the escaping of the wire."""
    payload = encode_mark(Mark(kind, key, value))
    assert decode_mark(payload) == Mark(kind, key, value)
    assert unescape_payload(escape_payload(payload)) == payload


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels - 1):
        value = [value]
    return value


class Other:
    pass


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", ""),
        ("type", "a b"),
        ("type", "x" * 65),
        ("type", None),
        ("key", "x" * (MARK_KEY_CHARACTERS + 1)),
        ("key", 7),
        ("key", "\ud800"),
        ("value", float("nan")),
        ("value", [float("inf")]),
        ("value", 1 << 64),
        ("value", -(1 << 63) - 1),
        ("value", {"a": "\ud800"}),
        ("value", {"\ud800": 1}),
        ("value", {1: 1}),
        ("value", [Other()]),
        ("value", (1, 2)),
        ("value", nested(MARK_DEPTH + 1)),
        ("value", "x" * MARK_BYTES),
        ("value", "é" * (MARK_BYTES // 2)),
    ],
)
def test_an_invalid_mark_is_not_written(field: str, value: Any) -> None:
    """Every replica must read the same value from a mark."""
    with pytest.raises(ValueError):  # noqa: PT011
        encode_mark(replace(Mark("title", "", "a talk"), **{field: value}))


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "nonsense",
        "7",
        "[]",
        "{}",
        '{"type":"t","key":"k"}',
        '{"type":"t","key":"k","value":1,"more":2}',
        '{"type":"t","key":"k","value":NaN}',
        '{"type":"t","key":"k","value":1e999}',
        '{"type":"t","key":"k","value":"\\ud800"}',
        '{"type":"t","key":"k","value":"\ud800"}',
        '{"type":"t","key":7,"value":1}',
        '{"type":7,"key":"k","value":1}',
        '{"type":"a b","key":"k","value":1}',
        '{"type":"t","key":"k","value":1} x',
        json.dumps({"type": "t", "key": "k" * 257, "value": 1}),
        json.dumps({"type": "t", "key": "k", "value": nested(MARK_DEPTH + 1)}),
        json.dumps({"type": "t", "key": "k", "value": "v" * MARK_BYTES}),
        '{"type":"t","key":"k","value":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"type":"t","key":"k","value":1}' + " " * MARK_BYTES,
    ],
    ids=lambda payload: payload[:40].encode("ascii", "replace").decode(),
)
def test_an_invalid_payload_is_not_a_mark(payload: str) -> None:
    """Only an object with exactly these three fields, within the limits, is a mark."""
    with pytest.raises(ValueError):  # noqa: PT011
        decode_mark(payload)


def test_the_limits_of_a_mark_are_exact() -> None:
    """A mark at each limit is valid."""
    kind, key = "t" * 64, "é" * MARK_KEY_CHARACTERS
    empty = len(encode_mark(Mark(kind, key, "")).encode())
    largest = Mark(kind, key, "x" * (MARK_BYTES - empty))
    assert decode_mark(encode_mark(largest)) == largest
    deepest = Mark("t", "", nested(MARK_DEPTH))
    assert decode_mark(encode_mark(deepest)) == deepest
    wide = Mark("t", "", [(1 << 64) - 1, -(1 << 63), [{"é": None}] * 1000])
    assert decode_mark(encode_mark(wide)) == wide
