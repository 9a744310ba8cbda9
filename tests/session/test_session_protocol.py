"""The Session protocol, compared with the Agents SDK's own sessions wherever they agree."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import SessionSettings, SQLiteSession
from agents.extensions.memory import AsyncSQLiteSession
from hypothesis import given
from hypothesis import strategies as st

from cached_session import CachedSession, InvalidArgument, SessionClosed
from cached_session.journal.tables.payloads import SEPARATOR
from tests.hypothesis_profiles import examples
from tests.journal_rows import change_payloads
from tests.session.session_support import contents, exact, messages

Make = Callable[..., Any]
OURS = ["ours-file", "ours-memory"]
THEIRS = ["sqlite-file", "sqlite-memory", "async-file", "async-memory"]


@pytest.fixture(params=OURS + THEIRS)
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Return a function that makes sessions of one kind; they are closed after the test."""
    kind, where = request.param.split("-")
    made: list[Any] = []

    def one(session_id: str = "s", session_settings: Any = None) -> Any:
        path = ":memory:" if where == "memory" else str(tmp_path / "agent.db")
        if kind == "ours":
            session: Any = CachedSession(
                session_id, journal=path, session_settings=session_settings
            )
        else:
            session_class = SQLiteSession if kind == "sqlite" else AsyncSQLiteSession
            session = session_class(session_id, path, session_settings=session_settings)
        made.append(session)
        return session

    yield one
    for session in made:
        await close(session)


async def close(session: Any) -> None:
    """Close a session of any kind; SQLiteSession closes without await."""
    closing = session.close()
    if closing is not None:
        await closing


only_ours = pytest.mark.parametrize("make", OURS, indirect=True)
in_files = pytest.mark.parametrize(
    "make", [kind for kind in OURS + THEIRS if kind.endswith("file")], indirect=True
)


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, "abcde"), (1, "e"), (2, "de"), (5, "abcde"), (99, "abcde"), (0, "")],
)
async def test_a_limit_gives_the_latest_in_chronological_order(
    make: Make, limit: int | None, expected: str
) -> None:
    """`limit=n` returns the last n items, oldest first, and zero returns none."""
    session = make()
    await session.add_items(messages(*"abc"))
    await session.add_items(messages(*"de"))
    assert contents(await session.get_items(limit)) == list(expected)


@pytest.mark.parametrize(
    "options", [SessionSettings(limit=2), {"limit": 2}], ids=["object", "dict"]
)
async def test_the_settings_limit_applies_without_an_argument(make: Make, options: Any) -> None:
    """`session_settings`, as the SDK's object or a dict, limits a read without a limit."""
    session = make(session_settings=options)
    await session.add_items(messages(*"abc"))
    assert contents(await session.get_items()) == ["b", "c"]


async def test_an_explicit_limit_overrides_the_settings(make: Make) -> None:
    """A call's own limit applies, whether it is larger or smaller than that of the settings."""
    session = make(session_settings=SessionSettings(limit=2))
    await session.add_items(messages(*"abc"))
    assert contents(await session.get_items(3)) == ["a", "b", "c"]
    assert contents(await session.get_items(limit=1)) == ["c"]
    assert await session.get_items(0) == []


@pytest.mark.parametrize("options", [None, SessionSettings(), {}], ids=["none", "object", "dict"])
async def test_settings_without_a_limit_do_not_limit(make: Make, options: Any) -> None:
    """Empty settings return the whole history."""
    session = make(session_settings=options)
    await session.add_items(messages(*"abc"))
    assert contents(await session.get_items()) == ["a", "b", "c"]


async def test_changed_settings_apply_to_the_next_read(make: Make) -> None:
    """The SDK assigns `session_settings` on a live session."""
    session = make()
    await session.add_items(messages(*"abc"))
    session.session_settings = SessionSettings(limit=1)
    assert contents(await session.get_items()) == ["c"]


