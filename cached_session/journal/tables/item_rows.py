"""What a session call reads. Costs depend on what is asked for, not on the history's length."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from cached_session.journal.sqlite.codec import decode_rows
from cached_session.journal.tables.apply import ACKED, PARKED, PENDING, SENT, stored_id
from cached_session.journal.tables.pauses import SERVER, Gate
from cached_session.journal.tail_cache import queueing
from cached_session.models import Entry

__all__ = [
    "BACKWARDS",
    "HISTORY",
    "Place",
    "SessionFacts",
    "all_gates",
    "all_sessions",
    "entries",
    "entries_at",
    "entries_backwards",
    "entry_at",
    "facts",
    "facts_of_each",
    "forget_server",
    "has_unsent",
    "in_all",
    "is_whole_tail",
    "note_met",
    "numbered_sessions",
    "pending_sessions",
    "ranked",
    "revision_of",
    "run_of",
    "session_ids",
    "session_row",
    "slices",
    "snapshot",
    "sync_state",
    "tail",
]

HISTORY = (
    "SELECT CAST(payload AS BLOB), codec FROM items WHERE session = ? "
    "ORDER BY session, stamp, writer, counter, idx"
)
"""All items of a session in order: one scan of their clustered rows. As bytes, so that one row
whose text is damaged cannot keep its neighbours from being read."""
BACKWARDS = (
    "SELECT CAST(payload AS BLOB), codec FROM items WHERE session = ? "
    "ORDER BY session DESC, stamp DESC, writer DESC, counter DESC, idx DESC"
)
"""The same, latest first."""
TAIL = f"{BACKWARDS} LIMIT ?"
FORWARD = (
    "FROM items WHERE session = ? AND (stamp, writer, counter, idx) > (?, ?, ?, ?) "
    "ORDER BY session, stamp, writer, counter, idx LIMIT ?"
)
JOINED = (
    "SELECT CAST(group_concat(payload) AS BLOB), count(*), max(codec) "
    f"FROM (SELECT payload, codec {FORWARD})"
)
"""A slice as one text: a row of Python's for each item costs as much again as all of SQLite."""


