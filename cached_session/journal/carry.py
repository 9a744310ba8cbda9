"""What can be read of one journal goes on in another, and what cannot is named.

Operations are carried over one by one, each with its dot and its state, so that sending one again
changes nothing. What cannot be read is named in a report, kept in the fresh journal's `meta`; what
the server has of it comes back by itself.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from cached_session.history.ops import GONE, Dot, ItemRef, Kind, Operation
from cached_session.journal import gates, writes
from cached_session.journal.apply import ACKED, PARKED, PENDING, SENT, SessionTransaction
from cached_session.journal.outcome import is_passing
from cached_session.journal.reads import session_ids

__all__ = ["Salvage", "Writers", "carry", "record", "report_of"]

LOST_MOST = 100
"""Losses that a report names one by one; the others are counted."""
PROBES_MOST = 1_000_000
"""Rows looked for one by one behind a damaged page."""
TOGETHER = 500
"""Operations applied before their effect is written back."""
TRIES = 2
"""SQLite calls a page malformed that the disk could not read once: everything is read again before
it is a loss."""
CHILDREN = ("claims", "forgets")
"""What else has no copy elsewhere: claims in doubt, and what the server is still to forget."""


@dataclass(frozen=True)
class Writers:
    """Under which id this process has written, and under which it goes on."""

    retired: str
    fresh: str


@dataclass(frozen=True)
class Salvage:
    """What became of a journal that was damaged or taken away."""

    at_ms: int
    why: str
    source: str
    """Which file it was: device and inode."""
    set_aside: str | None = None
    """Where the damaged file is now; None if somebody else took it away."""
    operations: int = 0
    """Operations carried over ..."""
    unsent: int = 0
    """... and how many of them no server had acknowledged."""
    lost: tuple[str, ...] = ()
    """What could not be read, in words."""
    lost_more: int = 0
    """Losses beyond those named."""

    def sentence(self) -> str:
        """The report in a line, for a status or a log."""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.at_ms / 1000))
        kept = f"the old file is {self.set_aside}" if self.set_aside else "the old file is gone"
        lost = len(self.lost) + self.lost_more
        what = f"{lost} losses: {'; '.join(self.lost)}" if lost else "nothing unsent was lost"
        return (
            f"{when}: {self.why}; {self.operations} operations were carried over, "
            f"{self.unsent} of them unsent; {what}; {kept}"
        )


def report_of(meta: dict[str, str]) -> Salvage | None:
    """The last report of a journal; None if there never was one."""
    text = meta.get("salvage")
    if text is None:
        return None
    found = json.loads(text)
    return Salvage(**{**found, "lost": tuple(found["lost"])})


def record(conn: sqlite3.Connection, report: Salvage) -> None:
    """Keep a report in the journal that it tells of."""
    gates.write_meta(conn, salvage=json.dumps(asdict(report)))


class _Losses:
    """What could not be read: named up to a bound, then counted."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.more = 0

    def add(self, text: str) -> None:
        if len(self.named) < LOST_MOST:
            self.named.append(text)
        else:
            self.more += 1


