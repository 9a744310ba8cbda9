"""States of an operation on its way to the server."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "ACKED",
    "BY_DOT",
    "ORDERED",
    "PARKED",
    "PENDING",
    "PLACE",
    "SENT",
    "SHOWN",
    "STATES",
    "Place",
    "State",
    "backwards",
    "sync_state",
]

PENDING, SENT, ACKED, PARKED = 0, 1, 2, 3

BY_DOT = "session = ? AND writer = ? AND counter = ?"
"""The condition that selects the rows of one operation. Its parameters are the session's row number
and the operation's dot."""


PLACE = "turn_stamp, turn_writer, turn_counter, stamp, writer, counter"
"""The columns that order the operations of a session (`history/order.py`). The items of an
operation are ordered by their indexes."""
SHOWN = "session = ? AND branch = '' AND live > 0"
"""The condition that selects the operations of the main branch with visible items. With an ORDER BY
clause of `ORDERED` or `backwards`, SQLite uses the index `place`."""
ORDERED = f"session, branch, {PLACE}"
"""The columns of an ORDER BY clause that sorts operations in the order of the history."""
Place = tuple[int, str, int, int, str, int]
"""The values of the columns `PLACE`."""


def backwards() -> str:
    """Return the columns of an ORDER BY clause that sorts the operations of a session latest
    first."""
    columns = ("session", "branch", *PLACE.split(", "))
    return ", ".join(f"{column} DESC" for column in columns)


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