@dataclass(frozen=True)
class SessionFacts:
    """The state of one session (or of all) as its rows tell it."""

    items: int
    pending: int
    parked: int
    absent: int
    explained: int
    incomplete: int
    oldest_pending_ms: int | None
    conflicts: int
    unreadable: int
    guard: str
    hydrated: bool
    pulled_ms: int
    stamp: int


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """Several queries over one moment of the journal."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("COMMIT")


def session_row(conn: sqlite3.Connection, session_id: str) -> tuple[int, int, int, int, int] | None:
    """(row id, items, met, hydrated, revision) of a session the journal knows."""
    row: tuple[int, int, int, int, int] | None = conn.execute(
        "SELECT id, items, met, hydrated, revision FROM sessions WHERE session_id = ?",
        (stored_id(session_id),),
    ).fetchone()
    return row


def revision_of(conn: sqlite3.Connection, session_id: str) -> int | None:
    """The revision of a session the journal knows: one statement, and so one snapshot."""
    row = conn.execute(
        "SELECT revision FROM sessions WHERE session_id = ?", (stored_id(session_id),)
    ).fetchone()
    return None if row is None else row[0]


def is_whole_tail(conn: sqlite3.Connection, session: int, limit: int) -> bool:
    """Whether nothing is known to be missing among the latest ``limit`` items: where a listing's
    order says little, its first page holds some of many turns rather than the last ones."""
    oldest = conn.execute(
        "SELECT writer, min(counter) FROM (SELECT writer, counter FROM items WHERE session = ? "
        "ORDER BY session DESC, stamp DESC, writer DESC, counter DESC, idx DESC LIMIT ?) "
        "GROUP BY writer",
        (session, limit),
    ).fetchall()
    for writer, counter in oldest:
        # Stretches above a hole: the oldest item and all that follows must lie in one.
        later = conn.execute(
            "SELECT 1 FROM above WHERE session = ? AND writer = ? AND first > ?",
            (session, writer, counter),
        ).fetchone()
        if later:
            return False
    return True


def tail(
    conn: sqlite3.Connection, session: int, limit: int, most_bytes: int
) -> list[tuple[bytes, int]] | None:
    """The latest ``limit`` rows, oldest first; None if they are larger than ``most_bytes``."""
    cursor = conn.execute(TAIL, (session, limit))
    rows = cursor.fetchmany(64)
    size = sum(len(payload) for payload, _ in rows)
    while size <= most_bytes:
        more = cursor.fetchmany(64)
        if not more:
            rows.reverse()
            return rows
        size += sum(len(payload) for payload, _ in more)
        rows += more
    cursor.close()
    return None


@dataclass
class Slice:
    """Neighbouring items."""

    array: bytes
    """All of them, as JSON."""
    count: int
    is_fast: bool
    """Whether all of them were written by the fast library."""
    rows: Callable[[], list[tuple[bytes, int]]]
    """The same one by one."""


def slices(
    conn: sqlite3.Connection, session: int, most_items: int, most_bytes: int
) -> Iterator[Slice]:
    """All items of a session in order, so many at a time, and about so much; inside a snapshot."""
    place: tuple[Any, ...] | None = (-(1 << 63), "", 0, 0)
    most = most_items
    while place is not None:
        key = (session, *place, most)
        joined, count, codec = conn.execute(JOINED, key).fetchone()
        if not count:
            return

        def rows(key: tuple[Any, ...] = key) -> list[tuple[bytes, int]]:
            return conn.execute(f"SELECT CAST(payload AS BLOB), codec {FORWARD}", key).fetchall()

        yield Slice(b"[%b]" % joined, count, not codec, rows)
        place = conn.execute(
            f"SELECT stamp, writer, counter, idx {FORWARD} OFFSET ?", (*key[:-1], 1, most - 1)
        ).fetchone()
        # The next items are likely as large as these.
        most = max(1, min(most_items, count * most_bytes // max(1, len(joined))))


Place = tuple[int, str, int, int]
"""Where an item stands in its session: (stamp, writer, counter, index), which is how items sort."""
ENTRY = (
    "SELECT CAST(i.payload AS BLOB), i.codec, i.stamp, i.writer, i.counter, i.idx, "
    "o.state, o.said_ms "
    "FROM items i CROSS JOIN ops o ON o.session = i.session AND o.writer = i.writer "
    "AND o.counter = i.counter WHERE i.session = ? "
)
ENTRIES = (
    f"{ENTRY}ORDER BY i.session DESC, i.stamp DESC, i.writer DESC, i.counter DESC, i.idx DESC "
    "LIMIT ?"
)
AT = f"{ENTRY}AND i.stamp = ? AND i.writer = ? AND i.counter = ? AND i.idx = ?"
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


def entries_backwards(
    conn: sqlite3.Connection, session_id: str, limit: int | None
) -> Iterator[tuple[Entry, bytes]]:
    """The latest entries with their payloads, latest first. A rank is counted from the end: the
    journal keeps the number of items, so nothing is ever renumbered."""
    row = session_row(conn, session_id)
    if row is None:
        return
    session, count = row[0], row[1]
    rows = conn.execute(ENTRIES, (session, -1 if limit is None else limit))
    for back, row in enumerate(rows):
        for entry in _entry(count - 1 - back, row):
            yield entry, row[0]


def _entry(rank: int, row: tuple[Any, ...]) -> list[Entry]:
    """The entry of an `ENTRY` row; none if its item cannot be decoded."""
    payload, codec, stamp, writer, counter, index, state, said_ms = row
    return [
        Entry(
            rank=rank,
            item=item,
            stamp=stamp,
            run=run_of(stamp, writer),
            writer=writer,
            counter=counter,
            index=index,
            sync_state=sync_state(state),
            said_at=said_ms / 1000,
        )
        for item in decode_rows([(payload, codec)])
    ]


def ranked(
    conn: sqlite3.Connection, session: int, count: int, places: Iterable[Place]
) -> Iterator[Entry]:
    """The entries at these places, which come latest first. To rank them the items between two of
    them are counted by their keys, and not read."""
    above: Place | None = None
    rank = count
    for place in places:
        row = conn.execute(AT, (session, *place)).fetchone()
        if row is None:
            continue
        rank -= _between(conn, session, place, above)
        above = place
        yield from _entry(rank, row)


def entry_at(conn: sqlite3.Connection, session: int, place: Place, rank: int) -> list[Entry]:
    """The entry at a place, which has this rank; none where there is none that can be decoded."""
    row = conn.execute(AT, (session, *place)).fetchone()
    return [] if row is None else _entry(rank, row)


def run_of(stamp: int, writer: str) -> str:
    """The name of a run."""
    return f"{stamp:016x}-{writer}"


def _between(conn: sqlite3.Connection, session: int, place: Place, above: Place | None) -> int:
    """How many items stand at a place and after it, below another place."""
    below = "" if above is None else "AND (stamp, writer, counter, idx) < (?, ?, ?, ?)"
    (count,) = conn.execute(
        "SELECT count(*) FROM items WHERE session = ? "
        f"AND (stamp, writer, counter, idx) >= (?, ?, ?, ?) {below}",
        (session, *place, *(above or ())),
    ).fetchone()
    return int(count)


def entries(conn: sqlite3.Connection, session_id: str, limit: int | None) -> list[Entry]:
    """The latest entries, oldest first."""
    # The limit counts what can be decoded, as that of `get_items` does.
    rows = entries_backwards(conn, session_id, None)
    found = [entry for entry, _ in islice(rows, limit)]
    found.reverse()
    return found


def entries_at(
    conn: sqlite3.Connection, session_id: str, places: Iterable[tuple[str, int, int]]
) -> list[Entry]:
    """The visible entries at these (writer, counter, index), in the order given."""
    wanted = list(places)
    with snapshot(conn):
        row = session_row(conn, session_id)
        if row is None:
            return []
        standing: set[Place] = set()
        for writer, counter, index in wanted:
            found = conn.execute(
                "SELECT stamp FROM ops WHERE session = ? AND writer = ? AND counter = ?",
                (row[0], writer, counter),
            ).fetchone()
            if found is not None:
                standing.add((found[0], writer, counter, index))
        entries = {
            (entry.writer, entry.counter, entry.index): entry
            for entry in ranked(conn, row[0], row[1], sorted(standing, reverse=True))
        }
    return [entries[place] for place in wanted if place in entries]


def session_ids(rows: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    """Session ids as their owners know them."""
    for name, *_ in rows:
        yield name.decode("utf-8", "surrogatepass") if isinstance(name, bytes) else name


def pending_sessions(conn: sqlite3.Connection) -> list[str]:
    """Sessions with something to send, to have forgotten or to settle. Cost: those sessions, and
    what of them is parked; not how much waits in each."""
    return list(session_ids(conn.execute(WAITING).fetchall()))


def _stepping(table: str, rows: str = "1") -> str:
    """The session numbers in a table, each once: from one to the next by its index."""
    least = f"SELECT min(session) FROM {table} WHERE {rows}"
    return f"{least} UNION ALL SELECT ({least} AND session > s) FROM {{name}} WHERE s IS NOT NULL"


WAITING = (
    "WITH RECURSIVE "
    f"unacked(s) AS ({_stepping('ops', 'state <> 2').format(name='unacked')}), "
    f"forgetting(s) AS ({_stepping('forgets').format(name='forgetting')}) "
    "SELECT session_id FROM sessions WHERE id IN (SELECT s FROM unacked WHERE EXISTS "
    f"(SELECT 1 FROM ops WHERE session = s AND state <> 2 AND state <> {PARKED}) "
    "UNION SELECT s FROM forgetting UNION SELECT session FROM claims)"
)


def has_unsent(conn: sqlite3.Connection, session_id: str) -> bool:
    """Whether a session has something to send."""
    row = session_row(conn, session_id)
    found = (
        row
        and conn.execute(
            f"SELECT 1 FROM ops WHERE session = ? AND state <> 2 AND state <> {PARKED} LIMIT 1",
            (row[0],),
        ).fetchone()
    )
    return bool(found)


def facts(
    conn: sqlite3.Connection, session: int | None, now_ms: int, patience_ms: int
) -> SessionFacts:
    """Counts for a status, of one session or of all together. Cost: the outbox and the holes, never
    the history."""
    return in_all(facts_of_each(conn, session, now_ms, patience_ms).values())


def facts_of_each(
    conn: sqlite3.Connection, session: int | None, now_ms: int, patience_ms: int
) -> dict[int, SessionFacts]:
    """The same session by session, in the order of their numbers: of one, or (None) of all. As many
    queries for a thousand as for one."""
    of, key = ("session = ? AND", (session,)) if session is not None else ("", ())

    def grouped(what: str, rows: str, *before: int) -> dict[int, tuple[Any, ...]]:
        sql = f"SELECT session, {what} FROM {rows} GROUP BY session"
        return {number: tuple(found) for number, *found in conn.execute(sql, (*before, *key))}

    waiting = grouped(
        "count(*), min(said_ms)",
        f"ops WHERE {of} state <> 2 AND state IN ({PENDING}, {SENT})",
    )
    parked = grouped("count(*)", f"ops WHERE {of} state <> 2 AND state = {PARKED}")
    holes = grouped(
        "sum(since_ms <= ? AND NOT explained), sum(explained)",
        f"holes WHERE {of} 1",
        now_ms - patience_ms,
    )
    incomplete = grouped(
        "count(*)", f"(SELECT DISTINCT session, writer, counter FROM parts WHERE {of} 1)"
    )
    of = "WHERE id = ?" if session is not None else ""
    rows = conn.execute(
        "SELECT id, items, conflicts, unreadable, guard, hydrated, pulled_ms, stamp "
        f"FROM sessions {of} ORDER BY id",
        key,
    )
    found = {}
    for number, items, conflicts, unreadable, guard, hydrated, pulled_ms, stamp in rows:
        pending, oldest = waiting.get(number, (0, None))
        absent, explained = holes.get(number, (0, 0))
        found[number] = SessionFacts(
            items=items,
            pending=pending,
            parked=parked.get(number, (0,))[0],
            absent=absent,
            explained=explained,
            incomplete=incomplete.get(number, (0,))[0],
            oldest_pending_ms=oldest,
            conflicts=conflicts,
            unreadable=unreadable,
            guard=guard,
            hydrated=bool(hydrated),
            pulled_ms=pulled_ms,
            stamp=stamp,
        )
    return found


def in_all(each: Iterable[SessionFacts]) -> SessionFacts:
    """Of several sessions together; of none, nothing."""
    every = list(each)
    oldest = [one.oldest_pending_ms for one in every if one.oldest_pending_ms is not None]
    return SessionFacts(
        items=sum(one.items for one in every),
        pending=sum(one.pending for one in every),
        parked=sum(one.parked for one in every),
        absent=sum(one.absent for one in every),
        explained=sum(one.explained for one in every),
        incomplete=sum(one.incomplete for one in every),
        oldest_pending_ms=min(oldest, default=None),
        conflicts=sum(one.conflicts for one in every),
        unreadable=sum(one.unreadable for one in every),
        guard=max((one.guard for one in every), default=""),
        hydrated=bool(every) and all(one.hydrated for one in every),
        pulled_ms=max((one.pulled_ms for one in every), default=0),
        stamp=max((one.stamp for one in every), default=0),
    )


def all_sessions(conn: sqlite3.Connection) -> list[str]:
    """Every session that the journal knows."""
    return list(session_ids(conn.execute("SELECT session_id FROM sessions ORDER BY id")))


def numbered_sessions(conn: sqlite3.Connection) -> dict[int, str]:
    """The same by their numbers."""
    rows = conn.execute("SELECT session_id, id FROM sessions ORDER BY id").fetchall()
    return {row[1]: name for row, name in zip(rows, session_ids(rows), strict=True)}


def all_gates(conn: sqlite3.Connection) -> dict[int, Gate]:
    """Every gate before a session, by its number."""
    return {
        number: Gate(*row)
        for number, *row in conn.execute(
            "SELECT session, failures, pause_ms, until_ms, kind, reason, since_ms FROM gates "
            f"WHERE session <> {SERVER}"
        )
    }


def note_met(conn: sqlite3.Connection, session_id: str, now_ms: int) -> None:
    """The first read of a session has had its wait."""
    conn.execute(
        "INSERT INTO sessions (session_id, met, created_ms) VALUES (?, 1, ?) "
        "ON CONFLICT DO UPDATE SET met = 1",
        (stored_id(session_id), now_ms),
    )


def forget_server(conn: sqlite3.Connection) -> None:
    """The journal goes on with another server, of which nothing is known: everything that can be
    said again will be, and everything is listed anew."""
    # Others that had it from the old one may bring it as well: it does not count as never sent.
    conn.execute(f"UPDATE ops SET state = {SENT} WHERE state IN ({ACKED}, {PARKED})")
    conn.execute("DELETE FROM settled")
    conn.execute("DELETE FROM claims")
    conn.execute("UPDATE sessions SET hydrated = 0, ground = 0, guarded_ms = 0, guard = ''")
    conn.execute("DELETE FROM gates")
    queueing(conn)
