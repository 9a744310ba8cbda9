"""The inbox: pages from the server, and parts of operations that are not complete yet."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cached_session.history.ops import Dot, Kind, Operation, TurnKey, decode_pop
from cached_session.history.order import position
from cached_session.history.parts import Part, assemble
from cached_session.history.session_ref import SessionRef
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.states import BY_DOT

__all__ = ["Inbox", "PageResult", "apply_page"]

BY_CONTENT = f"{BY_DOT} AND digest = ?"
"""The condition that selects the stored parts of one operation with one content."""


@dataclass
class PageResult:
    """Counts of the operations on one page."""

    new: int = 0
    """The number of operations that this page has applied."""
    known: int = 0
    """The number of operations that were applied before, or that had no new parts."""
    incomplete: int = 0
    """The number of operations with new parts that are not complete yet."""
    damaged: int = 0
    """The number of operations with parts that do not match their seal, or with an invalid
    payload."""
    conflicts: int = 0
    """The number of operations that the journal has under the same dot with other content."""

    @property
    def is_known(self) -> bool:
        """True if the page contained no new operations and no new parts."""
        return not (self.new or self.incomplete)


class Inbox:
    """Applies the operations that the server returns."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def apply(
        self, session: SessionRef, parts: Sequence[Part], explained: Sequence[Dot], now_ms: int
    ) -> PageResult:
        """Apply every operation that these parts complete; store the parts of incomplete
        operations."""
        return await self._runner.write(apply_page, session, parts, explained, now_ms)


def apply_page(
    conn: sqlite3.Connection,
    session: SessionRef,
    parts: Sequence[Part],
    explained: Sequence[Dot],
    now_ms: int,
) -> PageResult:
    """Apply every operation that these parts complete; store the parts of incomplete operations.

    Args:
        explained: the dots of operations that have a placeholder, because the server refuses them.
            These operations become explained gaps.
    """
    tx = SessionTransaction.create(conn, session.name, now_ms)
    result = PageResult()
    complete = _completed(tx, parts, result)
    applied = [op for op, digest in complete if _apply(tx, op, digest, result)]
    for dot in _popped_appends(tx, applied):
        for op, digest in _from_stored(tx, dot, result):
            _apply(tx, op, digest, result)
    _explain(tx, explained, now_ms)
    counts = tx.finish()
    result.new, result.conflicts = counts.new, counts.conflicts
    result.known += counts.known
    return result


def _completed(
    tx: SessionTransaction, parts: Sequence[Part], result: PageResult
) -> list[tuple[Operation, str]]:
    """Return the new operations that these parts complete, with their digests."""
    groups: dict[tuple[Dot, str], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.dot, part.digest), []).append(part)
    complete: list[tuple[Operation, str]] = []
    for (dot, digest), group in groups.items():
        if dot.counter in tx.writer(dot.writer).applied and tx.seen(dot, digest):
            continue
        op = _assemble(tx, group, result)
        if op is not None:
            complete.append((op, digest))
    # Any order gives the same history. This order makes SQLite insert adjacent rows in turn.
    complete.sort(key=lambda found: position(found[0]))
    return complete


def _apply(tx: SessionTransaction, op: Operation, digest: str, result: PageResult) -> bool:
    """Apply a complete operation; return False, and count it as damaged, if it is invalid.

    One invalid operation must not prevent the rest of its page from being applied.
    """
    try:
        tx.apply(op, digest=digest)
    except (ValueError, RecursionError):
        result.damaged += 1
        return False
    return True


def _popped_appends(tx: SessionTransaction, applied: Sequence[Operation]) -> list[Dot]:
    """Return the appends whose items these operations pop; an empty list if no parts are stored.

    The stored parts of such an append may be complete now, because popped items need not arrive.
    """
    if not tx.has("parts"):
        return []
    return sorted({decode_pop(op.payloads[0]).dot for op in applied if op.kind is Kind.POP})


def _explain(tx: SessionTransaction, explained: Sequence[Dot], now_ms: int) -> None:
    for writer, counter in explained:
        if counter not in tx.writer(writer).applied:
            tx.mark("holes")
            tx.conn.execute(
                "INSERT INTO holes VALUES (?, ?, ?, ?, 0, ?, 1) "
                "ON CONFLICT DO UPDATE SET explained = 1",
                (tx.session, writer, counter, now_ms, now_ms),
            )


