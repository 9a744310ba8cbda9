"""Windows of a session: what `get_items` returns to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, InvalidArgument, SessionCache, Window
from tests.session.session_support import contents, messages

CALL = {"type": "function_call", "call_id": "c", "name": "pay", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "paid"}


async def talk(session: CachedSession) -> list[Any]:
    """Hold three turns, the second with a tool call."""
    await session.add_items(messages("one"))
    await session.add_items([{"role": "assistant", "content": "1"}])
    await session.add_items(messages("two"))
    await session.add_items([CALL, OUTPUT])
    await session.add_items([{"role": "assistant", "content": "2"}])
    await session.add_items(messages("three"))
    return list(await session.get_items())


async def test_a_window_limits_items_turns_and_tokens(tmp_path: Path) -> None:
    """It is given to the constructor or to the call, and a limit applies as well."""
    path = tmp_path / "a.db"
    async with CachedSession("s", journal=path) as session:
        whole = await talk(session)
        assert await session.get_items(window=Window(turns=1)) == whole[-1:]
        assert await session.get_items(window=Window(turns=2)) == whole[2:]
        assert await session.get_items(window=Window(items=5)) == whole[2:]
        assert await session.get_items(window=Window(items=4)) == whole[-1:]
        words = Window(tokens=10, count_tokens=lambda item: 5 if item == whole[-1] else 3)
        assert await session.get_items(window=words) == whole[-1:]
        assert await session.get_items(window=Window(tokens=1 << 20)) == whole
        assert await session.get_items(2, window=Window(turns=2)) == whole[-2:]
        assert await session.get_items(0, window=Window(turns=2)) == []
    async with CachedSession("s", journal=path, window=Window(turns=1)) as session:
        assert await session.get_items() == whole[-1:]
        assert await session.get_items(window=Window(turns=9)) == whole
    async with SessionCache(path) as cache:
        assert await cache.session("s", window=Window(items=1)).get_items() == whole[-1:]


async def test_a_limit_hands_out_no_output_without_its_call(tmp_path: Path) -> None:
    """The limit counts items as before, and leaves out an output whose call it cuts off."""
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        whole = await talk(session)
        assert await session.get_items(3) == whole[-2:]
        assert await session.get_items(4) == whole[-4:]
        assert contents(await session.get_items(2)) == ["2", "three"]


async def test_an_empty_session_has_an_empty_window(tmp_path: Path) -> None:
    """The token counter is not called."""
    counter = Window(tokens=5, count_tokens=lambda item: 1 // 0)
    async with CachedSession("s", journal=tmp_path / "a.db", window=counter) as session:
        assert await session.get_items() == []


@pytest.mark.parametrize("found", [-1, 1.5, "7", None, True])
async def test_a_token_counter_that_fails_is_named(tmp_path: Path, found: Any) -> None:
    """The error says what it raised or returned. Other reads work."""

    def fail(_: Any) -> int:
        raise KeyError("model")

    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        await session.add_items(messages("a"))
        with pytest.raises(InvalidArgument, match="count_tokens raised KeyError"):
            await session.get_items(window=Window(tokens=5, count_tokens=fail))
        with pytest.raises(InvalidArgument, match="count_tokens returned"):
            await session.get_items(window=Window(tokens=5, count_tokens=lambda _: found))
        assert contents(await session.get_items()) == ["a"]
        assert session.status().salvaged is None


@pytest.mark.parametrize(
    "wrong", [{}, {"items": 0}, {"turns": -1}, {"tokens": 1.5}, {"items": True}, {"tokens": "9"}]
)
def test_a_window_without_valid_limits_is_refused(wrong: dict[str, Any]) -> None:
    """A window of nothing would hide the history."""
    with pytest.raises(InvalidArgument):
        Window(**wrong)


async def test_what_is_no_window_is_refused(tmp_path: Path) -> None:
    """By the constructor and by the call."""
    wrong: Any = {"items": 5}
    with pytest.raises(InvalidArgument, match="window"):
        CachedSession("s", journal=tmp_path / "a.db", window=wrong)
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        with pytest.raises(InvalidArgument, match="window"):
            await session.get_items(window=wrong)
        with pytest.raises(InvalidArgument, match="must be a function"):
            Window(tokens=5, count_tokens="len")  # type: ignore[arg-type]
