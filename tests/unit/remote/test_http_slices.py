"""A long list of a server's is decoded in slices, and comes out as the whole would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.remote import http

TRICKY = ['},{"', '"},{"id":"', '\\"},{\\"', "[{", '{"a":[{"b":1},{"c":2}]}', "", "ä\u2028"]
VALUES = st.recursive(
    st.sampled_from(TRICKY) | st.text(max_size=8) | st.integers(-5, 5) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TRICKY), inner),
    max_leaves=8,
)
LISTS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=12)


async def decoded(data: bytes) -> object:
    return await http._decoded(data)


@given(LISTS, st.integers(1, 40))
def test_a_list_in_slices_is_the_whole_list(value: list[object], size: int) -> None:
    """Wherever it is cut, and whatever its texts look like."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "SLICE_BYTES", size)
        assert asyncio.run(decoded(orjson.dumps(value))) == value


@given(LISTS, st.integers(1, 40), st.data())
def test_a_damaged_list_is_no_list(value: list[object], size: int, data: st.DataObject) -> None:
    """What is no JSON as a whole is none in slices either."""
    body = orjson.dumps(value)
    place = data.draw(st.integers(0, len(body) - 1))
    instead = data.draw(st.sampled_from([b"", b'"', b"}", b"{", b","]))
    damaged = body[:place] + instead + body[place + 1 :]

    def outcome(decode: Callable[[], object]) -> object:
        try:
            return decode()
        except ValueError:
            return "no JSON"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http, "SLICE_BYTES", size)
        found = outcome(lambda: asyncio.run(decoded(damaged)))
        assert found == outcome(lambda: http._decode(damaged))


def test_the_loop_turns_between_slices() -> None:
    """Another task runs while a long list is decoded."""
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