@only_ours
@pytest.mark.parametrize("limit", [-1, -99])
async def test_a_negative_limit_gives_nothing(make: Make, limit: int) -> None:
    """`limit <= 0` returns an empty list, as an argument and in the settings."""
    session = make(session_settings={"limit": limit})
    await session.add_items(messages(*"abc"))
    assert await session.get_items(limit) == []
    assert await session.get_items() == []


@only_ours
async def test_limits_are_exact_where_a_read_becomes_long(make: Make) -> None:
    """Around the sizes at which a short read becomes a long one, a limit has the same result."""
    session = make()
    await session.add_items(messages(*range(1100)))
    for limit in (1, 255, 256, 257, 511, 512, 513, 1024, 1099, 1100, 1101):
        assert contents(await session.get_items(limit)) == [
            str(number) for number in range(max(0, 1100 - limit), 1100)
        ]
    assert contents(await session.get_items()) == [str(number) for number in range(1100)]


@only_ours
async def test_a_few_very_large_items_come_back_whole(make: Make) -> None:
    """Large items are read off the event loop, with the same result."""
    session = make()
    items = [{"role": "user", "content": letter * 200_000} for letter in "abcd"]
    await session.add_items(items)
    assert await session.get_items() == items
    assert await session.get_items(3) == items[1:]


# -- values --------------------------------------------------------------------------------------

VALUES: list[Any] = [
    {"unicode": "Grüße, 世界, مرحبا, 👩‍👩‍👧, \u2028\u2029, e\u0301"},
    {"control": "\x00\x01\x1f\x7f\r\n\t\"'\\/"},
    {"lone": "\ud800", "\udfff": "key"},
    {"integers": [0, -1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**40]},
    {"floats": [0.0, -0.0, 1.0, 0.1, 1e-320, 1.7976931348623157e308, 1e16, 123456789.123456789]},
    {"kinds": [True, 1, 1.0, False, 0, None, "", "1", [], {}]},
    {"": {"": {"": [[[]]]}}},
    {"z": 1, "a": 2, "m": {"y": 1, "b": 2}},
    {"escaped": '{"a": "\\u0000"}', "separator": "],["},
    {"role": "user", "content": [{"type": "input_text", "text": "x"}, {"type": "input_image"}]},
]


@pytest.mark.parametrize("value", VALUES, ids=[next(iter(value)) or "empty" for value in VALUES])
async def test_a_json_value_comes_back_exactly(make: Make, value: Any) -> None:
    """Types, key order, large integers, every float and every string are preserved."""
    session = make()
    await session.add_items([value])
    assert exact(await session.get_items()) == exact([value])
    assert exact(await session.pop_item()) == exact(value)


@only_ours
async def test_deep_nesting_comes_back_exactly(make: Make) -> None:
    """Nesting beyond the fast library's limit is stored and read."""
    value: Any = "bottom"
    for _ in range(400):
        value = [value]
    session = make()
    await session.add_items([{"deep": value}])
    assert await session.get_items() == [{"deep": value}]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=[]), max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


ITEM = st.dictionaries(st.text(st.characters(exclude_categories=[]), max_size=4), JSON, max_size=4)


@examples(60)
@given(batches=st.lists(st.lists(ITEM, max_size=4), max_size=4), limit=st.integers(0, 20))
def test_any_batches_come_back_exactly(batches: list[list[Any]], limit: int) -> None:
    """For any JSON objects, the whole history and the tail equal what was written, in order."""

    async def check() -> None:
        async with CachedSession("s", journal=":memory:") as session:
            for batch in batches:
                await session.add_items(batch)
            flat = [item for batch in batches for item in batch]
            assert exact(await session.get_items()) == exact(flat)
            assert exact(await session.get_items(limit)) == exact(
                flat[len(flat) - limit :] if limit <= len(flat) else flat
            )
            for item in reversed(flat):
                assert exact(await session.pop_item()) == exact(item)
            assert await session.pop_item() is None

    asyncio.run(check())


