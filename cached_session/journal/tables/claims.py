"""The claims table: confirmed pops that the server has not answered yet."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import IntEnum

from cached_session.history.ops import Dot, ItemRef
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.sqlite.tracked_connection import count_queued
from cached_session.journal.tables import outbox
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.dots import find_operation, find_state
from cached_session.journal.tables.item_rows import payloads_of
from cached_session.journal.tables.row_bounds import check_memories
from cached_session.journal.tables.states import ACKED, BY_DOT, PARKED, PENDING, SENT
from cached_session.journal.tables.writes import Author, last_item, pop_ref

__all__ = [
    "Claim",
    "ClaimState",
    "Claims",
    "confirm",
    "is_open",
    "is_parked",
    "open_claims",
    "record_state",
    "release",
    "requeue",
    "reserve",
]

BY_ITEM = f"{BY_DOT} AND idx = ?"
"""The condition that selects the claim of one item."""


class ClaimState(IntEnum):
    """The state of a claim."""

    RESERVED = 0
    """No request was sent to the server yet."""
    ASKED = 1
    """The request may have been sent. The server may have given the item to this journal."""
    LOST = 2
    """The server did not give the item to this journal. Another device has it, or the server has
    lost it."""
    ABSENT = 3
    """The server did not answer the request, and one lookup did not find the memory. The memory may
    still exist: the server's node that answered the lookup may lag behind."""


@dataclass(frozen=True)
class Claim:
    """A claim of this journal to pop an item, which no other device may pop too."""

    ref: ItemRef
    row: tuple[bytes, int]
    """The payload of the item and its codec."""
    is_ours: bool
    """True if the item was never sent, so that no other device has it. `Claims.reserve` has already
    popped such an item."""
    is_in_flight: bool
    """True if the item was sent and the server has not acknowledged it, so the server may hold
    it."""
    is_parked: bool = False
    """True if the server has refused the operation. The server may still hold a part or all of it,
    if an earlier answer was lost."""
    state: ClaimState = ClaimState.RESERVED
    claimer: str = ""
    """The writer id of the open journal that made the claim."""
    since_ms: int = 0
    """The time of the last change of `state`, in milliseconds of the clock that `reserve`
    describes."""
    is_visible: bool = True
    """True if the item is still in the history."""


class Claims:
    """The claims of a journal's sessions."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def reserve(self, author: Author, session: SessionRef, now_ms: int) -> Claim | None:
        """Claim the latest item; return None if there is no item to claim."""
        return await self._runner.write(reserve, author, session, now_ms)

    async def open(self, session: SessionRef) -> list[Claim]:
        """Return the unresolved claims of a session, with empty payloads."""
        return await self._runner.read(open_claims, session)

    async def is_open(self, session: SessionRef, claim: Claim) -> bool:
        """Return whether the item of a claim is still in the history."""
        return await self._runner.read(is_open, session, claim)

    async def is_parked(self, session: SessionRef, dot: Dot) -> bool:
        """Return whether the server has refused an operation."""
        return await self._runner.read(is_parked, session, dot)

    async def record(
        self, session: SessionRef, claim: Claim, state: ClaimState, now_ms: int
    ) -> bool:
        """Store a new state of a claim; return False if the claim was resolved meanwhile."""
        return await self._runner.write(record_state, session, claim, state, now_ms)

    async def confirm(self, author: Author, session: SessionRef, claim: Claim) -> None:
        """Delete a claim and pop its item."""
        await self._runner.write(confirm, author, session, claim)

    async def release(self, session: SessionRef, claim: Claim) -> None:
        """Delete a claim. Its item stays unchanged."""
        await self._runner.write(release, session, claim)

    async def requeue(self, session: SessionRef, claim: Claim) -> None:
        """Delete a claim, and queue the operation of its item to be sent again."""
        await self._runner.write(requeue, session, claim)


def reserve(
    conn: sqlite3.Connection, author: Author, session: SessionRef, now_ms: int
) -> Claim | None:
    """Claim the latest item that has no claim; return None if no such item exists.

    An item that was never sent is on no other device. Such an item is popped in the same
    transaction, so that no push sends it before the pop.

    Args:
        now_ms: the time in milliseconds of the clock that measures the age of claims. This clock
            advances even if the wall clock does not.
    """
    tx = SessionTransaction.begin(conn, session.name)
    found = last_item(conn, tx) if tx is not None else None
    if tx is None or found is None:
        return None
    ref, row = found.ref, found.row
    known = find_state(conn, tx.session, ref.dot)
    state = ACKED if known is None else known[1]
    if state == PENDING:
        pop_ref(conn, author, session.name, ref)
        return Claim(ref, row, is_ours=True, is_in_flight=False)
    conn.execute(
        "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?, ?)",
        (tx.session, *ref.dot, ref.index, author.writer, now_ms, ClaimState.RESERVED),
    )
    return Claim(
        ref,
        row,
        is_ours=False,
        is_in_flight=state == SENT,
        is_parked=state == PARKED,
        claimer=author.writer,
    )


def record_state(
    conn: sqlite3.Connection, session: SessionRef, claim: Claim, state: ClaimState, now_ms: int
) -> bool:
    """Store a new state of a claim; return False if the claim was resolved meanwhile."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return False
    updated = conn.execute(
        f"UPDATE claims SET asked = ?, since_ms = ? WHERE {BY_ITEM}",
        (state, now_ms, tx.session, *claim.ref.dot, claim.ref.index),
    )
    return updated.rowcount > 0


