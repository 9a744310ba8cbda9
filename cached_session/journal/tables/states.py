"""States of an operation on its way to the server."""

from __future__ import annotations

from typing import Literal

__all__ = ["ACKED", "AGAIN", "BY_DOT", "PARKED", "PENDING", "SENT", "STATES", "State", "sync_state"]

PENDING, SENT, ACKED, PARKED = 0, 1, 2, 3

BY_DOT = "session = ? AND writer = ? AND counter = ?"
"""The condition that selects the rows of one operation. Its parameters are the session's row number
and the operation's dot."""


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