def carry(
    old: sqlite3.Connection, new: sqlite3.Connection, report: Salvage, writers: Writers
) -> Salvage:
    """Apply every operation that can be read of ``old`` to ``new``, in one transaction; the report,
    which is then in ``new`` too. What ``new`` has already stays as it is.

    An unsent batch of which some items are lost is carried over without them, and their removal is
    recorded under a fresh id, so that nobody waits for them.
    """
    losses = _Losses()
    operations = unsent = 0
    own = not new.in_transaction
    if own:
        new.execute("BEGIN IMMEDIATE")
    try:
        names = _names(old, losses)
        tx: SessionTransaction | None = None
        whose = ""
        author = writes.Author(writers.fresh, report.at_ms, 0)
        for looked_at, row in enumerate(_rows(old, losses)):
            number, state = row[1], row[11]
            name = names.get(number)
            if name is None:
                losses.add(f"operation {row[2]}:{row[3]} of a session whose name is unreadable")
                continue
            if tx is None or whose != name or looked_at % TOGETHER == 0:
                if tx is not None:
                    tx.finish()
                tx, whose = SessionTransaction.create(new, name, report.at_ms), name
            if _is_known(tx, row):
                continue
            op, gone = _operation(old, row, losses)
            if op is None or (gone and state == ACKED):
                # Acknowledged: the server has it whole.
                continue
            if not tx.apply(op, state=state, digest=row[10]):
                continue
            operations += 1
            unsent += state != ACKED
            if state == PARKED:
                tx.flush()
                new.execute(
                    "UPDATE ops SET error = ? WHERE session = ? AND writer = ? AND counter = ?",
                    (row[13], tx.session, *op.dot),
                )
            if gone:
                tx.finish()
                tx = None
                for index in gone:
                    losses.add(f"item {index} of {op.dot.writer}:{op.dot.counter} in {name!r}")
                    ref = ItemRef(op.dot, index, len(op.payloads))
                    writes.pop_ref(new, author, name, ref)
        if tx is not None:
            tx.finish()
        for table in CHILDREN:
            _copy(old, new, table, names, losses)
        report = replace(
            report,
            operations=operations,
            unsent=unsent,
            lost=tuple(losses.named),
            lost_more=losses.more,
        )
        # Which server `acked` speaks of, and what has been imported: not to be imported twice.
        for key, value in _all(old, "SELECT key, value FROM meta WHERE key = 'server'", (), losses):
            gates.write_meta(new, **{key: value})
        marks = "key >= 'import:' AND key < 'import;'"
        new.executemany(
            "INSERT OR IGNORE INTO meta VALUES (?, ?)",
            _all(old, f"SELECT key, value FROM meta WHERE {marks}", (), losses),
        )
        record(new, report)
        # Of an id whose operations may be lost in part, nobody knows the next counter.
        gates.write_meta(new, **{f"{writes.RETIRED}{writers.retired}": ""})
        if own:
            new.execute("COMMIT")
    except BaseException:
        if own and new.in_transaction:
            new.execute("ROLLBACK")
        raise
    return report


def _is_known(tx: SessionTransaction, row: tuple[Any, ...]) -> bool:
    """Whether the operation of a row is there already: its payloads need not be read then."""
    _, _, writer, counter, *_ = row
    if not isinstance(writer, str) or not isinstance(counter, int):
        return False
    return counter in tx.writer(writer).applied and tx.seen(Dot(writer, counter), row[10])


def _all(
    conn: sqlite3.Connection, sql: str, key: tuple[Any, ...], losses: _Losses
) -> list[tuple[Any, ...]]:
    """Rows up to the first damage; the damage is a loss."""
    most: list[tuple[Any, ...]] = []
    for _ in range(TRIES):
        found: list[tuple[Any, ...]] = []
        try:
            for row in conn.execute(sql, key):
                found.append(row)  # noqa: PERF402 - those before the damage are kept
        except sqlite3.DatabaseError as error:
            _if_damage(error)
            most = max(most, found, key=len)
        else:
            return found
    losses.add(f"rows of {sql.split(' FROM ')[1].split(maxsplit=1)[0]}")
    return most


