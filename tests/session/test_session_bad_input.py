"""Invalid input raises a clear error at the first call that can detect it, and changes nothing."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cached_session import (
    CachedSession,
    CachedSessionError,
    InvalidArgument,
    JournalCorrupt,
    JournalError,
    JournalTooNew,
    SessionCache,
    SyncError,
    SyncOptions,
)
from tests.session.session_support import contents, messages

URL = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def empty_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide an empty default data directory, so that any new file is noticed."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    monkeypatch.chdir(home)
    return home


# -- arguments, which the constructor checks -----------------------------------------------------

BAD_SETTINGS: Any = {"limit": "x"}
ARGUMENTS: dict[str, tuple[Callable[[], Any], str, str]] = {
    # case: (call, value that the message names, remedy)
    "empty id": (lambda: CachedSession(""), "session_id=''", "not empty"),
    "id None": (lambda: CachedSession(None), "session_id=None", "string"),
    "id bytes": (lambda: CachedSession(b"s"), "session_id=b's'", "string"),
    "id number": (lambda: CachedSession(7), "session_id=7", "string"),
    "id of from_url": (lambda: CachedSession.from_url("", url=URL), "session_id=''", "not empty"),
    "empty journal": (lambda: CachedSession("s", journal=""), "journal=''", ":memory:"),
    "journal number": (lambda: CachedSession("s", journal=7), "journal=7", "file name"),
    "journal bytes": (lambda: CachedSession("s", journal=b"x"), "journal=b'x'", "file name"),
    "journal NUL": (lambda: CachedSession("s", journal="a\x00b"), "journal='a", "file name"),
    "cache journal": (lambda: SessionCache(7), "journal=7", "file name"),
    "pop": (lambda: CachedSession("s", pop="maybe"), "pop='maybe'", "'confirmed'"),
    "content": (lambda: CachedSession("s", content="html"), "content='html'", "'none'"),
    "hydrate": (lambda: CachedSession("s", hydrate="no"), "hydrate='no'", "True or False"),
    "options": (lambda: CachedSession("s", options={}), "options={}", "SyncOptions"),
    "cache options": (lambda: SessionCache(options=None), "options=None", "SyncOptions"),
    "client": (lambda: CachedSession("s", client=object()), "client=<object", "AsyncDakeraClient"),
    "client text": (lambda: CachedSession("s", client=URL), f"client='{URL}'", "from_url"),
    "cache client": (lambda: SessionCache(client=object()), "client=<object", "AsyncDakeraClient"),
    "url and client": (lambda: SessionCache(url=URL, client=object()), "client or url", "not both"),
    "key without url": (lambda: SessionCache(api_key="k"), "passed without url", "address"),
    "settings": (lambda: CachedSession("s", session_settings=BAD_SETTINGS), "'x'", "such as"),
    "url None": (lambda: CachedSession.from_url("s", url=None), "url=None", "http://host:port"),
}  # fmt: skip


@pytest.mark.parametrize("what", ARGUMENTS)
def test_an_invalid_argument_is_refused_by_the_constructor(
    what: str, empty_default_place: Path
) -> None:
    """The error names the value and the remedy, and no file is made."""
    call, value, way_out = ARGUMENTS[what]
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert value in str(caught.value)
    assert way_out in str(caught.value)
    assert isinstance(caught.value, (CachedSessionError, ValueError, TypeError))
    assert list(empty_default_place.iterdir()) == []


URLS = [
    "",
    "   ",
    "localhost",
    "localhost:3000",
    "//localhost:3000",
    "http://",
    "http:///path",
    "http://:3000",
    "ftp://localhost",
    "file:///etc/passwd",
    "ws://localhost",
    "http://localhost:port",
    "http://localhost:0",
    "http://localhost:-1",
    "http://localhost:65536",
    "http://[::1",
    "http://local host:3000",
    "http://local\nhost:3000",
    b"http://localhost",
    7,
]


@pytest.mark.parametrize("url", URLS, ids=map(repr, URLS))
def test_an_invalid_server_address_is_refused(url: Any, empty_default_place: Path) -> None:
    """The error names the value and shows the form to use."""
    for make in (
        lambda: CachedSession.from_url("s", url=url, journal="j.db"),
        lambda: SessionCache("j.db", url=url),
    ):
        with pytest.raises(InvalidArgument) as caught:
            make()
        assert repr(url) in str(caught.value)
        assert "http://host:port" in str(caught.value)
    assert list(empty_default_place.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "HTTPS://Example.org:443/",
        "http://[::1]:3000",
        "http://h/base/",
        " http://h ",
    ],
)
async def test_a_valid_server_address_is_accepted(url: str) -> None:
    """The constructor accepts the address and makes no connection."""
    session = CachedSession.from_url("s", url=url, journal=":memory:")
    await session.close()


KEYS: list[Any] = ["line\nbreak", "nul\x00", b"bytes", 7, "ключ"]


@pytest.mark.parametrize("key", KEYS, ids=map(repr, KEYS))
def test_a_key_that_no_header_can_hold_is_refused(key: Any) -> None:
    """The message names the argument and never shows the key, which is a secret."""
    with pytest.raises(InvalidArgument, match="api_key") as caught:
        CachedSession.from_url("s", url=URL, api_key=key)
    assert str(key) not in str(caught.value)


OPTIONS: list[dict[str, Any]] = [
    {"durability": "none"},
    {"durability": None},
    {"busy_timeout": -1},
    {"run_gap": "10"},
    {"hydrate_timeout": None},
    {"close_timeout": True},
    {"backoff_base": float("nan")},
    {"busy_timeout": float("inf")},
    {"run_gap": float("inf")},
    {"hole_patience": float("inf")},
    {"max_batch_memories": 0},
    {"max_batch_memories": 1001},
    {"page_size": 0},
    {"page_size": 1001},
    {"page_size": 1.5},
    {"first_page_size": -1},
    {"first_page_size": 10_000},
    {"max_batch_bytes": 0},
    {"parallel_sessions": 0},
    {"parallel_sessions": 1.5},
    {"parallel_requests": 0},
]


@pytest.mark.parametrize("bad", OPTIONS, ids=str)
def test_an_option_out_of_bounds_is_refused_by_name(bad: dict[str, Any]) -> None:
    """The message names the option and its value."""
    ((name, value),) = bad.items()
    with pytest.raises(InvalidArgument) as caught:
        SyncOptions(**bad)
    assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize(
    "good", [{"run_gap": 0}, {"page_size": 1000}, {"max_batch_bytes": 1}], ids=str
)
def test_an_option_at_its_bound_is_accepted(good: dict[str, Any]) -> None:
    """Bounds are inclusive."""
    SyncOptions(**good)


async def test_two_servers_for_one_journal_are_refused(journal: Path) -> None:
    """The second session is refused immediately, and the first one keeps working."""
    one = CachedSession.from_url("s", url="http://127.0.0.1:9", journal=journal)
    with pytest.raises(InvalidArgument, match=r"agent\.db.*\.1:9.*another journal.*\.1:10"):
        CachedSession.from_url("s", url="http://127.0.0.1:10", journal=journal)
    with pytest.raises(InvalidArgument, match=r"and its key"):
        CachedSession.from_url("s", url="http://127.0.0.1:9", api_key="other", journal=journal)
    same = CachedSession.from_url("t", url="http://127.0.0.1:9/", journal=journal)
    local = CachedSession("u", journal=journal)
    await local.add_items(messages("a"))
    for session in (one, same, local):
        await session.close()
    other = CachedSession.from_url("s", url="http://127.0.0.1:10", journal=journal)
    await other.close()


# -- files, which the first awaited call checks --------------------------------------------------


def _sqlite(path: Path, *statements: str) -> None:
    conn = sqlite3.connect(path)
    for statement in statements:
        conn.execute(statement)
    conn.commit()
    conn.close()


async def _journal(path: Path) -> None:
    async with CachedSession("s", journal=path) as session:
        await session.add_items(messages(*range(300)))


FILES: dict[str, tuple[type[JournalError], str]] = {
    "text": (JournalError, "not a SQLite file"),
    "almost SQLite": (JournalError, "journal"),
    "foreign": (JournalError, "another program"),
    "foreign with our number": (JournalError, "another program"),
    "newer": (JournalTooNew, "upgrade"),
    "directory": (JournalError, "directory"),
    "no directory": (JournalError, "directory exists"),
    "file as directory": (JournalError, "another path"),
}


async def _make(what: str, path: Path) -> Path:
    """The journal path for a case; what stands there first is made."""
    if what == "text":
        path.write_text("Dear diary,\n" * 200)
    elif what == "almost SQLite":
        path.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    elif what == "foreign":
        _sqlite(path, "CREATE TABLE notes (x)", "INSERT INTO notes VALUES (1)")
    elif what == "foreign with our number":
        _sqlite(path, "CREATE TABLE notes (x)", "PRAGMA user_version = 1")
    elif what == "newer":
        await _journal(path)
        _sqlite(path, "PRAGMA user_version = 999")
    elif what == "directory":
        path.mkdir()
    elif what == "no directory":
        return path.parent / "missing" / "agent.db"
    elif what == "file as directory":
        path.write_text("a file")
        return path / "agent.db"
    return path


def _snapshot(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


CALLS: dict[str, Callable[[CachedSession], Any]] = {
    "get_items": lambda s: s.get_items(),
    "add_items": lambda s: s.add_items(messages("a")),
    "pop_item": lambda s: s.pop_item(),
    "clear_session": lambda s: s.clear_session(),
    "entries": lambda s: s.entries(),
    "async with": lambda s: s.__aenter__(),
}


@pytest.mark.parametrize("what", FILES)
async def test_a_file_that_is_not_a_journal_is_refused_and_unchanged(
    tmp_path: Path, what: str
) -> None:
    """Every first call raises and names the path and the remedy, and no byte of the file
    changes."""
    path = await _make(what, tmp_path / "agent.db")
    before = _snapshot(tmp_path)
    kind, way_out = FILES[what]
    for call in CALLS.values():
        session = CachedSession("s", journal=path)
        with pytest.raises(kind):
            session.status()
        with pytest.raises(kind) as caught:
            await call(session)
        assert str(path) in str(caught.value)
        assert way_out in str(caught.value)
        assert isinstance(caught.value, CachedSessionError)
        await session.close()
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
async def test_a_truncated_journal_is_set_aside_and_keeps_its_bytes(
    tmp_path: Path, keep: float
) -> None:
    """The first or the next call recovers the journal, and the damaged file is kept beside it."""
    path = tmp_path / "agent.db"
    await _journal(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    left = path.read_bytes()
    named: list[str] = []
    async with CachedSession("s", journal=path) as session:

        async def at_most_once_damaged(call: Callable[[], Any]) -> Any:
            try:
                return await call()
            except JournalCorrupt as error:
                named.append(str(error))
                return await call()

        await at_most_once_damaged(lambda: session.add_items(messages("new")))
        assert contents(await at_most_once_damaged(session.get_items))[-1] == "new"
        salvaged = session.status().salvaged
        assert salvaged is not None
    (aside,) = tmp_path.glob("agent.db.damaged-*Z")
    assert str(aside) in salvaged
    assert all(re.search(r"agent\.db is damaged.*sets it aside", text) for text in named)
    assert aside.stat().st_size >= len(left)
    if not named:
        # The damage is noticed before the file is written to.
        assert aside.read_bytes()[: len(left)][100:] == left[100:]


async def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    """An empty file has no content to lose, so it is used as a journal."""
    path = tmp_path / "agent.db"
    path.touch()
    async with CachedSession("s", journal=path) as session:
        await session.add_items(messages("a"))
        assert contents(await session.get_items()) == ["a"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
@pytest.mark.parametrize("mode", [0o000, 0o400])
async def test_a_file_without_permission_is_named(tmp_path: Path, mode: int) -> None:
    """The error for an unreadable or read-only journal names the file."""
    path = tmp_path / "agent.db"
    path.touch(mode=mode)
    session = CachedSession("s", journal=path)
    with pytest.raises(JournalError, match=r"agent\.db.*(writable|mode)"):
        await session.add_items(messages("a"))
    await session.close()
    assert path.stat().st_size == 0


async def test_a_circular_link_is_named(tmp_path: Path) -> None:
    """The error for a circular symbolic link is one of the library's and names the path."""
    path = tmp_path / "agent.db"
    path.symlink_to(path)
    session = CachedSession("s", journal=path)
    with pytest.raises(JournalError, match=r"agent\.db cannot be opened.*another path"):
        await session.get_items()
    await session.close()


