"""Encoding of items as JSON text, and decoding of texts."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import logging
import math
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.errors import InvalidArgument
from cached_session.journal.sqlite.codec import (
    EXACT,
    FAST,
    codec_of,
    decode_rows,
    encode_item,
    encode_items,
)

# Two surrogates side by side are one character of JSON, so that each stands alone here.
lone = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])
texts = st.text(max_size=8) | st.builds("{}{}x{}".format, st.text(max_size=3), lone, st.text())
numbers = (
    st.integers()
    | st.integers(-(1 << 200), 1 << 200)
    | st.sampled_from([(1 << 53) + 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63) - 1])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e308, -0.0, 5e-324, 0.1, 1e16, 1e22, 123456789.123456789])
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal, including types, the sign of zero and key order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and repr(one) == repr(other)


@given(st.lists(json_values, max_size=5))
def test_every_json_value_comes_back_exactly(items: list[Any]) -> None:
    """Any JSON values are encoded and decoded without loss, together or one by one."""
    rows = encode_items(items)
    assert same(decode_rows(rows), items)
    for row, item in zip(rows, items, strict=True):
        assert same(decode_rows([row]), [item])
        row[0].encode()


@given(json_values)
def test_a_text_from_elsewhere_gets_the_codec_that_reads_it(item: Any) -> None:
    """The codec that is chosen for a JSON text of any writer decodes it exactly."""
    for text in (
        json.dumps(item),
        json.dumps(item, separators=(",", ":")),
        json.dumps(item, indent=1),
    ):
        assert same(decode_rows([(text, codec_of(text))]), [item])


@pytest.mark.parametrize(
    ("item", "codec"),
    [
        ({"z": 1, "a": 2, "é": "😀"}, FAST),
        ((1 << 64) - 1, FAST),
        (1 << 64, EXACT),
        (-(1 << 63) - 1, EXACT),
        ("\ud800", EXACT),
        ({"\udfff": 1}, EXACT),
        (1e308, FAST),
        (-0.0, FAST),
        (5e-324, FAST),
        ("\u0000\u2028\x7f", FAST),
    ],
)
def test_the_standard_library_takes_only_what_orjson_would_change(item: Any, codec: int) -> None:
    """The fast codec is used where it is exact, and nowhere else."""
    row = encode_item(item)
    assert row[1] == codec
    assert same(decode_rows([row]), [item])


@pytest.mark.parametrize("depth", [1, 200, 253, 254, 255, 256, 300])
def test_deep_nesting_is_stored(depth: int) -> None:
    """The standard library takes what is nested more deeply than orjson allows."""
    item: Any = "core"
    for level in range(depth):
        item = [item] if level % 2 else {"in": item}
    assert decode_rows([encode_item(item)]) == [item]


def test_a_tuple_comes_back_as_a_list() -> None:
    """A tuple is the only value that JSON stores as another one."""
    assert decode_rows(encode_items([(1, (2, "x")), {"a": (1,)}])) == [[1, [2, "x"]], {"a": [1]}]


def _itself() -> Any:
    item: list[Any] = []
    item.append({"again": item})
    return item


def _deep() -> Any:
    item: Any = []
    for _ in range(100_000):
        item = [item]
    return item


class _Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class _Agreeing:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


REFUSED = {
    "nan": math.nan,
    "nan inside": {"a": [1, math.nan]},
    "inf": math.inf,
    "-inf": [-math.inf],
    "nan beside a big integer": [1 << 70, math.nan],
    "set": {1, 2},
    "bytes": {"data": b"raw"},
    "bytearray": bytearray(b"raw"),
    "uuid": {"id": uuid.UUID(int=1)},
    "datetime": dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc),
    "date": [dt.date(2020, 1, 1)],
    "decimal": decimal.Decimal(1),
    "int keys": {1: "a"},
    "int keys inside": {"a": [{"b": {2: 3}}]},
    "none as a key": {None: 1},
    "bool as a key": {True: 1},
    "keys that fall together": {"1": 1, 1: 1},
    "a pair of surrogates": "\ud83d\ude00",
    "itself": _itself(),
    "very deep": _deep(),
    "an object": object(),
    "an object whose repr raises": {"a": _Hostile()},
    "an object that equals everything": [_Agreeing()],
    "a generator": (n for n in "ab"),
    "an integer too long to print": 10**5000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_item_that_json_cannot_represent_is_refused_with_its_batch(name: str) -> None:
    """The error names the item, wherever it is in the batch, and no item is encoded."""
    for items, position in (([REFUSED[name]], 0), (["good", {"a": 1}, REFUSED[name], "good"], 2)):
        with pytest.raises(
            InvalidArgument, match=f"item {position} cannot be stored as JSON"
        ) as caught:
            encode_items(items)
        assert len(str(caught.value)) < 600


def test_a_refusal_is_both_a_value_and_a_type_error() -> None:
    """Code that was written for the sessions of the Agents SDK catches it."""
    with pytest.raises(ValueError, match="item 0"):
        encode_item({1})
    with pytest.raises(TypeError, match="item 0"):
        encode_item({1})


CORRUPT = ["", "{", "[1", "1,2", '{"a":1}]', "nul", '{"a":1,}', "\ud800", b"\xff{", None, 'a"b']


@pytest.mark.parametrize("codec", [FAST, EXACT])
@pytest.mark.parametrize("text", CORRUPT)
def test_a_corrupt_row_is_left_out_and_reported(
    text: Any, codec: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that cannot be decoded is skipped and logged. Rows of both codecs around it are kept
    in their order."""
    good = ['{"n":1}', '"two"', "[3]"]
    for others in (FAST, EXACT):
        for position in range(4):
            rows: list[tuple[Any, int]] = [(row, others) for row in good]
            rows.insert(position, (text, codec))
            with caplog.at_level(logging.WARNING, "cached_session.journal"):
                caplog.clear()
                assert decode_rows(rows) == [{"n": 1}, "two", [3]]
            assert len(caplog.records) == 1


def test_each_read_gives_fresh_objects() -> None:
    """Changes to returned items do not affect later reads."""
    rows = encode_items([{"a": [1]}])
    decode_rows(rows)[0]["a"].append(2)
    assert decode_rows(rows) == [{"a": [1]}]


@pytest.mark.parametrize("text", ["", "{", "nope", "[1"])
def test_a_text_that_is_not_json_has_no_codec(text: str) -> None:
    """The error is a ValueError, so that such a text from the wire is counted as damaged."""
    with pytest.raises(ValueError):  # noqa: PT011
        codec_of(text)
