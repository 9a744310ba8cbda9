"""Tool calls: which append makes a call, so that the turn of an answered call is found by its id.

A row is an index entry: it stays if the item of the call is removed, and two ids may have one hash.
So a lookup reads the items of the append.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterable, Sequence

import orjson

from cached_session.history.ops import Dot, TurnKey
from cached_session.history.tool_calls import read_batch
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables.states import BY_DOT, BY_PLACE, PLACE

__all__ = ["call_rows", "index_all", "turn_of_calls"]

MAY_CALL = re.compile("call|tool|program|approval", re.IGNORECASE)
"""Matches every payload that makes a call, so that other payloads are not decoded."""
CANDIDATES_MOST = 64
"""Maximum number of appends that a lookup reads for one id. More appends than a few have the same
call id only if somebody forged them."""


def call_rows(session: int, dot: Dot, payloads: Iterable[str]) -> list[tuple[int, int, str, int]]:
    """Return the rows of the table `calls` for the visible payloads of an append."""
    items = []
    for payload in payloads:
        if MAY_CALL.search(payload):
            try:
                items.append(orjson.loads(payload))
            except ValueError:
                # The exact codec stores such an item. Its calls are not found by rule 2.
                continue
    hashes = dict.fromkeys(map(_hash, read_batch(items).made)) if items else {}
    return [(session, call, *dot) for call in hashes]


def index_all(conn: sqlite3.Connection) -> None:
    """Store the calls of all items of a journal that has no rows of calls yet."""
    found = conn.execute("SELECT session, writer, counter, CAST(payload AS BLOB) FROM items")
    for session, writer, counter, payload in found:
        rows = call_rows(session, Dot(writer, counter), [payload.decode(errors="replace")])
        conn.executemany("INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?)", rows)


def turn_of_calls(
    conn: sqlite3.Connection, session: int, call_ids: Sequence[str]
) -> TurnKey | None:
    """Return the turn of the newest visible call with one of these ids; None if there is none."""
    wanted = frozenset(call_ids)
    places = {
        place
        for call in call_ids
        for writer, counter in conn.execute(
            "SELECT writer, counter FROM calls WHERE session = ? AND call = ? LIMIT ?",
            (session, _hash(call), CANDIDATES_MOST),
        ).fetchall()
        for place in conn.execute(
            f"SELECT {PLACE} FROM ops WHERE {BY_DOT}", (session, writer, counter)
        )
    }
    for place in sorted(places, reverse=True):
        rows = conn.execute(
            f"SELECT CAST(payload AS BLOB), codec FROM items WHERE {BY_PLACE}", (session, *place)
        ).fetchall()
        if not wanted.isdisjoint(read_batch(decode_rows(rows)).made):
            return TurnKey(*place[:3])
    return None


def _hash(call_id: str) -> int:
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