def _one(conn: sqlite3.Connection, sql: str, key: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A row, or None for none.

    Raises:
        sqlite3.DatabaseError: it cannot be read.
    """
    try:
        row: tuple[Any, ...] | None = conn.execute(sql, key).fetchone()
    except sqlite3.DatabaseError as error:
        _if_damage(error)
        row = conn.execute(sql, key).fetchone()
    return row


def _if_damage(error: sqlite3.DatabaseError) -> None:
    """What passes is no damage: whoever mends must stop, and leave the file where it is."""
    if is_passing(error):
        raise error


def _names(conn: sqlite3.Connection, losses: _Losses) -> dict[int, str]:
    """The sessions by number: the table has them, and so has the index that keeps them unique."""
    lost = _Losses()
    rows = _all(conn, "SELECT session_id, id FROM sessions NOT INDEXED", (), lost)
    if lost.named:
        index = "sessions INDEXED BY sqlite_autoindex_sessions_1"
        rows += _all(conn, f"SELECT session_id, id FROM {index}", (), losses)
    return {row[1]: next(session_ids([row])) for row in rows if isinstance(row[1], int)}


COLUMNS = (
    "seq, session, writer, counter, kind, stamp, said_ms, count, live, private, digest, state, "
    "body, error"
)


def _rows(conn: sqlite3.Connection, losses: _Losses) -> Iterator[tuple[Any, ...]]:
    """Operations in the order of writing: a scan, and behind a damaged page one by one."""
    # The number of the row before the damage may be spoiled itself, and further than all others:
    # what follows is looked for behind the one before it.
    before, last, end, tries = 0, 0, _highest(conn), 0
    while True:
        try:
            for row in conn.execute(
                f"SELECT {COLUMNS} FROM ops NOT INDEXED WHERE seq > ? ORDER BY seq", (before,)
            ):
                if row[0] == last:
                    continue
                yield row
                before, last, tries = last if last <= end else before, row[0], 0
            return
        except sqlite3.DatabaseError as error:
            _if_damage(error)
        tries += 1
        if tries < TRIES:
            continue
        tries = 0
        for seq in range(before + 1, min(end, before + PROBES_MOST) + 1):
            if seq == last:
                continue
            try:
                row = _one(conn, f"SELECT {COLUMNS} FROM ops NOT INDEXED WHERE seq = ?", (seq,))
            except sqlite3.DatabaseError as error:
                _if_damage(error)
                continue
            if row is not None:
                first = (last if last < seq else before) + 1
                losses.add(f"operations number {first} to {seq - 1} of the journal")
                yield row
                before = last = seq
                break
        else:
            losses.add(f"operations from number {before + 1} of the journal on")
            return


def _highest(conn: sqlite3.Connection) -> int:
    for sql in (
        "SELECT seq FROM sqlite_sequence WHERE name = 'ops'",
        "SELECT max(seq) FROM ops NOT INDEXED",
    ):
        try:
            row = conn.execute(sql).fetchone()
        except sqlite3.DatabaseError as error:
            _if_damage(error)
            continue
        if row and isinstance(row[0], int):
            return row[0]
    return 10_000


def _operation(
    conn: sqlite3.Connection, row: tuple[Any, ...], losses: _Losses
) -> tuple[Operation | None, list[int]]:
    """The operation of a row, and which of its items should be here and cannot be read."""
    _, session, writer, counter, kind, stamp, said_ms, count, live, private, _, state, body, _ = row
    here = f"operation {writer}:{counter}"
    try:
        dot = Dot(str(writer), int(counter))
        texts: list[Any] = [body]
        gone: list[int] = []
        if kind == Kind.APPEND.value:
            texts, gone = _payloads(conn, (session, stamp, writer, counter), count, live)
        if state not in (PENDING, SENT, ACKED, PARKED) or not all(
            isinstance(text, str) for text in texts
        ):
            raise ValueError("it makes no sense")
        op = Operation(dot, Kind(kind), stamp, said_ms, tuple(texts), bool(private))
    except (TypeError, ValueError) as error:
        losses.add(f"{here}: {error}")
        return None, []
    return op, gone


def _payloads(
    conn: sqlite3.Connection, key: tuple[Any, ...], count: object, live: object
) -> tuple[list[object], list[int]]:
    if not isinstance(count, int) or not isinstance(live, int):
        raise TypeError("it makes no sense")
    where = "session = ? AND stamp = ? AND writer = ? AND counter = ?"
    sql = f"SELECT idx, CAST(payload AS BLOB) FROM items WHERE {where}"
    texts: list[object] = [GONE] * count
    unread: list[int] = []
    try:
        rows = conn.execute(sql, key).fetchall()
    except sqlite3.DatabaseError as error:
        _if_damage(error)
        rows = []
        for index in range(count):
            try:
                row = _one(conn, f"{sql} AND idx = ?", (*key, index))
            except sqlite3.DatabaseError as inner:
                _if_damage(inner)
                unread.append(index)
                continue
            if row is not None:
                rows.append(row)
    found = 0
    for index, payload in rows:
        try:
            text = payload.decode()
            json.loads(text)
        except (ValueError, RecursionError):
            # Damaged text: sealed by its writer, no other replica would ever take it.
            unread.append(index)
            continue
        texts[index] = text
        found += 1
    if found >= live:
        return texts, []
    # Which are lost and which were removed before can only be told where rows fail to be read.
    lost = unread or [index for index, text in enumerate(texts) if text == GONE]
    return texts, lost


def _copy(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    table: str,
    names: dict[int, str],
    losses: _Losses,
) -> None:
    """Rows of a table that begins with the session's number."""
    for number, *rest in _all(old, f"SELECT * FROM {table}", (), losses):
        name = names.get(number)
        tx = None if name is None else SessionTransaction.begin(new, name)
        if tx is not None:
            marks = ", ".join("?" * (len(rest) + 1))
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", (tx.session, *rest))
