"""The journal's side of an audit: what should be on the server and is not, and the reverse."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot, Kind
from cached_session.history.parts import part_count
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.outbox import Forget
from cached_session.journal.tables.sessions import session_ids
from cached_session.journal.tables.states import ACKED, PARKED

__all__ = [
    "Plan",
    "Standing",
    "compare",
    "next_due",
    "note_audit",
    "queue_forgets",
    "standing",
    "suspect",
]

Present = Mapping[Dot, Mapping[tuple[int, int], int]]
"""Of each operation: which (payload, part) are there, and how many parts that payload has."""


@dataclass
class Plan:
    """What an audit has to do."""

    resend: list[int] = field(default_factory=list)
    """`seq` of operations to store again."""
    forget: list[Forget] = field(default_factory=list)
    explain: list[int] = field(default_factory=list)
    """`seq` of parked operations whose placeholder is to be stored again."""

    def miss(self, seq: int, state: int, *, is_explained: bool) -> None:
        """The server does not hold all of an operation."""
        if state == ACKED:
            self.resend.append(seq)
        elif not is_explained:
            self.explain.append(seq)


def compare(
    conn: sqlite3.Connection,
    session_id: str,
    present: Present,
    explained: Collection[Dot] = (),
) -> Plan:
    """Compare what the server lists with every acknowledged or parked operation of a session.

    ``explained``: dots of which a placeholder says that the server refuses them.
    """
    plan = Plan()
    tx = SessionTransaction.begin(conn, session_id)
    if tx is None:
        return plan
    rows = conn.execute(
        "SELECT seq, writer, counter, kind, stamp, body, state FROM ops "
        f"WHERE session = ? AND state IN ({ACKED}, {PARKED}) ORDER BY seq",
        (tx.session,),
    ).fetchall()
    for seq, writer, counter, kind, stamp, body, state in rows:
        dot = Dot(writer, counter)
        places = present.get(dot, {})
        if state == ACKED and dot in explained:
            # It got through after all: by a retry of which a restored backup knows nothing.
            plan.forget.append(Forget(dot, -1, 1))
        if kind != Kind.APPEND.value:
            if len(places) < part_count(body):
                plan.miss(seq, state, is_explained=dot in explained)
            continue
        visible = dict(
            conn.execute(
                "SELECT idx, part_count(CAST(payload AS BLOB)) FROM items "
                "WHERE session = ? AND stamp = ? "
                "AND writer = ? AND counter = ?",
                (tx.session, stamp, writer, counter),
            ).fetchall()
        )
        whole = all(
            (index, part) in places for index, parts in visible.items() for part in range(parts)
        )
        if not whole:
            plan.miss(seq, state, is_explained=dot in explained)
        if state == PARKED:
            continue
        # Any part tells: the first one may be forgotten already, and a later one sent twice.
        gone = {index: parts for (index, _), parts in places.items() if index not in visible}
        plan.forget.extend(Forget(dot, index, parts) for index, parts in gone.items())
    plan.forget.extend(_remains(conn, tx, present))
    return plan


def _remains(conn: sqlite3.Connection, tx: SessionTransaction, present: Present) -> list[Forget]:
    """What is left on the server of operations that a clear covers and the journal has let go of
    (`compaction.prune`): too little to be applied again, so that no row tells of it."""
    known = set(
        conn.execute("SELECT writer, counter FROM ops WHERE session = ?", (tx.session,)).fetchall()
    )
    return [
        Forget(dot, index, parts)
        for dot, places in present.items()
        if dot not in known and dot.counter in tx.writer(dot.writer).cleared
        for index, parts in {index: parts for (index, _), parts in places.items()}.items()
    ]


def queue_forgets(conn: sqlite3.Connection, session_id: str, forgets: Sequence[Forget]) -> None:
    """Have the next push forget these: their removal is recorded and acknowledged."""
    tx = SessionTransaction.begin(conn, session_id)
    if tx is not None:
        conn.executemany(
            "INSERT OR IGNORE INTO forgets VALUES (?, ?, ?, ?, ?, '', 0)",
            [(tx.session, *forget.dot, forget.index, forget.parts) for forget in forgets],
        )


def next_due(
    conn: sqlite3.Connection,
    now_ms: int,
    interval_ms: int,
    who: str,
    besides: Collection[str],
    *,
    only_suspects: bool = False,
) -> tuple[str | None, int]:
    """The session that has waited longest for its audit, if its time has come, and how many
    milliseconds there are until the next one is due.

    The mark of the last audit is a row, so that a restart neither repeats an audit nor puts it off.
    A session without one gets a mark somewhere in the interval that has just passed: by the
    device and the session, so that all the sessions of all devices do not come at one time.
    ``only_suspects``: nobody's time has come, except that of those that `suspect` has named.
    """
    marks = _marks(conn)
    due: tuple[int, str] | None = None
    for name in _acknowledged(conn):
        if name in besides:
            continue
        key = _mark(name)
        last = int(marks.get(key, now_ms + 1))
        if last > now_ms:  # none yet, or set by a clock that has been moved since
            last = now_ms - int(interval_ms * _place(who, name))
            write_meta(conn, **{key: str(last)})
        if only_suspects and last:
            continue
        # Each session at a pace of its own, a tenth slower or quicker: none stay together.
        at = last + int(interval_ms * (0.9 + 0.2 * _place("pace", name)))
        if due is None or at < due[0]:
            due = at, name
    if due is None:
        return None, interval_ms
    return (due[1], 0) if due[0] <= now_ms else (None, due[0] - now_ms)


@dataclass(frozen=True)
class Standing:
    """How long ago the sessions of a journal were compared with the server."""

    sessions: int
    """Those of which the server has acknowledged something."""
    suspected: int
    """Of these, how many the server seems to have lost something of, since their last audit."""
    late: int
    """How many have waited for longer than asked for."""
    oldest_ms: int
    """When the one that has waited longest was audited; 0 if none has waited too long."""


def standing(conn: sqlite3.Connection, now_ms: int, longest_ms: int) -> Standing:
    """What an audit would have to do; ``longest_ms``: after which a session has waited too long."""
    names = _acknowledged(conn)
    marks = _marks(conn)
    known = [int(marks[key]) for key in map(_mark, names) if key in marks]
    late = [mark for mark in known if 0 < mark < now_ms - longest_ms]
    return Standing(len(names), known.count(0), len(late), min(late, default=0))


def _acknowledged(conn: sqlite3.Connection) -> list[str]:
    return list(
        session_ids(
            conn.execute(
                "SELECT session_id FROM sessions s WHERE EXISTS "
                f"(SELECT 1 FROM ops WHERE session = s.id AND state = {ACKED})"
            ).fetchall()
        )
    )


def _marks(conn: sqlite3.Connection) -> dict[str, str]:
    return dict(
        conn.execute("SELECT key, value FROM meta WHERE key >= 'audit:' AND key < 'audit;'")
    )


def note_audit(conn: sqlite3.Connection, session_id: str, now_ms: int) -> None:
    """An audit has ended well."""
    write_meta(conn, **{_mark(session_id): str(now_ms)})


def suspect(conn: sqlite3.Connection, session_id: str, now_ms: int, grace_ms: int) -> None:
    """The server seems to have lost something: audit soon, but not again so soon after the last."""
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (_mark(session_id),)).fetchone()
    if row is None or not 0 <= now_ms - int(row[0]) < grace_ms:
        write_meta(conn, **{_mark(session_id): "0"})


def _mark(session_id: str) -> str:
    return f"audit:{session_key(session_id)}"


def _place(*words: str) -> float:
    """A place from 0 to 1 that follows from the words alone."""
    return int(session_key("/".join(words))[:8], 16) / 0x1_0000_0000
