"""Reconstruction of an operation from a row of a damaged journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cached_session.history.clock import stamp_ms
from cached_session.history.ops import (
    GONE,
    Dot,
    Kind,
    Operation,
    TurnKey,
    decode_clear,
    decode_mark,
    decode_pop,
    normalize_turn,
)
from cached_session.journal.recovery.read_damaged import OperationRow
from cached_session.journal.recovery.read_payloads import Payloads, read_payloads
from cached_session.journal.recovery.report import Losses
from cached_session.journal.tables.row_bounds import check_operation, check_placement
from cached_session.journal.tables.states import SENT, STATES

__all__ = ["RebuiltOperation", "rebuild_operation"]


@dataclass(frozen=True)
class RebuiltOperation:
    """An operation from a row of which some cells may have been damaged.

    The time in the stamp replaces a damaged time. A damaged state becomes `SENT`.
    """

    operation: Operation
    """The operation. `GONE` replaces lost payloads, and payloads that were removed earlier. An
    operation whose turn is damaged is the head of its own turn."""
    state: int
    digest: str | None
    """The stored digest; None if it is damaged, or if it is not that of `operation`."""
    error: str | None
    lost: Sequence[int]
    """The indexes of visible items that could not be read."""

    @property
    def is_exact(self) -> bool:
        """True if nothing shows damage: the digest belongs to the operation, and no payload was
        lost. The digest of an operation with removed payloads cannot be checked."""
        return self.digest is not None and not self.lost


def rebuild_operation(
    conn: sqlite3.Connection, row: OperationRow, key: str, losses: Losses
) -> RebuiltOperation | None:
    """Return the operation of a row. Return None and add a loss if the row does not have enough
    valid cells to identify the operation.

    Args:
        key: the hash of the session's id.
    """
    try:
        operation, lost, is_placed = _rebuild(conn, row)
    except (TypeError, ValueError) as damage:
        losses.add(f"operation {row.writer}:{row.counter}: {damage}")
        return None
    is_valid = is_placed and isinstance(row.digest, str) and row.digest != ""
    if is_valid and GONE not in operation.payloads:
        is_valid = operation.digest(key) == row.digest
    return RebuiltOperation(
        operation,
        row.state if row.state in STATES else SENT,
        row.digest if is_valid else None,
        row.error if isinstance(row.error, str) else None,
        lost,
    )


def _rebuild(conn: sqlite3.Connection, row: OperationRow) -> tuple[Operation, list[int], bool]:
    """Return the operation, the indexes of lost items, and whether its place could be read."""
    said_ms = row.said_ms if type(row.said_ms) is int else stamp_ms(row.stamp)
    check_operation(row.writer, row.counter, row.stamp, said_ms, row.count, "")
    kind = Kind(row.kind)
    if kind is not Kind.APPEND and not isinstance(row.body, str):
        raise ValueError("its payload is not a text")
    found = Payloads([row.body], [])
    if kind is Kind.APPEND:
        found = read_payloads(conn, row)
    elif kind is Kind.POP:
        decode_pop(row.body)
    elif kind is Kind.MARK:
        # The payload of an encrypted mark cannot be read.
        if not row.key_id:
            decode_mark(row.body)
    else:
        decode_clear(row.body)
    # A damaged flag counts as private, so that no private text is sent in readable form.
    is_private = row.private not in (0, False)
    dot = Dot(row.writer, row.counter)
    op = Operation(dot, kind, row.stamp, said_ms, tuple(found.texts), is_private, version=1)
    if not row.has_turn or row.version == 1:
        # Operations of wire version 1 are the heads of their own turns.
        return op, found.lost, True
    try:
        return replace(op, **_placement(row, dot)), found.lost, found.is_placed
    except (TypeError, ValueError):
        return replace(op, version=2), found.lost, False


def _placement(row: OperationRow, dot: Dot) -> dict[str, Any]:
    """Return the fields of an operation that only wire version 2 has.

    Raises:
        TypeError, ValueError: a cell is damaged.
    """
    turn = TurnKey(row.turn_stamp, row.turn_writer, row.turn_counter)
    check_placement(turn, row.stamp, row.branch, row.key_id, row.version)
    return {
        "turn": normalize_turn(turn, row.stamp, dot),
        "branch": row.branch,
        "key_id": row.key_id,
        "version": row.version,
    }
