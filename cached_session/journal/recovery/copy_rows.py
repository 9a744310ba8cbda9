"""What can be read of one journal goes on in another, and what cannot is named.

Operations are carried over one by one, each with its dot and its state, so that sending one again
changes nothing. What cannot be read is named in a report, kept in the fresh journal's `meta`; what
the server has of it comes back by itself.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cached_session.history.clock import stamp_ms
from cached_session.history.ops import (
    GONE,
    Dot,
    ItemRef,
    Kind,
    Operation,
    cleared_by,
    popped_by,
)
from cached_session.journal.recovery import row_check
from cached_session.journal.sqlite.db_errors import is_passing
from cached_session.journal.tables import writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.meta import write_meta
from cached_session.journal.tables.row_bounds import check_operation
from cached_session.journal.tables.sessions import session_ids
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT

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
    write_meta(conn, salvage=json.dumps(asdict(report)))


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
    recorded under a fresh id, so that nobody waits for them. What of an operation can be made anew
    is no reason to lose its words: see `_Found`.
    """
    factory, old.text_factory = old.text_factory, _text
    try:
        return _carry(old, new, report, writers)
    finally:
        old.text_factory = factory


def _text(cell: bytes) -> str | bytes:
    """A text; bytes that are none as they are, so that they hide nothing beside them."""
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell


def _carry(
    old: sqlite3.Connection, new: sqlite3.Connection, report: Salvage, writers: Writers
) -> Salvage:
    losses = _Losses()
    operations = unsent = sealed = 0
    own = not new.in_transaction
    if own:
        new.execute("BEGIN IMMEDIATE")
    try:
        names = _names(old, losses)
        tx: SessionTransaction | None = None
        whose = ""
        author = writes.Author(writers.fresh, report.at_ms, 0)
        for looked_at, row in enumerate(_rows(old, losses)):
            name = names.get(row[1])
            if name is None:
                losses.add(f"operation {row[2]}:{row[3]} of a session whose name is unreadable")
                continue
            if tx is None or whose != name or looked_at % TOGETHER == 0:
                if tx is not None:
                    tx.finish()
                tx, whose = SessionTransaction.create(new, name, report.at_ms), name
            if _is_known(tx, row):
                continue
            found = _operation(old, row, losses)
            if found is None or (found.state == ACKED and found.is_less_than_sent):
                # Acknowledged: the server has it whole.
                continue
            op = found.op
            if not tx.apply(op, state=found.state, digest=found.digest):
                continue
            operations += 1
            unsent += found.state != ACKED
            sealed += found.digest is None
            if found.error is not None:
                tx.flush()
                new.execute(
                    "UPDATE ops SET error = ? WHERE session = ? AND writer = ? AND counter = ?",
                    (found.error, tx.session, *op.dot),
                )
            if found.lost:
                tx.finish()
                tx = None
                for index in found.lost:
                    losses.add(f"item {index} of {op.dot.writer}:{op.dot.counter} in {name!r}")
                    ref = ItemRef(op.dot, index, len(op.payloads))
                    writes.pop_ref(new, author, name, ref)
        if tx is not None:
            tx.finish()
        for table in CHILDREN:
            _copy(old, new, table, names, losses)
        report = replace(
            report,
            why=f"{report.why}; digests made anew: {sealed}" if sealed else report.why,
            operations=operations,
            unsent=unsent,
            lost=tuple(losses.named),
            lost_more=losses.more,
        )
        # Which server `acked` speaks of, and what has been imported: not to be imported twice.
        kept = "key = 'server' OR (key >= 'import:' AND key < 'import;')"
        for key, value in _all(old, f"SELECT key, value FROM meta WHERE {kept}", (), losses):
            if not row_check.is_fact(key, value):
                losses.add(f"the fact {key!r:.80}")
            elif key == "server":
                write_meta(new, server=value)
            else:
                new.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        record(new, report)
        # Of an id whose operations may be lost in part, nobody knows the next counter.
        write_meta(new, **{f"{writes.RETIRED}{writers.retired}": ""})
        if own:
            new.execute("COMMIT")
    except BaseException:
        if own and new.in_transaction:
            new.execute("ROLLBACK")
        raise
    return report


def _is_known(tx: SessionTransaction, row: tuple[Any, ...]) -> bool:
    """Whether the operation of a row is there already: its payloads need not be read then."""
    writer, counter, digest = row[2], row[3], row[10]
    if not isinstance(writer, str) or type(counter) is not int or not isinstance(digest, str):
        return False
    return counter in tx.writer(writer).applied and tx.seen(Dot(writer, counter), digest)


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
    names: dict[int, str] = {}
    for name, number in rows:
        if row_check.is_name(name):
            names[number] = next(session_ids([(name,)]))
        else:
            losses.add(f"the name of session {number}")
    return names


