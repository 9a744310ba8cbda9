"""The index of tool calls. A lookup finds the append that makes a call by the id of the call. An
answer of the call joins the turn of this append.

A row is not deleted if the item of the call is removed, and two ids may have one hash. So a lookup
reads the items of the append.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence

import orjson

from cached_session.history.ops import TurnKey
from cached_session.history.tool_calls import ToolBatch, read_batch
from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables.payloads import visible_payloads
from cached_session.journal.tables.states import PLACE

__all__ = ["STORE", "answered_calls", "call_rows", "index_all", "turn_of_calls"]

SIGNS = ("call", "tool", "program", "approval")
"""Every payload that makes or answers a call contains one of these words, so that other payloads
are not decoded. A regular expression for them takes 15 times as long."""
CANDIDATES_MOST = 64
"""Maximum number of appends that a lookup reads for one id, the latest applied first. More than a
few appends have the same call id only if a model numbers its calls, or if ids were forged."""
STORE = "INSERT OR IGNORE INTO calls VALUES (?, ?, ?)"
"""The statement that stores a row of `call_rows`."""
NEWEST = (
    "SELECT seq FROM calls WHERE session = ? AND call = ? "
    f"ORDER BY seq DESC LIMIT {CANDIDATES_MOST}"
)
"""The appends that make a call, the latest applied first."""
CANDIDATE = f"SELECT {PLACE}, CAST(body AS BLOB), codec, count, live FROM ops"


def call_rows(session: int, seq: int, payloads: Iterable[str]) -> list[tuple[int, int, int]]:
    """Return the rows of the table `calls` for the visible payloads of an append."""
    hashes = dict.fromkeys(map(_hash, _read_calls(payloads).made))
    return [(session, call, seq) for call in hashes]


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
    for session, seq, body, count, live in conn.execute(
        "SELECT session, seq, CAST(body AS BLOB), count, live FROM ops WHERE live > 0"
    ):
        texts = [text.decode(errors="replace") for _, text in visible_payloads(body, count, live)]
        rows = call_rows(session, seq, texts)
        if rows:
            conn.executemany(STORE, rows)


def turn_of_calls(
    conn: sqlite3.Connection, session: int, call_ids: Sequence[str]
) -> TurnKey | None:
    """Return the turn of the newest visible call with one of these ids; None if there is no such
    call."""
    wanted = frozenset(call_ids)
    seqs = {seq for call in map(_hash, wanted) for (seq,) in conn.execute(NEWEST, (session, call))}
    found = [conn.execute(f"{CANDIDATE} WHERE seq = ?", (seq,)).fetchone() for seq in seqs]
    for *place, body, codec, count, live in sorted(found, reverse=True)[:CANDIDATES_MOST]:
        rows = [(text, codec) for _, text in visible_payloads(body, count, live)]
        if not wanted.isdisjoint(read_batch(decode_rows(rows)).made):
            return TurnKey(*place[:3])
    return None


def _hash(call_id: str) -> int:
    digest = hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