async def test_changing_returned_items_does_not_change_the_history(make: Make) -> None:
    """Returned items belong to the caller."""
    session = make()
    await session.add_items([{"a": {"b": [1]}}])
    for limit in (None, 1):
        (item,) = await session.get_items(limit)
        item["a"]["b"].append(2)
        item["new"] = True
    assert await session.get_items() == [{"a": {"b": [1]}}]


async def test_changing_a_passed_batch_does_not_change_the_history(make: Make) -> None:
    """The batch is stored as it was at the call."""
    session = make()
    batch: list[Any] = [{"a": {"b": [1]}}]
    await session.add_items(batch)
    batch[0]["a"]["b"].append(2)
    batch.append({"late": True})
    assert await session.get_items() == [{"a": {"b": [1]}}]


@only_ours
async def test_a_batch_changed_while_it_is_written_is_stored_as_it_was(make: Make) -> None:
    """The caller can change its list as soon as the call has begun."""
    session = make()
    batch = messages("a", "b")
    writing = asyncio.ensure_future(session.add_items(batch))
    await asyncio.sleep(0)
    batch[0]["content"] = "changed"
    batch.append({"late": True})
    await writing
    assert contents(await session.get_items()) == ["a", "b"]


@only_ours
async def test_storing_does_not_change_the_batch(make: Make) -> None:
    """The caller's list and items are not modified."""
    session = make()
    batch = [{"b": 1, "a": (1, 2)}]
    await session.add_items(batch)
    assert batch == [{"b": 1, "a": (1, 2)}]


@only_ours
async def test_a_tuple_is_a_list_to_json(make: Make) -> None:
    """A batch or value that is a tuple is accepted and comes back as a list."""
    session = make()
    await session.add_items(({"a": (1, (2,))},))
    assert await session.get_items() == [{"a": [1, [2]]}]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "bad",
    [object(), {1, 2}, b"bytes", {"deep": [{"er": object()}]}, datetime.now(timezone.utc), 1j],
    ids=["object", "set", "bytes", "nested", "datetime", "complex"],
)
async def test_an_item_that_json_cannot_represent_refuses_its_batch(make: Make, bad: Any) -> None:
    """Nothing of the batch is stored, and the session keeps working."""
    session = make()
    await session.add_items(messages("before"))
    with pytest.raises(TypeError):
        await session.add_items([*messages("a"), {"bad": bad}, *messages("b")])
    await session.add_items(messages("after"))
    assert contents(await session.get_items()) == ["before", "after"]


def _circle() -> Any:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _too_deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        -math.inf,
        {1: "key"},
        {None: 1},
        {True: 1},
        {"a": 1, 2: 2},
        uuid.UUID(int=1),
        Hostile(),
        _circle(),
        _too_deep(),
    ],
    ids=[
        "nan",
        "inf",
        "-inf",
        "int-key",
        "none-key",
        "bool-key",
        "mixed-keys",
        "uuid",
        "hostile",
        "circle",
        "deep",
    ],
)
@only_ours
async def test_a_value_that_json_would_change_is_refused(make: Make, bad: Any) -> None:
    """The message names the item and what to pass instead."""
    session = make()
    with pytest.raises(
        InvalidArgument, match=r"item 1 cannot be stored as JSON.*plain dicts"
    ) as caught:
        await session.add_items([*messages("a"), {"bad": bad}, *messages("b")])
    assert len(str(caught.value)) < 1000
    assert await session.get_items() == []


# -- batches, pop, clear -------------------------------------------------------------------------


async def test_an_empty_batch_changes_nothing(make: Make) -> None:
    """It has no effect on an empty or a filled session."""
    session = make()
    await session.add_items([])
    assert await session.get_items() == []
    await session.add_items(messages("a"))
    await session.add_items([])
    assert contents(await session.get_items()) == ["a"]


async def test_a_pop_of_an_empty_session_returns_none(make: Make) -> None:
    """The session may be new, empty, or popped until it is empty."""
    session = make()
    assert await session.pop_item() is None
    await session.add_items(messages("a"))
    assert await session.pop_item() == messages("a")[0]
    assert await session.pop_item() is None
    assert await session.get_items() == []


