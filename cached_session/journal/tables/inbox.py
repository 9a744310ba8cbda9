"""What comes from the server: whole pages applied in one transaction, and the holes they show."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from cached_session.history.ops import Dot, Kind, Operation, decode_pop
from cached_session.history.parts import Part, assemble
from cached_session.journal.tables.apply import SessionTransaction

__all__ = ["PageResult", "apply_page"]


@dataclass
class PageResult:
    """What one page brought."""

    new: int = 0
    """Operations applied."""
    known: int = 0
    """Operations that were here already."""
    incomplete: int = 0
    """Operations of which some parts are missing."""
    damaged: int = 0
    """Operations whose parts do not fit their seal, or that make no sense."""
    conflicts: int = 0
    """Dots that were here with other content."""

    @property
    def is_ground(self) -> bool:
        """Whether everything on the page was known before."""
        return not (self.new or self.incomplete)


def apply_page(
    conn: sqlite3.Connection,
    session_id: str,
    parts: Sequence[Part],
    explained: Sequence[Dot],
    now_ms: int,
) -> PageResult:
    """Apply every operation that the page completes; keep the parts of those it does not.

    ``explained`` are dots whose writer says that the server refuses them: known, not missing.
    """
    tx = SessionTransaction.create(conn, session_id, now_ms)
    result = PageResult()
    groups: dict[tuple[Dot, str], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.dot, part.digest), []).append(part)
    complete: list[tuple[Operation, str]] = []
    for (dot, digest), group in groups.items():
        known = tx.writer(dot.writer)
        if dot.counter in known.applied and tx.seen(dot, digest):
            continue
        op = _put_together(tx, group, result)
        if op is not None:
            complete.append((op, digest))
    # Any order gives the same history; this one keeps inserts next to each other.
    complete.sort(key=lambda found: (found[0].stamp, found[0].dot))
    done = [op for op, digest in complete if _applied(tx, op, digest, result)]
    for dot in _completed_by_pops(tx, done):
        for whole, digest in _from_stored(tx, dot, result):
            _applied(tx, whole, digest, result)
    for writer, counter in explained:
        if counter not in tx.writer(writer).applied:
            tx.mark("holes")
            conn.execute(
                "INSERT INTO holes VALUES (?, ?, ?, ?, 0, ?, 1) "
                "ON CONFLICT DO UPDATE SET explained = 1",
                (tx.session, writer, counter, now_ms, now_ms),
            )
    applied = tx.finish()
    result.new, result.conflicts = applied.new, applied.conflicts
    result.known += applied.known
    return result


def _applied(tx: SessionTransaction, op: Operation, digest: str, result: PageResult) -> bool:
    """Apply a whole operation; False, and counted, if it makes no sense: one bad operation must
    not keep the rest of its page out."""
    try:
        tx.apply(op, digest=digest)
    except (ValueError, RecursionError):
        result.damaged += 1
        return False
    return True


def _completed_by_pops(tx: SessionTransaction, applied: Sequence[Operation]) -> list[Dot]:
    """Appends of which some parts wait here and of which more has just been popped: what is popped
    is not waited for."""
    return sorted(
        {decode_pop(op.payloads[0]).dot for op in applied if op.kind is Kind.POP}
        if tx.has("parts")
        else set()
    )


def _from_stored(
    tx: SessionTransaction, dot: Dot, result: PageResult
) -> list[tuple[Operation, str]]:
    stored = _stored_parts(tx.conn, tx.session, dot, None)
    found = []
    for digest in sorted({part.digest for part in stored}):
        group = [part for part in stored if part.digest == digest]
        op = _put_together(tx, group, result)
        if op is not None:
            found.append((op, digest))
    return found


def _put_together(
    tx: SessionTransaction, group: list[Part], result: PageResult
) -> Operation | None:
    first = group[0]
    popped = tx.popped(first.dot)
    key = (tx.session, *first.dot, first.digest)
    try:
        op = assemble(group, tx.key, popped)
        if op is None and _may_be_whole(tx.conn, key, group, len(popped)):
            stored = _stored_parts(tx.conn, tx.session, first.dot, first.digest)
            op = assemble([*stored, *group], tx.key, popped) if stored else None
    except ValueError:
        # What was put together cannot be trusted in any part: look for all of it again.
        tx.conn.execute(
            "DELETE FROM parts WHERE session = ? AND writer = ? AND counter = ? AND digest = ?",
            key,
        )
        result.damaged += 1
        return None
    if op is None:
        # One that waits for the same part as before is known ground: the page it stands on must
        # not make every pull list the whole history.
        if _store_parts(tx, group):
            result.incomplete += 1
        else:
            result.known += 1
    return op


def _may_be_whole(
    conn: sqlite3.Connection,
    key: tuple[int, str, int, str],
    group: Sequence[Part],
    popped: int,
) -> bool:
    """Whether loading what is stored of an operation could complete it: a batch that spans many
    pages must not be read again with each of them."""
    (stored,) = conn.execute(
        "SELECT count(*) FROM parts WHERE session = ? AND writer = ? AND counter = ? "
        "AND digest = ?",
        key,
    ).fetchone()
    return bool(stored) and stored + len(group) + popped >= group[0].count


def _store_parts(tx: SessionTransaction, group: list[Part]) -> bool:
    """Keep parts; whether any of them is new."""
    tx.mark("parts")
    stored = tx.conn.executemany(
        "INSERT OR IGNORE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            )
            for part in group
        ],
    )
    return stored.rowcount > 0


def _stored_parts(
    conn: sqlite3.Connection, session: int, dot: Dot, digest: str | None
) -> list[Part]:
    rows = conn.execute(
        "SELECT digest, idx, part, parts, count, kind, stamp, said_ms, private, seal, text "
        "FROM parts WHERE session = ? AND writer = ? AND counter = ? "
        "AND digest = coalesce(?, digest)",
        (session, *dot, digest),
    ).fetchall()
    return [
        Part(
            dot=dot,
            kind=Kind(kind),
            stamp=stamp,
            said_ms=said_ms,
            private=bool(private),
            digest=whose,
            seal=seal,
            count=count,
            index=index,
            parts=parts,
            part=part,
            text=text,
        )
        for whose, index, part, parts, count, kind, stamp, said_ms, private, seal, text in rows
    ]
