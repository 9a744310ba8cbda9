"""Confirmed pops under way: an item is reserved before the server is asked, and settled after."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from cached_session.history.ops import Dot, ItemRef
from cached_session.journal.apply import PENDING, SENT, SessionTransaction
from cached_session.journal.writes import Author, last_item, pop_ref

__all__ = ["Claim", "asked", "confirm", "open_claims", "release", "reserve"]


@dataclass(frozen=True)
class Claim:
    """One item that this journal wants for itself."""

    ref: ItemRef
    row: tuple[str, int]
    """Its payload and codec."""
    state: int
    """The state of the append that brought it: what was never sent cannot be lost to another."""
    asked: bool
    claimer: str = ""
    since_ms: int = 0

    @property
    def is_ours_already(self) -> bool:
        """Whether no other device can have seen the item."""
        return self.state == PENDING

    @property
    def is_in_flight(self) -> bool:
        """Whether the server may or may not hold the item."""
        return self.state == SENT


def reserve(
    conn: sqlite3.Connection, author: Author, session_id: str, lost: frozenset[tuple[Dot, int]]
) -> Claim | None:
    """Reserve the latest item that nobody here claims and that is not known to be lost."""
    tx = SessionTransaction.begin(conn, session_id)
    found = last_item(conn, tx, lost) if tx is not None else None
    if tx is None or found is None:
        return None
    ref, row = found
    (state,) = conn.execute(
        "SELECT state FROM ops WHERE session = ? AND writer = ? AND counter = ?",
        (tx.session, *ref.dot),
    ).fetchone()
    conn.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, 0)",
        (tx.session, *ref.dot, ref.index, author.writer, author.now_ms),
    )
    return Claim(ref, row, state, asked=False)


def asked(conn: sqlite3.Connection, session_id: str, claim: Claim) -> None:
    """The request leaves now: from here on the server may have given the item to us."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        conn.execute(
            "UPDATE claims SET asked = 1 WHERE session = ? AND writer = ? AND counter = ? "
            "AND idx = ?",
            (tx.session, *claim.ref.dot, claim.ref.index),
        )


def release(conn: sqlite3.Connection, session_id: str, claim: Claim) -> None:
    """The item is not ours: let go of it."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        conn.execute(
            "DELETE FROM claims WHERE session = ? AND writer = ? AND counter = ? AND idx = ?",
            (tx.session, *claim.ref.dot, claim.ref.index),
        )


def confirm(conn: sqlite3.Connection, author: Author, session_id: str, claim: Claim) -> None:
    """The item is ours: record its pop, in one transaction with the end of the claim."""
    release(conn, session_id, claim)
    pop_ref(conn, author, session_id, claim.ref)


def open_claims(conn: sqlite3.Connection, session_id: str) -> list[Claim]:
    """Every claim that is not settled, without the item's payload."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return []
    rows = conn.execute(
        "SELECT c.writer, c.counter, c.idx, c.asked, c.claimer, c.since_ms, o.count, o.state "
        "FROM claims c "
        "JOIN ops o ON o.session = c.session AND o.writer = c.writer AND o.counter = c.counter "
        "WHERE c.session = ?",
        (tx.session,),
    ).fetchall()
    return [
        Claim(
            ItemRef(Dot(writer, counter), index, count),
            ("", 0),
            state,
            bool(was_asked),
            claimer,
            since_ms,
        )
        for writer, counter, index, was_asked, claimer, since_ms, count, state in rows
    ]
