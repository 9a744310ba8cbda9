"""Journals of format 1, made with its frozen schema. Their operations have wire version 1."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from cached_session.history.ids import session_key
from cached_session.history.ops import Operation
from cached_session.journal.sqlite.codec import codec_of

__all__ = ["begin"]

GOLDEN = Path(__file__).parents[1] / "golden" / "schema-1.json"


def begin(path: Path, name: str, appends: Sequence[Operation]) -> None:
    """Create a journal of format 1 with unsent appends of one writer in one session."""
    schema = _schema()
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for statement in schema["sql"].values():
            conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {schema['application_id']}")
        conn.execute(f"PRAGMA user_version = {schema['user_version']}")
        if appends:
            _fill(conn, name, appends)


def _fill(conn: sqlite3.Connection, name: str, appends: Sequence[Operation]) -> None:
    writer, last = appends[-1].dot
    stamp, said_ms = appends[-1].stamp, appends[-1].said_ms
    count = sum(len(op.payloads) for op in appends)
    conn.execute(
        "INSERT INTO sessions (id, session_id, stamp, last_writer, items, created_ms) "
        "VALUES (1, ?, ?, ?, ?, 0)",
        (name, stamp, writer, count),
    )
    conn.execute("INSERT INTO frontier VALUES (1, ?, ?, ?, ?)", (writer, last, stamp, said_ms))
    for op in appends:
        size, digest = sum(map(len, op.payloads)), op.digest(session_key(name))
        conn.execute(
            "INSERT INTO ops (session, writer, counter, kind, stamp, said_ms, count, live, bytes, "
            "private, digest, state) VALUES (1, ?, ?, 'append', ?, ?, ?, ?, ?, 0, ?, 0)",
            (*op.dot, op.stamp, op.said_ms, *[len(op.payloads)] * 2, size, digest),
        )
        for index, payload in enumerate(op.payloads):
            conn.execute(
                "INSERT INTO items VALUES (1, ?, ?, ?, ?, ?, ?)",
                (op.stamp, *op.dot, index, payload, codec_of(payload)),
            )


@cache
def _schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    # A table precedes its indexes.
    found["sql"] = dict(sorted(found["sql"].items(), key=lambda row: "CREATE INDEX" in row[1]))
    return found
