"""A journal with any bytes replaced: its session works again, or raises a clear error."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cached_session import CachedSession, JournalError, SyncOptions
from cached_session.journal.tables import outbox
from tests.hypothesis_profiles import examples

TRIES = 6
"""Calls until one succeeds: damage is found page by page, and each page may fail another call."""
OPTIONS = SyncOptions(durability="normal", busy_timeout=0.5)
Cuts = list[tuple[int, bytes]]


def text_message(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


def _acknowledge(conn: sqlite3.Connection) -> None:
    seqs = [outgoing.seq for outgoing in outbox.load(conn, "seq <= 5", ())]
    outbox.acknowledge(conn, seqs)
    outbox.park(conn, 6, "refused")


def _used() -> dict[str, bytes]:
    """Make the files of a journal with every kind of row: open, with its last items in the log, and
    closed."""

    async def use(path: Path) -> dict[str, bytes]:
        async with CachedSession("s", journal=path, options=OPTIONS) as session:
            for number in range(12):
                await session.add_items(text_message(f"{number} {'x' * 300}", f"{number}b"))
            await session.pop_item()
            await session.add_items(text_message("y" * 9000))
        async with (
            CachedSession("s", journal=path, options=OPTIONS) as session,
            CachedSession("other", journal=path, options=OPTIONS) as other,
        ):
            await other.add_items(text_message("cleared"))
            await other.clear_session()
            await session.add_items(text_message("sent"))
            await session._engine.journal.write(_acknowledge)
            await session.add_items(text_message("last"))
            used = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in LOGS}
            used["open"] = path.read_bytes()
        used["closed"] = path.read_bytes()
        return used

    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(use(Path(directory) / "j.db"))


LOGS = ["-wal", "-shm"]
USED = _used()
WORDS = [b'"last"', b'"sent"', b'"0b"', b'"11 x', b'"yyyyyy']
HEADER = 100
"""The bytes that identify a journal among other files."""


def _mangled(data: bytes, cuts: Cuts, length: int | None) -> bytes:
    mangled = bytearray(data)
    for where, piece in cuts:
        start = where % len(mangled)
        mangled[start : start + len(piece)] = piece[: len(mangled) - start]
    return bytes(mangled if length is None else mangled[: length % (len(data) + 1)])


def _bytes(path: Path) -> bytes:
    """Return a journal and its log, because SQLite may move data between them."""
    log = path.with_name(f"{path.name}-wal")
    return path.read_bytes() + (log.read_bytes() if log.exists() else b"")


async def _retried(call: Any) -> Any:
    """Return the result of a call, retried as often as damage may require."""
    for attempt in range(TRIES):
        try:
            return await call()
        except JournalError:
            if attempt + 1 == TRIES:
                raise
    raise AssertionError


async def _works_again(path: Path) -> bool:
    """Return whether each kind of call works in the end, and shows a new item."""
    session = CachedSession("s", journal=path, options=OPTIONS)
    try:
        try:
            await _retried(lambda: session.add_items(text_message("on")))
        except JournalError:
            return False
        found = await _retried(session.get_items)
        if found[-1:] != text_message("on"):
            # SQLite has stored the item on a page that is damaged: the report names the loss.
            assert "unsent operation" in (session.status().salvaged or "")
            await session.add_items(text_message("on"))
            found = await session.get_items()
        assert found[-1] == text_message("on")[0]
        for call in (session.entries, session.parked, lambda: session.search("last")):
            await _retried(call)
        session.status()
        await _retried(
            lambda: session._engine.journal.read(
                lambda c: outbox.load(c, "seq IN (SELECT seq FROM waiting)", ())
            )
        )
        assert await _retried(session.pop_item) == text_message("on")[0]
        await _retried(session.clear_session)
        await session.add_items(text_message("after"))
        assert await session.get_items() == text_message("after")
        return True
    finally:
        await session.close()


@pytest.fixture(scope="module", autouse=True)
def quiet_log() -> Iterator[None]:
    """Silence the log, because damage is detected and logged thousands of times."""
    log = logging.getLogger("cached_session")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


CUTS = st.lists(
    st.tuples(st.integers(0, 1 << 18), st.binary(min_size=1, max_size=64)), min_size=1, max_size=6
)


@examples(50)
@example(which="closed", cuts=[(223466, b"\x01\x01")], length=None)  # the schema: another column
@example(which="closed", cuts=[(223468, b"0\x80")], length=None)  # the schema: no text
@example(which="closed", cuts=[(223468, b"\x80")], length=None)  # a name that is not text
@example(which="closed", cuts=[(60, bytes(4))], length=None)  # an unknown format
@example(which="closed", cuts=[(19679, b"\x00\x80\x00\x81")], length=None)  # a row's number
@example(which="closed", cuts=[(24198, b"\x00\x00")], length=None)  # an index of other rows
@example(which="closed", cuts=[(20175, b"\x00\x04")], length=None)  # an invalid state
@given(
    which=st.sampled_from(["closed", "open", *LOGS]),
    cuts=CUTS,
    length=st.none() | st.integers(0, 1 << 18),
)
def test_a_session_over_replaced_bytes_works_again_or_is_refused(
    which: str, cuts: Cuts, length: int | None
) -> None:
    """Bytes of a journal, of its log or of the log's index are replaced, or the end is missing.
    Each call of a session raises only our errors, and after a few of them works again, over a sound
    file if damage was detected. Otherwise the file is not recognised as a journal, and its contents
    are not changed."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "j.db"
        files = {**USED, which: _mangled(USED[which], cuts, length)}
        path.write_bytes(files["closed" if which == "closed" else "open"])
        for suffix in LOGS if which != "closed" else []:
            Path(f"{path}{suffix}").write_bytes(files[suffix])
        before = _bytes(path)
        if asyncio.run(_works_again(path)):
            is_fresh = any(".damaged-" in found.name for found in path.parent.iterdir())
            with closing(sqlite3.connect(path)) as conn:
                assert not is_fresh or conn.execute("PRAGMA integrity_check").fetchall() == [
                    ("ok",)
                ]
        else:
            assert path.read_bytes()[:HEADER] != USED["closed"][:HEADER]
            assert {word for word in WORDS if word in _bytes(path)} == {
                word for word in WORDS if word in before
            }