async def test_a_session_works_once_its_file_is_repaired(tmp_path: Path) -> None:
    """The session does not keep the error: it works after the file has been repaired."""
    path = tmp_path / "missing" / "agent.db"
    session = CachedSession("s", journal=path)
    with pytest.raises(JournalError):
        await session.add_items(messages("a"))
    path.parent.mkdir()
    await session.add_items(messages("b"))
    assert contents(await session.get_items()) == ["b"]
    await session.close()


async def test_making_a_session_does_no_io(tmp_path: Path) -> None:
    """The constructor makes no file, with or without a server, and neither does closing an unused
    session."""
    for session in (
        CachedSession("s", journal=tmp_path / "agent.db"),
        CachedSession.from_url("s", url=URL, journal=tmp_path / "other.db"),
    ):
        await session.close()
    cache = SessionCache(tmp_path / "third.db")
    cache.session("s")
    await cache.close()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


# -- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "   ", None, 7])
async def test_an_empty_query_is_refused(query: Any) -> None:
    """`search` and `recall` raise an error that names the query."""
    async with CachedSession("s", journal=":memory:") as session:
        for ask in (session.search, session.recall):
            with pytest.raises(InvalidArgument) as caught:
                await ask(query)
            assert f"query={query!r}" in str(caught.value)