def _from_stored(
    tx: SessionTransaction, dot: Dot, result: PageResult
) -> list[tuple[Operation, str]]:
    """Return the operations that the stored parts of a dot complete, each with its digest."""
    stored = _stored_parts(tx, dot)
    found = []
    for digest in sorted({part.digest for part in stored}):
        op = _assemble(tx, [part for part in stored if part.digest == digest], result)
        if op is not None:
            found.append((op, digest))
    return found


def _assemble(tx: SessionTransaction, group: list[Part], result: PageResult) -> Operation | None:
    """Build an operation from new and stored parts; return None if parts are missing."""
    first = group[0]
    popped = tx.popped(first.dot)
    try:
        op = assemble(group, tx.key, popped)
        if op is None and _may_be_complete(tx, group, len(popped)):
            stored = _stored_parts(tx, first.dot, first.digest)
            op = assemble([*stored, *group], tx.key, popped) if stored else None
    except ValueError:
        # Any of the parts may be wrong: delete all of them, and search for them again.
        tx.conn.execute(
            f"DELETE FROM parts WHERE {BY_CONTENT}", (tx.session, *first.dot, first.digest)
        )
        result.damaged += 1
        return None
    if op is None:
        # An operation without new parts counts as known. Otherwise a page with such an operation
        # would never count as known, and every pull would list the whole history.
        if _store_parts(tx, group):
            result.incomplete += 1
        else:
            result.known += 1
    return op


def _may_be_complete(tx: SessionTransaction, group: Sequence[Part], popped: int) -> bool:
    """Return whether the stored parts of an operation could complete it.

    The check prevents that each page of a large batch loads all stored parts again.
    """
    first = group[0]
    (stored,) = tx.conn.execute(
        f"SELECT count(*) FROM parts WHERE {BY_CONTENT}", (tx.session, *first.dot, first.digest)
    ).fetchone()
    return bool(stored) and stored + len(group) + popped >= first.count


def _store_parts(tx: SessionTransaction, group: list[Part]) -> bool:
    """Store parts; return whether any of them is new."""
    tx.mark("parts")
    stored = tx.conn.executemany(
        f"INSERT OR IGNORE INTO parts VALUES ({', '.join('?' * 20)})",
        [
            (
                tx.session,
                *part.dot,
                part.digest,
                part.index,
                part.part,
                part.parts,
                part.count,
                part.kind.value,
                part.stamp,
                part.said_ms,
                part.private,
                part.seal,
                part.text,
                *(part.turn or (part.stamp, *part.dot)),
                part.branch,
                part.key_id,
                part.version,
            )
            for part in group
        ],
    )
    return stored.rowcount > 0


def _stored_parts(tx: SessionTransaction, dot: Dot, digest: str | None = None) -> list[Part]:
    """Return the stored parts of an operation with this digest, or with any digest (None)."""
    rows = tx.conn.execute(
        "SELECT digest, idx, part, parts, count, kind, stamp, said_ms, private, seal, text, "
        "turn_stamp, turn_writer, turn_counter, branch, key_id, version "
        f"FROM parts WHERE {BY_DOT} AND digest = coalesce(?, digest)",
        (tx.session, *dot, digest),
    ).fetchall()
    return [_part(dot, *row) for row in rows]


def _part(
    dot: Dot,
    digest: str,
    index: int,
    part: int,
    parts: int,
    count: int,
    kind: str,
    stamp: int,
    said_ms: int,
    private: int,
    seal: str,
    text: str,
    *rest: Any,
) -> Part:
    *turn, branch, key_id, version = rest
    key = TurnKey(*turn)
    return Part(
        dot=dot,
        kind=Kind(kind),
        stamp=stamp,
        said_ms=said_ms,
        private=bool(private),
        digest=digest,
        seal=seal,
        count=count,
        index=index,
        parts=parts,
        part=part,
        text=text,
        turn=None if key == (stamp, *dot) else key,
        branch=branch,
        key_id=key_id,
        version=version,
    )