async def test_pops_take_the_latest_first(make: Make) -> None:
    """The order holds across batches, also with items written in between."""
    session = make()
    await session.add_items(messages("a", "b"))
    await session.add_items(messages("c"))
    popped = [await session.pop_item(), await session.pop_item()]
    await session.add_items(messages("d"))
    popped += [await session.pop_item(), await session.pop_item()]
    assert contents(popped) == ["c", "b", "d", "a"]


async def test_a_pop_returns_an_item_that_is_falsy(make: Make) -> None:
    """An empty object is an item."""
    session = make()
    await session.add_items([{}])
    assert await session.pop_item() == {}
    assert await session.get_items() == []


async def test_a_cleared_session_is_empty_and_usable(make: Make) -> None:
    """It can be cleared again and written to like a new one."""
    session = make()
    await session.clear_session()
    await session.add_items(messages("a", "b"))
    await session.clear_session()
    await session.clear_session()
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items(messages("c"))
    assert contents(await session.get_items()) == ["c"]


# -- many sessions, many ids ---------------------------------------------------------------------

IDS = [
    "plain",
    "o'hara",
    'say "hi"',
    "a\x00b",
    "a\x00c",
    "../../etc/passwd",
    "a/b\\c:d",
    "%s {} ?",
    "';DROP TABLE sessions;--",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    " ",
    "\n",
    "PLAIN",
    "1",
    "01",
    "x" * 5000,
]


@in_files
async def test_sessions_of_one_file_do_not_mix(make: Make) -> None:
    """Each id, however unusual, has a history of its own to write, pop and clear."""
    sessions = {name: make(name) for name in IDS}
    for name, session in sessions.items():
        await session.add_items([{"of": name}, {"n": 2}])
    for name, session in sessions.items():
        assert await session.get_items() == [{"of": name}, {"n": 2}]
    await sessions["é"].clear_session()
    assert await sessions["plain"].pop_item() == {"n": 2}
    assert await sessions["é"].get_items() == []
    assert await sessions["e\u0301"].get_items() == [{"of": "e\u0301"}, {"n": 2}]
    assert await sessions["PLAIN"].get_items() == [{"of": "PLAIN"}, {"n": 2}]


@only_ours
async def test_ids_with_lone_surrogates_are_ids(make: Make) -> None:
    """Any Python string names a session, also if UTF-8 cannot encode it."""
    first, second, third = make("\ud800"), make("\udfff"), make("a\ud800b")
    await first.add_items(messages("a"))
    await second.add_items(messages("b"))
    assert contents(await first.get_items()) == ["a"]
    assert contents(await second.get_items()) == ["b"]
    assert await third.get_items() == []
    assert await first.pop_item() == messages("a")[0]
    await second.clear_session()
    assert (first.status().items, second.status().items) == (0, 0)
    assert await second.search("b") == []


@in_files
async def test_two_sessions_of_one_id_are_one_history(make: Make) -> None:
    """Each sees in its next read what the other wrote, popped and cleared."""
    one, other = make("same"), make("same")
    await one.add_items(messages("a"))
    assert contents(await other.get_items()) == ["a"]
    await other.add_items(messages("b"))
    assert contents(await one.get_items()) == ["a", "b"]
    assert await one.pop_item() == messages("b")[0]
    assert contents(await other.get_items()) == ["a"]
    await other.clear_session()
    assert await one.get_items() == []


@in_files
async def test_a_history_outlives_its_session(make: Make) -> None:
    """After closing and opening again, the history is the same."""
    first = make()
    await first.add_items(messages("a", "b"))
    await first.pop_item()
    await close(first)
    second = make()
    assert contents(await second.get_items()) == ["a"]


async def test_sessions_in_memory_share_nothing() -> None:
    """Two sessions in memory have separate histories, even for one id."""
    async with (
        CachedSession("s", journal=":memory:") as one,
        CachedSession("s", journal=":memory:") as other,
    ):
        await one.add_items(messages("a"))
        assert await other.get_items() == []
    async with CachedSession("s", journal=":memory:") as again:
        assert await again.get_items() == []
    assert not Path(":memory:").exists()