def release(conn: sqlite3.Connection, session: SessionRef, claim: Claim) -> None:
    """Delete a claim. Its item stays unchanged."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is not None:
        conn.execute(
            f"DELETE FROM claims WHERE {BY_ITEM}", (tx.session, *claim.ref.dot, claim.ref.index)
        )


def requeue(conn: sqlite3.Connection, session: SessionRef, claim: Claim) -> None:
    """Delete a claim, and queue the operation of its item again, because the server has lost the
    item."""
    release(conn, session, claim)
    tx = SessionTransaction.begin(conn, session.name)
    if tx is not None:
        of_dot = "a.session = ? AND a.writer = ? AND a.counter = ?"
        outbox.requeue(conn, of_dot, (tx.session, *claim.ref.dot))
        count_queued(conn)


def confirm(conn: sqlite3.Connection, author: Author, session: SessionRef, claim: Claim) -> None:
    """Delete a claim and pop its item."""
    release(conn, session, claim)
    pop_ref(conn, author, session.name, claim.ref)


def is_open(conn: sqlite3.Connection, session: SessionRef, claim: Claim) -> bool:
    """Return whether the item of a claim is still in the history: no operation in this journal
    removes the item."""
    return any(
        found.is_visible and (found.ref.dot, found.ref.index) == (claim.ref.dot, claim.ref.index)
        for found in open_claims(conn, session)
    )


def is_parked(conn: sqlite3.Connection, session: SessionRef, dot: Dot) -> bool:
    """Return whether the server has refused an operation."""
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return False
    known = find_state(conn, tx.session, dot)
    return known is not None and known[1] == PARKED


OPEN_CLAIMS = "SELECT writer, counter, idx, asked, claimer, since_ms FROM claims WHERE session = ?"


def open_claims(conn: sqlite3.Connection, session: SessionRef) -> list[Claim]:
    """Return the unresolved claims of a session, with empty payloads.

    Raises:
        ValueError: a row is not valid.
    """
    tx = SessionTransaction.begin(conn, session.name)
    if tx is None:
        return []
    rows = conn.execute(OPEN_CLAIMS, (tx.session,)).fetchall()
    claims = []
    for writer, counter, index, asked, claimer, since_ms in rows:
        check_memories(writer, counter, index, 1)
        if not isinstance(claimer, str) or type(since_ms) is not int:
            raise ValueError(f"the row of the claim on {writer}:{counter} is not valid")
        # The operation may have been dropped. Its item is then not visible.
        op = find_operation(conn, tx.session, (writer, counter))
        shown = [] if op is None else payloads_of(conn, op.seq)
        claims.append(
            Claim(
                ItemRef(Dot(writer, counter), index, op.payloads if op else index + 1),
                (b"", 0),
                is_ours=False,
                is_in_flight=op is not None and op.state == SENT,
                state=ClaimState(asked),
                claimer=claimer,
                since_ms=since_ms,
                is_visible=any(at == index for at, _ in shown),
            )
        )
    return claims