async def test_drop_parked_without_an_operation_is_refused() -> None:
    """`drop_parked` requires the operation to drop."""
    async with CachedSession("s", journal=":memory:") as session:
        with pytest.raises(InvalidArgument, match="dots"):
            await session.drop_parked()


@pytest.mark.parametrize("call", ["sync", "flush", "audit"])
async def test_a_sync_without_a_server_is_refused(place: str, call: str) -> None:
    """The error of a local session explains how to name a server, and no item is lost."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items(messages("a"))
        with pytest.raises(SyncError, match=r"no server.*from_url.*client"):
            await getattr(session, call)()
        assert contents(await session.get_items()) == ["a"]


async def test_a_sync_of_a_cache_without_a_server_is_refused(place: str) -> None:
    """A cache without a server raises the same error, even if it has no sessions."""
    async with SessionCache(place) as cache:
        for call in (cache.sync, cache.flush):
            with pytest.raises(SyncError, match=r"no server"):
                await call(timeout=1)


@pytest.mark.parametrize(
    "wrong",
    ["hello", b"hello", {"role": "user", "content": "hi"}, [None], [1], ["text"], [[]], 7, None],
)
async def test_what_is_no_list_of_items_is_refused(tmp_path: Path, wrong: Any) -> None:
    """Nothing is stored, and the message does not quote the input."""
    async with CachedSession("s", journal=tmp_path / "a.db") as session:
        for call in (session.add_items, lambda items: session.replace_items((), items)):
            with pytest.raises(InvalidArgument, match="role") as refused:
                await call(wrong)
            assert "hello" not in str(refused.value).replace("'content': 'hello'", "")
        assert await session.get_items() == []
        await session.add_items(item for item in messages("from a generator"))
        assert contents(await session.get_items()) == ["from a generator"]