async def test_it_satisfies_the_protocol_of_the_sdk(make: Make) -> None:
    """It is an instance of the protocol, with `session_id` and `session_settings`."""
    session = make("name")
    assert isinstance(session, agents.Session)
    assert session.session_id == "name"
    assert hasattr(session, "session_settings")


# -- closing -------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Any]] = {
    "get_items": lambda s: s.get_items(),
    "get_items(0)": lambda s: s.get_items(0),
    "add_items": lambda s: s.add_items(messages("a")),
    "add_items([])": lambda s: s.add_items([]),
    "pop_item": lambda s: s.pop_item(),
    "clear_session": lambda s: s.clear_session(),
}
OWN_CALLS: dict[str, Callable[[Any], Any]] = {
    "sync": lambda s: s.sync(timeout=1),
    "flush": lambda s: s.flush(timeout=1),
    "audit": lambda s: s.audit(),
    "entries": lambda s: s.entries(),
    "entries(0)": lambda s: s.entries(0),
    "search": lambda s: s.search("a"),
    "recall": lambda s: s.recall("a"),
    "parked": lambda s: s.parked(),
    "retry_parked": lambda s: s.retry_parked(),
    "drop_parked": lambda s: s.drop_parked(("w", 1)),
    "async with": lambda s: s.__aenter__(),
}


@pytest.mark.parametrize("was_used", [True, False], ids=["used", "never-used"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_closed_session_refuses_calls_of_the_protocol(
    make: Make, call: str, was_used: bool
) -> None:
    """Each call raises after close, also for an empty batch."""
    session = make()
    if was_used:
        await session.add_items(messages("a"))
    await close(session)
    with pytest.raises(RuntimeError):
        await CALLS[call](session)


@pytest.mark.parametrize("call", [*CALLS, *OWN_CALLS])
async def test_a_closed_session_raises(place: str, call: str) -> None:
    """Every method raises `SessionClosed`, and names the session and the remedy."""
    session = CachedSession("gone", journal=place)
    await session.add_items(messages("a"))
    await session.close()
    with pytest.raises(SessionClosed, match=r"'gone'.*make a new"):
        await {**CALLS, **OWN_CALLS}[call](session)


async def test_a_closed_session_still_has_a_status(place: str) -> None:
    """The status says that it is closed."""
    session = CachedSession("s", journal=place)
    await session.add_items(messages("a"))
    await session.close()
    assert session.status().state == "closed"


async def test_closing_twice_is_harmless(make: Make) -> None:
    """The second close does nothing, whether the session was used or not."""
    session = make()
    await close(session)
    await close(session)
    other = make("other")
    await other.add_items(messages("a"))
    await close(other)
    await close(other)


async def test_concurrent_closes_are_one(place: str) -> None:
    """Several tasks can close a session at the same time."""
    session = CachedSession("s", journal=place)
    await session.add_items(messages("a"))
    await asyncio.gather(*(session.close() for _ in range(5)))


async def test_close_while_writes_are_under_way(journal: Path) -> None:
    """Each write under way is finished or refused, and every write that returned is stored."""
    session = CachedSession("s", journal=journal)
    await session.add_items(messages("first"))
    writes = [asyncio.ensure_future(session.add_items(messages(n, n))) for n in range(50)]
    await asyncio.sleep(0)
    await session.close()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, SessionClosed) for outcome in outcomes)
    stored = [str(n) for n, outcome in enumerate(outcomes) if outcome is None for _ in "xx"]
    async with CachedSession("s", journal=journal) as again:
        assert contents(await again.get_items()) == ["first", *stored]


async def test_close_while_the_file_is_being_opened(journal: Path) -> None:
    """A close during the first call ends that call with success or an error, and the session is
    closed."""
    session = CachedSession("s", journal=journal)
    first = asyncio.ensure_future(session.add_items(messages("a")))
    await asyncio.sleep(0)
    await session.close()
    (outcome,) = await asyncio.gather(first, return_exceptions=True)
    assert outcome is None or isinstance(outcome, SessionClosed)
    async with CachedSession("s", journal=journal) as again:
        assert contents(await again.get_items()) == (["a"] if outcome is None else [])