COLUMNS = (
    "seq, session, writer, counter, kind, stamp, said_ms, count, live, private, digest, state, "
    "body, error"
)


def _rows(conn: sqlite3.Connection, losses: _Losses) -> Iterator[tuple[Any, ...]]:
    """Operations in the order of writing: a scan, and behind a damaged page one by one."""
    # The number of the row before the damage may be spoiled itself, and further than all others:
    # what follows is looked for behind the one before it.
    before, last, end = 0, 0, _highest(conn)
    failed: Counter[int] = Counter()
    while True:
        try:
            for row in conn.execute(
                f"SELECT {COLUMNS} FROM ops NOT INDEXED WHERE seq > ? ORDER BY seq", (before,)
            ):
                if row[0] == last:
                    continue
                yield row
                before, last = last if last <= end else before, row[0]
            return
        except sqlite3.DatabaseError as error:
            _if_damage(error)
        # Counted by number, so that this ends where spoiled numbers lead back to an earlier one.
        failed[before] += 1
        if failed[before] < TRIES:
            continue
        if failed[before] > TRIES:
            losses.add(f"operations from number {before + 1} of the journal on")
            return
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


@dataclass(frozen=True)
class _Found:
    """What a row says of an operation, as far as it makes sense. What does not, and can be told
    from the rest, is made anew: the time, from the stamp; the state, as one that is sent again,
    which changes nothing; and the digest.

    A digest is the sum of what stands beside it. Where every payload is here, that sum is the very
    digest that others know, and nobody can tell that it was spoiled. Where some were popped before,
    it is another one: whoever has the operation from elsewhere counts a conflict, and shows the
    same items as before, because seals are over single payloads. So nothing that was unsent is
    lost for its sake, and what is acknowledged comes back from the server with its own.
    """

    op: Operation
    state: int
    digest: str | None
    """None: spoiled."""
    error: str | None
    lost: Sequence[int]
    """Its items that should be here and cannot be read."""

    @property
    def is_less_than_sent(self) -> bool:
        """Whether others, who have it whole, know it better."""
        return bool(self.lost) or (self.digest is None and GONE in self.op.payloads)


def _operation(conn: sqlite3.Connection, row: tuple[Any, ...], losses: _Losses) -> _Found | None:
    """The operation of a row; None if it cannot be told what it was."""
    _, session, writer, counter, kind, stamp, said_ms, count, live, *others = row
    private, digest, state, body, error = others
    try:
        if said_ms is None or type(said_ms) is not int:
            said_ms = stamp_ms(stamp)
        check_operation(writer, counter, stamp, said_ms, count, "")
        texts: list[str] = [body]
        lost: list[int] = []
        if kind == Kind.APPEND.value:
            texts, lost = _payloads(conn, (session, stamp, writer, counter), count, live)
        elif kind == Kind.POP.value:
            popped_by(body)
        else:
            cleared_by(body)
        # What was to be kept out of the server's index must not get there.
        is_private = private not in (0, False)
        op = Operation(Dot(writer, counter), Kind(kind), stamp, said_ms, tuple(texts), is_private)
    except (TypeError, ValueError) as damage:
        losses.add(f"operation {writer}:{counter}: {damage}")
        return None
    return _Found(
        op,
        state if state in (PENDING, SENT, ACKED, PARKED) else SENT,
        digest if isinstance(digest, str) and digest else None,
        error if isinstance(error, str) else None,
        lost,
    )


def _payloads(
    conn: sqlite3.Connection, key: tuple[Any, ...], count: int, live: object
) -> tuple[list[str], list[int]]:
    where = "session = ? AND stamp = ? AND writer = ? AND counter = ?"
    sql = f"SELECT idx, CAST(payload AS BLOB) FROM items WHERE {where}"
    texts = [GONE] * count
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
        if type(index) is not int or not 0 <= index < count:
            continue
        try:
            text = (payload or b"").decode()
            json.loads(text)
        except (ValueError, RecursionError):
            # Damaged text: sealed by its writer, no other replica would ever take it.
            unread.append(index)
            continue
        texts[index] = text
        found += 1
    if found >= (live if type(live) is int else 0):
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
    rows = _all(old, f"SELECT {row_check.rule(table)}, * FROM {table}", (), losses)
    for is_sound, number, *rest in rows:
        if not is_sound or any(isinstance(cell, bytes) for cell in rest):
            losses.add(f"a row of {table}")
            continue
        name = names.get(number)
        tx = None if name is None else SessionTransaction.begin(new, name)
        if tx is not None:
            marks = ", ".join("?" * (len(rest) + 1))
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", (tx.session, *rest))
