"""Journals of formats 1 and 2, written by the code of their time, with what that code read in them.

A file has sessions in every state: acknowledged, sent, unsent and parked operations, pops, clears,
operations of other devices out of order and in part, gaps, memories to delete, a claim, an import.
`journal-N.json` was recorded before the migration existed. These files are never regenerated.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cached_session import SessionCache
from cached_session.history.ops import GONE, Operation
from cached_session.history.session_ref import SessionRef
from cached_session.journal import open_connection
from cached_session.journal.recovery.find_damage import find_problems
from cached_session.journal.sqlite.db_errors import is_damage
from cached_session.journal.tables import calls, migrations, outbox, schema, search_index
from cached_session.journal.tables.sessions import numbered_sessions
from cached_session.remote.wire import memories_of
from tests.journal_rows import OPS

HERE = Path(__file__).parent
FORMATS = (1, 2)
MOVED = ("ops", "waiting", "acked", "parts", "calls")
STATUS = ("items", "pending", "parked", "absent", "incomplete", "conflicts", "unreadable")
UNSENT = "SELECT seq, session FROM waiting ORDER BY seq"


def recorded(version: int) -> Any:
    return json.loads((HERE / f"journal-{version}.json").read_text(encoding="ascii"))


def write_journal(path: Path, version: int) -> Path:
    """Write the golden journal of a format to a path."""
    path.write_bytes(gzip.decompress((HERE / f"journal-{version}.db.gz").read_bytes()))
    return path


def migrated(path: Path, version: int) -> sqlite3.Connection:
    """Open the golden journal of a format, which migrates it."""
    conn = open_connection.connect(str(write_journal(path, version)), 1000, "normal")
    schema.prepare(conn, str(path))
    return conn


@pytest.mark.parametrize("version", FORMATS)
async def test_a_user_sees_the_same_after_the_migration(tmp_path: Path, version: int) -> None:
    """Items, entries, parked operations, status and search results are those of the old code. Each
    append is the head of its own turn."""
    path = write_journal(tmp_path / "agent.db", version)
    async with SessionCache(path) as cache:
        for session_id, expected in recorded(version)["sessions"].items():
            session = cache.session(session_id)
            assert await session.get_items() == expected["items"]
            entries = [asdict(entry) for entry in await session.entries()]
            assert [entry.pop("item") for entry in entries] == expected["items"]
            for entry in entries:
                head = f"{entry['stamp']:016x}-{entry['writer']}-{entry['counter']}"
                assert entry.pop("turn") == head
            assert entries == expected["entries"]
            parked = [
                [one.session_id, *one.dot, one.kind, one.error, one.said_at, one.items]
                for one in await session.parked()
            ]
            assert parked == expected["parked"]
            assert [entry.item for entry in await session.search("the")] == expected["found"]
            status = session.status()
            names = [*STATUS, "last_server", "hydrated"]
            assert {name: getattr(status, name) for name in names} == expected["status"]
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (schema.FORMAT,)
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_an_early_form_of_format_3_is_migrated(tmp_path: Path) -> None:
    """Development versions wrote format 3 with a table of items. Turns and removed items of such a
    file stay as they are."""
    path = tmp_path / "agent.db"
    path.write_bytes(gzip.decompress((HERE / "journal-3-early.db.gz").read_bytes()))
    expected = json.loads((HERE / "journal-3-early.json").read_text(encoding="ascii"))
    async with SessionCache(path) as cache:
        for session_id, before in expected.items():
            session = cache.session(session_id)
            assert await session.get_items() == before["items"]
            assert [asdict(entry) for entry in await session.entries()] == before["entries"]
    with closing(sqlite3.connect(path)) as conn:
        assert schema.identify(conn, str(path))
        assert find_problems(conn, is_current=True) == []


@pytest.mark.parametrize("version", FORMATS)
def test_operations_and_bookkeeping_stay_the_same(tmp_path: Path, version: int) -> None:
    """Each operation keeps its number, dot, state, error and digest. The tables of gaps, clears,
    claims and deletions are unchanged, and a check of the file finds no problem."""
    expected = recorded(version)
    with closing(migrated(tmp_path / "agent.db", version)) as conn:
        rows = conn.execute(
            f"SELECT writer, counter, state, error, digest, resent FROM {OPS} ORDER BY seq"
        ).fetchall()
        before = [
            [*row[:3], None if row[3] == "sent again" else row[3], row[4], row[3] == "sent again"]
            for row in expected["operations"]
        ]
        assert [list(row) for row in rows] == before
        assert conn.execute("SELECT DISTINCT version, branch, key_id FROM ops").fetchall() == [
            (1, "", "")
        ]
        for table, before in expected["tables"].items():
            rows = conn.execute(f"SELECT * FROM {table}")
            now = [
                [cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in rows
            ]
            if table == "frontier":
                now = [row[:-1] for row in now if row[-1] == 0]
            if version == 1 and table == "meta":
                now.remove([search_index.KEY, "0"])
            assert now == before, table
        assert find_problems(conn, is_current=True) == []


def _json(cell: object) -> object:
    return cell.hex() if isinstance(cell, bytes) else cell


@pytest.mark.parametrize("version", FORMATS)
def test_unsent_operations_are_sent_as_before(tmp_path: Path, version: int) -> None:
    """They stay operations of wire version 1: their digests are those of their content, and their
    memories are those that the old code would have sent."""
    expected = recorded(version)["memories"]
    with closing(migrated(tmp_path / "agent.db", version)) as conn:
        names = numbered_sessions(conn)
        found = []
        for seq, number in conn.execute(UNSENT).fetchall():
            (outgoing,) = outbox.load(conn, "seq = ?", (seq,))
            session = SessionRef.of(names[number])
            if GONE not in outgoing.op.payloads:
                assert outgoing.op.digest(session.key) == outgoing.digest
            found.append([seq, _hash(outgoing.op, outgoing.digest, names[number])])
    assert found == expected


def _hash(op: Operation, digest: str, session_id: str) -> str:
    """Return a hash of the memories of an operation, without the text for people."""
    memories = [
        {name: value for name, value in memory.items() if name != "content"}
        for memory in memories_of(op, digest, session_id)
    ]
    return hashlib.sha256(json.dumps(memories).encode()).hexdigest()


@pytest.mark.parametrize("version", FORMATS)
def test_calls_of_old_items_are_found(tmp_path: Path, version: int) -> None:
    """The output of an old call joins the turn of the call. So does one of another device."""
    with closing(migrated(tmp_path / "agent.db", version)) as conn:
        for call_id in ("call_1", "call_2", "call_3"):
            turn = calls.turn_of_calls(conn, 1, [call_id])
            assert turn is not None
            (text,) = conn.execute(
                "SELECT body FROM ops WHERE stamp = ? AND writer = ? AND counter = ?", turn
            ).fetchone()
            assert f'"call_id":"{call_id}","name"' in text
        assert calls.turn_of_calls(conn, 1, ["call_4"]) is None


@pytest.mark.parametrize("version", FORMATS)
def test_row_numbers_are_not_used_twice(tmp_path: Path, version: int) -> None:
    """The next operation has a number above all numbers ever used, even if none is left."""
    path = write_journal(tmp_path / "agent.db", version)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE sqlite_sequence SET seq = 1000 WHERE name = 'ops'")
        conn.execute("DELETE FROM ops")
        schema.prepare(conn, str(path))
        assert conn.execute("SELECT seq, session, live FROM ops").fetchall() == [(1000, 0, 0)]
        assert outbox.newest(conn) == 1000
        assert find_problems(conn, is_current=True) == []


@pytest.mark.parametrize("rows", [1, 3, 10])
def test_the_size_of_the_slices_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Rows are moved in slices, each row once."""
    with closing(migrated(tmp_path / "whole.db", 2)) as conn:
        expected = [conn.execute(f"SELECT * FROM {table}").fetchall() for table in MOVED]
    monkeypatch.setattr(migrations, "SLICE", rows)
    with closing(migrated(tmp_path / "slices.db", 2)) as conn:
        assert [conn.execute(f"SELECT * FROM {table}").fetchall() for table in MOVED] == expected


def test_damaged_keys_do_not_make_the_migration_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no row is up to the end of a slice, the migration reports the file as damaged."""
    monkeypatch.setattr(migrations, "SLICE", 2)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute("CREATE TABLE old (key)")
        conn.execute("CREATE TABLE new (key)")
        conn.executemany("INSERT INTO old VALUES (?)", [(None,), (None,), (1,)])
        with pytest.raises(sqlite3.DatabaseError, match="malformed rows of table old") as caught:
            migrations._move(conn, "old", "key", "new SELECT key")
    assert is_damage(caught.value)


def test_the_migration_of_a_large_file_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message before, with the size, and one after, with the duration. A small file is not
    worth a message."""
    caplog.set_level(logging.INFO, "cached_session.journal")
    migrated(tmp_path / "small.db", 2).close()
    assert caplog.messages == []
    monkeypatch.setattr(migrations, "LARGE_BYTES", 1 << 16)
    migrated(tmp_path / "large.db", 1).close()
    before, after = caplog.messages
    assert "large.db of 0 MB from format 1 to format 3" in before
    assert "large.db to format 3 in " in after