async def test_async_with_closes_after_an_error(journal: Path) -> None:
    """The block closes the session however it ends, and does not hide the error."""
    with pytest.raises(KeyError):
        async with CachedSession("s", journal=journal) as session:
            raise KeyError("the body's own")
    with pytest.raises(SessionClosed):
        await session.get_items()


async def test_an_unclosed_session_warns(journal: Path) -> None:
    """Dropping the last reference warns with the session's name."""
    session = CachedSession("forgotten", journal=journal)
    await session.add_items(messages("a"))
    engine = session._engine
    with pytest.warns(ResourceWarning, match=r"'forgotten'.*never closed.*async with"):  # noqa: PT031 - two steps
        del session
        gc.collect()
    await engine.release(None)


async def test_a_refused_or_closed_session_does_not_warn(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """There is nothing to close if the constructor raised or after a close."""
    with pytest.raises(InvalidArgument):
        CachedSession("")
    session = CachedSession("s", journal=":memory:")
    await session.close()
    del session
    gc.collect()
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []


# -- damage --------------------------------------------------------------------------------------

DAMAGE = [b'{"cut": ', b"", b"no json", b"\xff\xfe", b"1,2", b'{"a\xff']


@pytest.mark.parametrize("payload", DAMAGE)
@pytest.mark.parametrize("at", [0, 2, 4])
async def test_a_damaged_row_does_not_hide_others(journal: Path, payload: bytes, at: int) -> None:
    """Reads omit it and do not count it, pops skip it, and it is never deleted."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*range(5)))
        with sqlite3.connect(journal) as conn:
            change_payloads(conn, lambda index, text: payload if index == at else text)
        conn.close()
        left = [str(n) for n in range(5) if n != at]
        assert contents(await session.get_items()) == left
        for limit in range(1, 7):
            assert contents(await session.get_items(limit)) == left[-limit:]
        assert await session.pop_item() == messages(left[-1])[0]
        assert contents(await session.get_items()) == left[:-1]
    with sqlite3.connect(journal) as conn:
        (body,) = conn.execute("SELECT CAST(body AS BLOB) FROM ops WHERE live > 0").fetchone()
    conn.close()
    assert body.split(SEPARATOR.encode())[at] == payload


async def test_damaged_rows_do_not_count_in_a_long_read(journal: Path) -> None:
    """A limit returns its number of items even if a long history has many damaged rows."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages(*range(900)))
        with sqlite3.connect(journal) as conn:
            change_payloads(conn, lambda index, text: b"damaged" if index % 2 else text)
        conn.close()
        left = [str(n) for n in range(0, 900, 2)]
        for limit in (1, 100, 300, 449, 450, 451):
            assert contents(await session.get_items(limit)) == left[-limit:]
        assert contents(await session.get_items()) == left


async def test_damage_is_read_as_the_sdk_does(tmp_path: Path) -> None:
    """The same damage to the same row gives the same items for every limit."""
    theirs = SQLiteSession("s", tmp_path / "theirs.db")
    async with CachedSession("s", journal=tmp_path / "ours.db") as ours:
        for session in (ours, theirs):
            await session.add_items(messages(*range(4)))
        with sqlite3.connect(tmp_path / "theirs.db") as conn:
            conn.execute("UPDATE agent_messages SET message_data = 'x' WHERE id = 3")
        conn.close()
        with sqlite3.connect(tmp_path / "ours.db") as conn:
            change_payloads(conn, lambda index, text: b"x" if index == 2 else text)
        conn.close()
        for limit in (None, 1, 2, 3, 4, 5):
            assert await ours.get_items(limit) == await theirs.get_items(limit)
        assert json.dumps(await ours.pop_item()) == json.dumps(await theirs.pop_item())
    theirs.close()
