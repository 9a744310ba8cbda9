from __future__ import annotations

import asyncio
import json
import math
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from hypothesis import example, given
from hypothesis import strategies as st

from cached_session import (
    CachedSession,
    ImportReport,
    import_dakera_export,
    import_jsonl,
    import_sqlite_session,
)
from cached_session.errors import CachedSessionError, InvalidArgument
from cached_session.journal.sqlite.codec import decode_rows, encode_item
from cached_session.moving import jsonl
from cached_session.moving.direct_items import TAG, DirectItems
from tests.fuzz.test_fuzz import JSON, LEAF, VALID
from tests.hypothesis_profiles import examples

TEXT = st.text(st.characters(), max_size=20)
"""Including lone surrogates."""
ANYTHING = st.recursive(
    LEAF | TEXT | st.binary(max_size=5) | st.complex_numbers() | st.just(...) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(TEXT | st.integers() | st.none() | st.booleans(), inner, max_size=3)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)


def as_json(value: Any) -> Any:
    """Convert a value as JSON does: tuples become lists. Raise ValueError for values without a JSON
    form."""
    if isinstance(value, (list, tuple)):
        return [as_json(inner) for inner in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(value)
        return {key: as_json(inner) for key, inner in value.items()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(value)


@examples(100)
@given(item=ANYTHING)
def test_an_item_is_returned_unchanged_or_refused(item: Any) -> None:
    """Any value given as an item is returned with its JSON types, or is refused by one error of
    ours."""
    try:
        text, codec = encode_item(item)
    except InvalidArgument:
        try:
            wanted = as_json(item)
        except ValueError:
            return
        raise AssertionError(f"refused without need: {wanted!r}") from None
    (found,) = decode_rows([(text.encode(), codec)])
    assert json.dumps(found) == json.dumps(as_json(item))


@examples(100)
@given(
    rows=st.lists(
        st.tuples(
            st.binary(max_size=30)
            | JSON.map(lambda value: json.dumps(value).encode())
            | st.sampled_from([b"1,2", b"]", b"[", b'{"a":1}', b"\xff", b'"\\ud800"', b"NaN"]),
            st.integers(0, 3),
        ),
        max_size=6,
    )
)
def test_no_stored_text_breaks_a_read(rows: list[tuple[bytes, int]]) -> None:
    """Rows with any bytes and any codec: those that are JSON are returned, and the others are left
    out without an error."""
    each = [decode_rows([row]) for row in rows]
    assert all(len(found) <= 1 for found in each)
    assert repr(decode_rows(rows)) == repr([item for found in each for item in found])


def _mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw a file with a few replaced pieces, cut anywhere."""
    mangled = bytearray(data)
    for where, piece in draw(
        st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=40)), max_size=6)
    ):
        mangled[where % len(mangled) : where % len(mangled) + len(piece)] = piece
    return bytes(mangled[: draw(st.none() | st.integers(0, len(mangled)))])


LINES = b"\n".join(
    [
        b'\xef\xbb\xbf{"role":"user","content":"a"}',
        b"",
        b'{"role":"assistant","content":"\\ud83d\\ude00"}\r',
        b'{"n":1e400,"big":123456789012345678901234567890}',
        b"null",
        b"[" * 50 + b"]" * 50,
    ]
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Draw mangled JSON lines, or any other bytes."""
    return draw(st.binary(max_size=200)) if draw(st.booleans()) else _mangled(draw, LINES)


@st.composite
def exports(draw: st.DrawFn) -> bytes:
    """Draw a mangled export of a server with our memories, a direct session's and foreign ones."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            found.append(draw(st.sampled_from(VALID)))
        elif kind == 1:
            found.append(
                {
                    "id": draw(TEXT),
                    "content": draw(TEXT | st.just('{"role":"user","content":"x"}')),
                    "tags": draw(st.sampled_from([[TAG], [], None, "x"])),
                    "metadata": {"seq": draw(LEAF)},
                    "created_at": draw(LEAF),
                }
            )
        else:
            found.append(draw(JSON))
    return _mangled(draw, b"\n".join(json.dumps(memory).encode() for memory in found) + b"\n")


def import_twice(kind: Any, data: bytes, suffix: str) -> ImportReport | None:
    """Import a file twice into a journal, and return None if it was refused. Only our errors are
    raised, the added items are readable, and nothing is added twice."""

    async def carry() -> ImportReport | None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"source{suffix}"
            path.write_bytes(data)
            async with CachedSession("talk", journal=":memory:") as session:
                try:
                    report: ImportReport = await kind(session, path)
                    items = await session.get_items()
                    again: ImportReport = await kind(session, path)
                except CachedSessionError:
                    return None
                assert again.added == 0
                assert repr(await session.get_items()) == repr(items)
                return report

    return asyncio.run(carry())


@examples(30)
@example(data=LINES)
@given(data=lines())
def test_no_file_of_lines_breaks_an_import(data: bytes) -> None:
    """In any bytes as JSON lines, each line is an item or counted as unreadable."""
    report = import_twice(import_jsonl, data, ".jsonl")
    assert report is not None
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert report.added + report.unreadable == sum(1 for _ in jsonl.read_lines(file.name))


@examples(30)
@given(data=exports())
def test_no_server_export_breaks_an_import(data: bytes) -> None:
    """From any bytes as an export, our items and a direct session's are imported, and the rest is
    counted."""
    import_twice(import_dakera_export, data, ".jsonl")


def _database() -> bytes:
    async def fill(path: Path) -> None:
        theirs = SQLiteSession("talk", path)
        await theirs.add_items([{"role": "user", "content": f"{n} " + "x" * 50} for n in range(40)])
        theirs.close()

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "theirs.db"
        asyncio.run(fill(path))
        with closing(sqlite3.connect(path, isolation_level=None)) as conn:
            conn.execute("PRAGMA journal_mode = DELETE")
        return path.read_bytes()


DATABASE = _database()


Cuts = list[tuple[int, bytes]]


def _cut(data: bytes, cuts: Cuts, length: int | None) -> bytes:
    """Draw a file with a few replaced pieces, cut somewhere. It is represented by the changes,
    because the whole content would be unreadable."""
    mangled = bytearray(data)
    for where, piece in cuts:
        mangled[where % len(mangled) : where % len(mangled) + len(piece)] = piece
    return bytes(mangled[:length])


@examples(30)
@example(cuts=[], length=None)
@example(cuts=[(3661, b"\x80")], length=None)
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=40)), max_size=6
    ),
    length=st.none() | st.integers(0, 1 << 16),
)
def test_no_database_breaks_an_import(cuts: Cuts, length: int | None) -> None:
    """From a database with any bytes replaced the items are imported, or it is refused by an error
    of ours that names it. The file is unchanged."""
    data = _cut(DATABASE, cuts, length)
    report = import_twice(import_sqlite_session, data, ".db")
    if data == DATABASE:
        assert report is not None
        assert report.added == 40


def _direct(**more: Any) -> dict[str, Any]:
    """Draw an item of a direct session with an unusual part."""
    return {"id": "m", "content": "{}", "tags": [TAG], "metadata": {"seq": 1}, **more}


FIELDS = ["id", "content", "tags", "metadata", "created_at", "seq"]
LISTED = st.dictionaries(st.sampled_from(FIELDS), JSON | TEXT, max_size=6)


@example(memories=[_direct(created_at=strange) for strange in ("\ud800", 1 << 70, math.nan, None)])
@examples(100)
@given(memories=st.lists(LISTED, max_size=5))
def test_no_memory_of_a_direct_session_breaks_the_import(memories: list[dict[str, Any]]) -> None:
    """A memory in a listing is either taken as an item or left out."""
    items = DirectItems()
    try:
        added = sum(items.add(memory) for memory in memories)
        assert len(items) <= added
        assert len(list(items.rows())) <= len(items)
    finally:
        items.close()
