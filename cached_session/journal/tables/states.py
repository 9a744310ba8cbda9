"""States of an operation on its way to the server."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ACKED",
    "AGAIN",
    "BY_DOT",
    "BY_PLACE",
    "PARKED",
    "PENDING",
    "PLACE",
    "SENT",
    "STATES",
    "State",
    "backwards",
    "items_of",
    "sync_state",
]

PENDING, SENT, ACKED, PARKED = 0, 1, 2, 3

BY_DOT = "session = ? AND writer = ? AND counter = ?"
"""The condition that selects the rows of one operation. Its parameters are the session's row number
and the operation's dot."""


PLACE = "turn_stamp, turn_writer, turn_counter, stamp, writer, counter"
"""The columns that order the operations of a session; with `idx` they order the items
(`history/order.py`)."""
BY_PLACE = (
    "session = ? AND turn_stamp = ? AND turn_writer = ? AND turn_counter = ? "
    "AND stamp = ? AND writer = ? AND counter = ?"
)
"""The condition that selects the items of one operation by the primary key."""


def items_of(operations: str, items: str) -> str:
    """Return the join condition of the items of an operation, for two table aliases."""
    columns = ("session", *PLACE.split(", "))
    return " AND ".join(f"{items}.{column} = {operations}.{column}" for column in columns)


def backwards(alias: str = "") -> str:
    """Return the columns of an ORDER BY clause that sorts the items of a session latest first."""
    prefix = f"{alias}." if alias else ""
    columns = ("session", *PLACE.split(", "), "idx")
    return ", ".join(f"{prefix}{column} DESC" for column in columns)


AGAIN = "sent again"
"""The value of `ops.error` for an operation that is not parked and was sent again after a lost
answer. The server may then have stored memories again that other devices had deleted meanwhile."""


State = Literal["pending", "sent", "acked", "parked"]


STATES: dict[int, State] = {
    PENDING: "pending",
    SENT: "sent",
    ACKED: "acked",
    PARKED: "parked",
}


def sync_state(state: int) -> State:
    """Return the name of a state. An invalid state counts as pending, because its operation will be
    sent."""
    return STATES.get(state, "pending")
