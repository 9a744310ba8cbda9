from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from cached_session.errors import CachedSessionError
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind, Operation
from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import inbox
from cached_session.journal.tables.gaps import due_gaps, refresh_gaps
from cached_session.journal.tables.schema import prepare
from cached_session.journal.tables.sessions import all_sessions
from cached_session.remote.wire import Placeholder, Unreadable, decode, memories_of
from tests.hypothesis_profiles import examples

KEY = session_key("talk")
LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "0", "-1", "append", "pop", "clear", "void", "f" * 16, "\ud800", "a" * 8]),
)
JSON = st.recursive(
    LEAF, lambda j: st.lists(j, max_size=3) | st.dictionaries(st.text(max_size=5), j, max_size=3)
)


def _valid() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for counter, (kind, payloads) in enumerate(
        [
            (Kind.APPEND, ('{"role":"user","content":"a"}', '{"role":"user","content":"b"}')),
            (Kind.APPEND, (orjson.dumps({"content": "long " * 6000}).decode(),)),
        ],
        1,
    ):
        op = Operation(Dot("abcdefgh", counter), kind, 1 << 60 >> 8, 1_700_000_000_000, payloads)
        found += memories_of(op, op.digest(KEY), "talk")
    return found


VALID = _valid()
FIELDS = sorted({field for memory in VALID for field in memory["metadata"]} | {"cs_h"})


@st.composite
def mangled_memories(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a memory of ours in which some fields have any value."""
    memory = dict(draw(st.sampled_from(VALID)))
    metadata = dict(memory["metadata"])
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        metadata[field] = draw(JSON)
    memory["metadata"] = metadata if draw(st.integers(0, 9)) else draw(JSON)
    if not draw(st.integers(0, 3)):
        memory["id"] = draw(JSON)
    return memory


@examples(75)
@given(memories=st.lists(mangled_memories(), max_size=12))
def test_no_listed_memory_breaks_the_journal(memories: list[dict[str, Any]]) -> None:
    """Each listed memory is decoded, refused as unreadable or ignored. A whole page of them is
    applied without an error, keeps the database sound, and stays in one session's tables."""
    parts, voids = [], []
    for memory in memories:
        try:
            found = decode(memory, KEY)
        except Unreadable:
            continue
        if isinstance(found, Part):
            parts.append(found)
        elif isinstance(found, Placeholder):
            voids.append(found.dot)
    conn = sqlite3.connect(":memory:", isolation_level=None)
    prepare(conn, ":memory:")
    tables = conn.execute("SELECT name FROM sqlite_master ORDER BY 1").fetchall()
    conn.execute("BEGIN")
    inbox.apply_page(conn, SessionRef.of("talk"), parts, voids, 1_700_000_000_000)
    refresh_gaps(conn, SessionRef.of("talk"), 1_700_000_000_000)
    due_gaps(conn, SessionRef.of("talk"), 1_700_000_000_000, 200)
    conn.execute("COMMIT")
    assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert conn.execute("SELECT name FROM sqlite_master ORDER BY 1").fetchall() == tables
    assert list(all_sessions(conn)) == ["talk"]
    conn.close()


@example(cuts=[(62117, b" \x80")], length=None)
@examples(75)
@given(
    cuts=st.lists(
        st.tuples(st.integers(0, 1 << 17), st.binary(min_size=1, max_size=64)), max_size=8
    ),
    length=st.none() | st.integers(0, 1 << 17),
)
def test_no_damaged_file_breaks_the_opening(
    cuts: list[tuple[int, bytes]], length: int | None
) -> None:
    """A journal with any bytes replaced opens, or is refused by an error of SQLite's or of ours:
    the call ends and raises nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "j.db"
        conn = sqlite3.connect(path, isolation_level=None)
        prepare(conn, str(path))
        conn.close()
        data = bytearray(path.read_bytes())
        for where, piece in cuts:
            data[where % len(data) : where % len(data) + len(piece)] = piece
        path.write_bytes(data if length is None else data[:length])
        conn = sqlite3.connect(path, isolation_level=None)
        try:
            prepare(conn, str(path))
        except (sqlite3.Error, CachedSessionError):
            pass  # refused with an error
        finally:
            conn.close()
