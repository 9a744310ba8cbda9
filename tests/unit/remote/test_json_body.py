"""Decoding a long list in slices gives the same value as decoding the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.remote import json_body

TRICKY = ['},{"', '"},{"id":"', '\\"},{\\"', "[{", '{"a":[{"b":1},{"c":2}]}', "", "ä\u2028"]
VALUES = st.recursive(
    st.sampled_from(TRICKY) | st.text(max_size=8) | st.integers(-5, 5) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TRICKY), inner),
    max_leaves=8,
)
LISTS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=12)


async def decoded(data: bytes) -> object:
    return await json_body.decode_in_slices(data)


@given(LISTS, st.integers(1, 40))
def test_a_list_in_slices_is_the_whole_list(value: list[object], size: int) -> None:
    """Slices give the same value, wherever the list is cut and whatever its texts look like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "SLICE_BYTES", size)
        assert asyncio.run(decoded(orjson.dumps(value))) == value


@given(LISTS, st.integers(1, 40), st.data())
def test_a_damaged_list_is_no_list(value: list[object], size: int, data: st.DataObject) -> None:
    """A body that is not JSON as a whole is not JSON in slices either."""
    body = orjson.dumps(value)
    position = data.draw(st.integers(0, len(body) - 1))
    replacement = data.draw(st.sampled_from([b"", b'"', b"}", b"{", b","]))
    damaged = body[:position] + replacement + body[position + 1 :]

    def outcome(decode: Callable[[], object]) -> object:
        try:
            return decode()
        except ValueError:
            return "no JSON"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "SLICE_BYTES", size)
        found = outcome(lambda: asyncio.run(decoded(damaged)))
        assert found == outcome(lambda: json_body.decode(damaged))


def test_other_tasks_run_between_slices() -> None:
    """Another task runs many times while a long list is decoded."""
    body = orjson.dumps([{"text": "x" * 1000}] * 1000)
    turns = 0

    async def main() -> None:
        nonlocal turns
        decoding = asyncio.ensure_future(decoded(body))
        while not decoding.done():
            await asyncio.sleep(0)
            turns += 1

    asyncio.run(main())
    assert turns > 10


def test_a_lone_surrogate_is_decoded() -> None:
    """The fast library refuses a lone surrogate; the body is decoded all the same."""
    assert json_body.decode(b'[{"text": "\\ud800"}]') == [{"text": "\ud800"}]


def test_an_empty_body_is_none() -> None:
    """An answer without a body, such as a 204, has no value."""
    assert json_body.decode(b"") is None
