"""What comes from the server: whole pages applied in one transaction, and the holes they show."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cached_session.history.ops import Dot, Kind, Operation, popped_by
from cached_session.history.parts import Part, assemble
from cached_session.journal.tables.apply import SessionTransaction, stored_id

__all__ = [
    "Ground",
    "Hole",
    "PageResult",
    "apply_page",
    "ground_of",
    "holes_due",
    "note_hole_tries",
    "note_holes",
    "note_pull",
]

HOLES_A_WRITER = 200
"""Holes of one writer that are looked for at a time: a counter out of a hostile memory must not
make the journal list a million operations that never were."""


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


@dataclass(frozen=True)
class Hole:
    """An operation known to exist that is not here; with the parts of it that are."""

    dot: Dot
    tries: int
    have: frozenset[tuple[int, int]]
    """Parts of it that are here, as (payload, part)."""
    heads: Mapping[int, int]
    """Of the payloads of which some part is here, how many parts there are."""
    popped: frozenset[int]
    """Items of it that need not be looked for: they are popped, and may be forgotten."""
    count: int
    """Payloads of it; 0 while nothing is known."""


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
        {popped_by(op.payloads[0]).dot for op in applied if op.kind is Kind.POP}
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


def note_holes(conn: sqlite3.Connection, session_id: str, now_ms: int) -> int:
    """Bring the list of holes up to date with the frontier; how many there are."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return 0
    missing = tx.missing(HOLES_A_WRITER)
    incomplete = conn.execute(
        "SELECT DISTINCT writer, counter FROM parts WHERE session = ?", (tx.session,)
    ).fetchall()
    for writer, counter in incomplete:
        if counter in tx.writer(writer).cleared or tx.wholly_popped(writer, counter):
            conn.execute(
                "DELETE FROM parts WHERE session = ? AND writer = ? AND counter = ?",
                (tx.session, writer, counter),
            )
        else:
            missing.add((writer, counter))
    noted = set(
        conn.execute(
            "SELECT writer, counter FROM holes WHERE session = ?", (tx.session,)
        ).fetchall()
    )
    conn.executemany(
        "INSERT INTO holes VALUES (?, ?, ?, ?, 0, ?, 0)",
        [(tx.session, *dot, now_ms, now_ms) for dot in sorted(missing - noted)],
    )
    # What is explained stays: its writer may send it yet. Unless nobody will: all of it is removed.
    conn.executemany(
        "DELETE FROM holes WHERE session = ? AND writer = ? AND counter = ? "
        "AND (NOT explained OR ?)",
        [(tx.session, *dot, dot[1] in tx.writer(dot[0]).applied) for dot in noted - missing],
    )
    return len(missing)


@dataclass(frozen=True)
class Ground:
    """Down to where a session has been pulled."""

    is_known: bool = False
    """Whether the journal knows the session."""
    is_hydrated: bool = False
    """Whether a pull has reached the oldest memory once."""
    second: int = 0
    """The newest second, by the server's clock, that the last pull saw."""
    since_ms: int = 0
    """Since when that has been the newest, by the wall clock."""


def ground_of(conn: sqlite3.Connection, session_id: str) -> Ground:
    """The known ground of a session."""
    row = conn.execute(
        "SELECT hydrated, ground, ground_ms FROM sessions WHERE session_id = ?",
        (stored_id(session_id),),
    ).fetchone()
    return Ground() if row is None else Ground(True, bool(row[0]), row[1], row[2])


def note_pull(
    conn: sqlite3.Connection,
    session_id: str,
    *,
    now_ms: int,
    ground: int,
    is_same_ground: bool,
    hydrated: bool,
    unreadable: int,
) -> None:
    """A pull has ended well, whether or not the server had anything."""
    name = stored_id(session_id)
    conn.execute(
        "INSERT OR IGNORE INTO sessions (session_id, created_ms) VALUES (?, ?)", (name, now_ms)
    )
    conn.execute(
        "UPDATE sessions SET hydrated = max(hydrated, ?), ground = ?, "
        "ground_ms = CASE WHEN ? AND ground_ms <= ? THEN ground_ms ELSE ? END, "
        "pulled_ms = ?, unreadable = ? WHERE session_id = ?",
        (hydrated, ground, is_same_ground, now_ms, now_ms, now_ms, unreadable, name),
    )


def holes_due(
    conn: sqlite3.Connection,
    session_id: str,
    now_ms: int,
    most: int,
    *,
    longest_ms: int = 1 << 62,
    everything: bool = False,
) -> list[Hole]:
    """Holes that should be looked for now, with the parts that are here already. A look further
    away than ``longest_ms`` was planned by a clock that has been moved since, and is due."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return []
    rows = conn.execute(
        "SELECT writer, counter, tries FROM holes WHERE session = ? "
        "AND (next_ms NOT BETWEEN ? AND ? OR ?) ORDER BY next_ms LIMIT ?",
        (tx.session, now_ms + 1, now_ms + longest_ms, everything, most),
    ).fetchall()
    holes = []
    for writer, counter, tries in rows:
        dot = Dot(writer, counter)
        places = conn.execute(
            "SELECT idx, part, parts, count FROM parts "
            "WHERE session = ? AND writer = ? AND counter = ?",
            (tx.session, writer, counter),
        ).fetchall()
        have = frozenset((index, part) for index, part, _, _ in places)
        heads = {index: parts for index, _, parts, _ in places}
        count = places[0][3] if places else tx.popped_count(dot)
        holes.append(Hole(dot, tries, have, heads, tx.popped(dot), count))
    return holes


def note_hole_tries(
    conn: sqlite3.Connection, session_id: str, tried: Sequence[tuple[Dot, int, bool]]
) -> None:
    """After a look that found nothing: (dot, when to look again, whether it is explained)."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return
    conn.executemany(
        "UPDATE holes SET tries = tries + 1, next_ms = ?, explained = ? "
        "WHERE session = ? AND writer = ? AND counter = ?",
        [(next_ms, explained, tx.session, *dot) for dot, next_ms, explained in tried],
    )
