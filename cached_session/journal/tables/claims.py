"""Confirmed pops under way: an item is reserved before the server is asked, and settled after."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import IntEnum

from cached_session.history.ops import Dot, ItemRef
from cached_session.journal.sqlite.tracked_connection import count_queued
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.row_bounds import check_memories
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from cached_session.journal.tables.writes import Author, last_item, pop_ref

__all__ = [
    "Claim",
    "Doubt",
    "confirm",
    "is_open",
    "is_parked",
    "note",
    "open_claims",
    "put_back",
    "release",
    "reserve",
]


class Doubt(IntEnum):
    """How a claim stands."""

    RESERVED = 0
    """The server has not been asked: nothing is in doubt."""
    ASKED = 1
    """The request may have left: the item may be ours."""
    LOST = 2
    """The server did not give it to us: another device has it, or the server has lost it."""
    ABSENT = 3
    """Asked, without an answer, and the memory was not there when looked for: once is not enough,
    it may have been a node that lags."""


@dataclass(frozen=True)
class Claim:
    """One item that this journal wants for itself."""

    ref: ItemRef
    row: tuple[bytes, int]
    """Its payload and codec."""
    is_ours: bool
    """Whether no other device can have seen the item: it is popped already."""
    is_in_flight: bool
    """Whether the server may or may not hold the item yet."""
    is_parked: bool = False
    """Whether the server has refused its operation, of which it may hold a part all the same, or
    the whole, where an earlier answer was lost."""
    doubt: Doubt = Doubt.RESERVED
    claimer: str = ""
    since_ms: int = 0
    is_visible: bool = True


def reserve(conn: sqlite3.Connection, author: Author, session_id: str, now_ms: int) -> Claim | None:
    """Reserve the latest item that nobody here claims; ``now_ms`` by the clock that its age is
    judged by, which goes on where the wall clock stands still.

    One that was never sent no other device has: it is popped at once, in the same transaction, so
    that it is not sent meanwhile.
    """
    tx = SessionTransaction.begin(conn, session_id)
    found = last_item(conn, tx) if tx is not None else None
    if tx is None or found is None:
        return None
    ref, row, _ = found
    (state,) = conn.execute(
        "SELECT state FROM ops WHERE session = ? AND writer = ? AND counter = ?",
        (tx.session, *ref.dot),
    ).fetchone()
    if state == PENDING:
        pop_ref(conn, author, session_id, ref)
        return Claim(ref, row, is_ours=True, is_in_flight=False)
    conn.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)",
        (tx.session, *ref.dot, ref.index, author.writer, now_ms, Doubt.RESERVED),
    )
    return Claim(
        ref,
        row,
        is_ours=False,
        is_in_flight=state == SENT,
        is_parked=state == PARKED,
        claimer=author.writer,
    )


def note(
    conn: sqlite3.Connection, session_id: str, claim: Claim, doubt: Doubt, now_ms: int
) -> bool:
    """How a claim stands from now on; False if it has been settled meanwhile."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return False
    noted = conn.execute(
        "UPDATE claims SET asked = ?, since_ms = ? WHERE session = ? AND writer = ? "
        "AND counter = ? AND idx = ?",
        (doubt, now_ms, tx.session, *claim.ref.dot, claim.ref.index),
    )
    return noted.rowcount > 0


def release(conn: sqlite3.Connection, session_id: str, claim: Claim) -> None:
    """The item is not ours: let go of it."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        conn.execute(
            "DELETE FROM claims WHERE session = ? AND writer = ? AND counter = ? AND idx = ?",
            (tx.session, *claim.ref.dot, claim.ref.index),
        )


def put_back(conn: sqlite3.Connection, session_id: str, claim: Claim) -> None:
    """The server has lost the item, and nobody's operation removes it: it is sent again, in one
    transaction with the end of the claim."""
    release(conn, session_id, claim)
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        conn.execute(
            f"UPDATE ops SET state = {SENT} WHERE session = ? AND writer = ? AND counter = ? "
            f"AND state = {ACKED}",
            (tx.session, *claim.ref.dot),
        )
        count_queued(conn)


def is_open(conn: sqlite3.Connection, session_id: str, claim: Claim) -> bool:
    """Whether the item is still there to be claimed: no operation that is here removes it."""
    return any(
        found.is_visible and (found.ref.dot, found.ref.index) == (claim.ref.dot, claim.ref.index)
        for found in open_claims(conn, session_id)
    )


def is_parked(conn: sqlite3.Connection, session_id: str, dot: Dot) -> bool:
    """Whether the server has refused an operation."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return False
    row = conn.execute(
        "SELECT state FROM ops WHERE session = ? AND writer = ? AND counter = ?",
        (tx.session, *dot),
    ).fetchone()
    return row is not None and row[0] == PARKED


def confirm(conn: sqlite3.Connection, author: Author, session_id: str, claim: Claim) -> None:
    """The item is ours: record its pop, in one transaction with the end of the claim."""
    release(conn, session_id, claim)
    pop_ref(conn, author, session_id, claim.ref)


def open_claims(conn: sqlite3.Connection, session_id: str) -> list[Claim]:
    """Every claim that is not settled, without the item's payload. That of an operation which has
    been given up since is one of an item that is not visible."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return []
    rows = conn.execute(
        "SELECT c.writer, c.counter, c.idx, c.asked, c.claimer, c.since_ms, "
        "coalesce(o.count, c.idx + 1), coalesce(o.state, 2), "
        "EXISTS (SELECT 1 FROM items i WHERE i.session = c.session AND i.stamp = o.stamp "
        "AND i.writer = c.writer AND i.counter = c.counter AND i.idx = c.idx) "
        "FROM claims c "
        "LEFT JOIN ops o "
        "ON o.session = c.session AND o.writer = c.writer AND o.counter = c.counter "
        "WHERE c.session = ?",
        (tx.session,),
    ).fetchall()
    for writer, counter, index, _, claimer, since_ms, *_ in rows:
        check_memories(writer, counter, index, 1)
        if not isinstance(claimer, str) or type(since_ms) is not int:
            raise ValueError(f"the claim of {writer}:{counter} makes no sense")
    return [
        Claim(
            ItemRef(Dot(writer, counter), index, count),
            (b"", 0),
            is_ours=False,
            is_in_flight=state == SENT,
            doubt=Doubt(doubt),
            claimer=claimer,
            since_ms=since_ms,
            is_visible=bool(visible),
        )
        for writer, counter, index, doubt, claimer, since_ms, count, state, visible in rows
    ]
