"""The index of tool calls. A lookup finds the append that makes a call by the id of the call. An
answer of the call joins the turn of this append.

A row has the place of the append in the history. The row is not deleted if the item of the call is
removed, and two ids may have one hash. So a lookup reads the items of the append.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby, islice

import orjson

from cached_session.history.ops import TurnKey
from cached_session.history.tool_calls import ToolBatch, read_batch
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables.states import BY_PLACE, PLACE

__all__ = ["STORE", "answered_calls", "call_rows", "index_all", "turn_of_calls"]

SIGNS = ("call", "tool", "program", "approval")
"""Every payload that makes or answers a call contains one of these words, so that other payloads
are not decoded. A regular expression for them takes 15 times as long."""
CANDIDATES_MOST = 64
"""Maximum number of appends that a lookup reads, newest first. More than a few appends have
the same call id only if a model numbers its calls, or if ids were forged."""
STORE = f"INSERT OR IGNORE INTO calls VALUES ({', '.join('?' * 8)})"
"""The statement that stores a row of `call_rows`."""
PLACES = (
    f"SELECT {PLACE} FROM calls WHERE session = ? AND call = ? "
    f"ORDER BY {', '.join(f'{column} DESC' for column in PLACE.split(', '))}"
)
"""The places of the appends that make a call, newest first, read from the primary key."""

Place = tuple[int, str, int, int, str, int]
"""The values of the columns `PLACE`."""


def call_rows(
    session: int, place: Place, payloads: Iterable[str]
) -> list[tuple[int, int, int, str, int, int, str, int]]:
    """Return the rows of the table `calls` for the visible payloads of an append."""
    hashes = dict.fromkeys(map(_hash, _read_calls(payloads).made))
    return [(session, call, *place) for call in hashes]


def answered_calls(payloads: Iterable[str]) -> tuple[str, ...]:
    """Return the ids of the calls of earlier batches that these payloads answer."""
    return _read_calls(payloads).answered


def _read_calls(payloads: Iterable[str]) -> ToolBatch:
    items = []
    for payload in payloads:
        if any(sign in payload for sign in SIGNS):
            try:
                items.append(orjson.loads(payload))
            except ValueError:
                # The exact codec stores such an item. Its calls and answers are not found.
                continue
    return read_batch(items) if items else ToolBatch()


def index_all(conn: sqlite3.Connection) -> None:
    """Store the calls of all items of a journal that has no rows of calls yet."""
    columns = f"session, {PLACE}, CAST(payload AS BLOB)"
    for session, *place, payload in conn.execute(f"SELECT {columns} FROM items"):
        rows = call_rows(session, tuple(place), [payload.decode(errors="replace")])
        if rows:
            conn.executemany(STORE, rows)


def turn_of_calls(
    conn: sqlite3.Connection, session: int, call_ids: Sequence[str]
) -> TurnKey | None:
    """Return the turn of the newest visible call with one of these ids; None if there is no such
    call."""
    wanted = frozenset(call_ids)
    for place in islice(_places(conn, session, wanted), CANDIDATES_MOST):
        rows = conn.execute(
            f"SELECT CAST(payload AS BLOB), codec FROM items WHERE {BY_PLACE}", (session, *place)
        ).fetchall()
        if not wanted.isdisjoint(read_batch(decode_rows(rows)).made):
            return TurnKey(*place[:3])
    return None


def _places(conn: sqlite3.Connection, session: int, call_ids: Iterable[str]) -> Iterator[Place]:
    """Yield the places of the appends that make one of these calls, newest first, each once."""
    hashes = sorted(map(_hash, call_ids))
    found = [conn.execute(PLACES, (session, call)) for call in hashes]
    return (place for place, _ in groupby(merge(*found, reverse=True)))


def _hash(call_id: str) -> int:
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
