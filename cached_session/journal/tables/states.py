"""States of an operation: how far it is on its way to the server."""

from __future__ import annotations

from typing import Literal

__all__ = ["ACKED", "AGAIN", "BY_DOT", "PARKED", "PENDING", "SENT", "STATES", "State", "sync_state"]

PENDING, SENT, ACKED, PARKED = 0, 1, 2, 3

BY_DOT = "session = ? AND writer = ? AND counter = ?"
"""The condition that selects the rows of one operation: (row of its session, *its dot)."""


AGAIN = "sent again"
"""Value of `ops.error` of an operation that is not parked: it was stored again after a lost answer.
Memories that others had removed and deleted meanwhile may be on the server again."""


State = Literal["pending", "sent", "acked", "parked"]


STATES: dict[int, State] = {
    PENDING: "pending",
    SENT: "sent",
    ACKED: "acked",
    PARKED: "parked",
}


def sync_state(state: int) -> State:
    """Return the name of a state. A spoiled state counts as pending, because it will be sent."""
    return STATES.get(state, "pending")
