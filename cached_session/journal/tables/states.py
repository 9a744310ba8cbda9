"""States of an operation in the outbox."""

from __future__ import annotations

from typing import Literal

__all__ = ["ACKED", "AGAIN", "BY_DOT", "PARKED", "PENDING", "SENT", "STATES", "State", "sync_state"]

PENDING, SENT, ACKED, PARKED = 0, 1, 2, 3

BY_DOT = "session = ? AND writer = ? AND counter = ?"
"""The condition that selects the rows of one operation: (row of its session, *its dot)."""


AGAIN = "sent again"
"""In `ops.error` of an operation that is not parked: it was stored once more where an answer had
been lost, and what others had removed and forgotten meanwhile may stand on the server again."""


State = Literal["pending", "sent", "acked", "parked"]


STATES: dict[int, State] = {
    PENDING: "pending",
    SENT: "sent",
    ACKED: "acked",
    PARKED: "parked",
}


def sync_state(state: int) -> State:
    """How far an operation is; one whose state is spoiled is not acknowledged, so it is sent."""
    return STATES.get(state, "pending")
