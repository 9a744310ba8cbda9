"""A journal in memory, and readers of its state, for the property tests."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from cached_session.history.ops import Dot, Kind, Mark, Operation
from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.history.turns import TurnChoice
from cached_session.journal.journal import MEMORY, Journal
from cached_session.journal.sqlite.codec import codec_of
from cached_session.journal.tables import entry_rows, inbox, outbox, sessions, writes
from cached_session.journal.tables.apply import SessionTransaction
from cached_session.journal.tables.marks import read_marks
from tests.journal_rows import items_of
from tests.property.histories import SESSION, frontier_of
from tests.property.reference_model import marks, visible


class Replica:
    """One journal without its threads."""

    def __init__(self) -> None:
        self.journal = Journal(MEMORY, threaded=False)
        self.journal.open_blocking()
        self.last = writes.LastWrite()

    def close(self) -> None:
        self.journal.close_blocking()

    def apply(self, parts: Sequence[Part]) -> inbox.PageResult:
        return self.journal.write_blocking(
            lambda conn: inbox.apply_page(conn, SessionRef.of(SESSION), parts, [], 0)
        )

    def append(
        self,
        author: writes.Author,
        texts: Sequence[str],
        fails: str = "",
        choice: TurnChoice = writes.NEW_TURN,
    ) -> None:
        """Append as a session does, or let the append fail at its first write or at its end and
        roll back."""
        encoded = [(text, codec_of(text)) for text in texts]

        def job(conn: sqlite3.Connection) -> writes.Written:
            conn.set_authorizer(_read_only if fails == "first" else _anything)
            try:
                written = writes.append(
                    conn, author, SESSION, encoded, private=False, choice=choice, last=self.last
                )
            finally:
                conn.set_authorizer(_anything)
            if fails == "last":
                raise OSError("the disk has had enough")
            return written

        self.last.keep(self.journal.write_blocking(job))

    def pop(self, author: writes.Author) -> str | None:
        """Pop as a session does, and return the item's text."""
        popped = self.journal.write_blocking(
            lambda conn: writes.pop(conn, author, SESSION, self.last)
        )
        if popped is None:
            return None
        self.last.keep(popped.written)
        return popped.row[0].decode()

    def mark(self, author: writes.Author, mark: Mark) -> None:
        """Write a mark as a session does."""
        self.journal.write_blocking(writes.write_mark, author, SESSION, mark)

    def row(self, sql: str, *key: object) -> tuple:
        return self.journal.read_blocking(lambda conn: conn.execute(sql, key).fetchone())

    def rows(self, sql: str) -> list[tuple]:
        return self.journal.read_blocking(lambda conn: conn.execute(sql).fetchall())

    def entries(self, limit: int | None = None) -> list:
        return self.journal.read_blocking(lambda conn: entry_rows.entries(conn, SESSION, limit))

    def marks(self) -> dict[tuple[str, str], tuple[Dot, object]]:
        """Return the dot and the value of each mark that counts."""
        rows = self.journal.read_blocking(read_marks, SESSION, None, None)
        return {(row.mark.type, row.mark.key): (row.dot, row.mark.value) for row in rows}

    def frontier(self) -> set[Dot]:
        def read(conn: object) -> set[Dot]:
            tx = SessionTransaction.begin(conn, SESSION)
            frontier = None if tx is None else tx.frontier()
            return {
                Dot(writer, counter)
                for writer in (frontier.writers() if frontier else ())
                for first, last in frontier.ranges(writer)
                for counter in range(first, last + 1)
            }

        return self.journal.write_blocking(read)

    def newest(self) -> outbox.Outgoing:
        (seq,) = self.row("SELECT max(seq) FROM ops")
        (found,) = self.journal.read_blocking(lambda c: outbox.load(c, "seq = ?", (seq,)))
        return found

    def state(self) -> dict[str, list[tuple]]:
        """Return the state that two journals with the same operations must share, row for row."""
        return {
            "items": self.journal.read_blocking(items_of, SESSION),
            "ops": self.rows(
                "SELECT writer, counter, kind, turn_stamp, turn_writer, turn_counter, stamp, "
                "said_ms, count, live, private, digest, CASE WHEN kind <> 'append' THEN body END "
                "FROM ops WHERE session > 0 ORDER BY 1, 2"
            ),
            "frontier": self.rows("SELECT writer, upto FROM frontier WHERE upto ORDER BY 1"),
            "above": self.rows("SELECT * FROM above ORDER BY 1, 2, 3"),
            "cleared": self.rows("SELECT * FROM cleared ORDER BY 1, 2, 3"),
            "popped": self.rows("SELECT * FROM popped ORDER BY 1, 2, 3, 4"),
            "sessions": self.rows("SELECT session_id, stamp, items, conflicts FROM sessions"),
        }

    def check(
        self, ops: Iterable[Operation], *, frontier: bool = True, pruned: bool = False
    ) -> None:
        """Check items, counts and frontier of the journal against the brute-force result for these
        operations."""
        ops = list(ops)
        expected = visible(ops)
        entries = self.entries()
        shown = [((e.writer, e.counter), e.index, e.item) for e in entries]
        assert shown == [(tuple(dot), index, json.loads(text)) for dot, index, text in expected]
        assert [entry.rank for entry in entries] == list(range(len(expected)))
        assert self.marks() == marks(ops)
        counted = self.journal.read_blocking(sessions.session_row, SESSION)
        assert (counted[1] if counted else 0) == len(expected)
        live = dict.fromkeys((op.dot for op in ops if op.kind is Kind.APPEND), 0)
        for dot, _, _ in expected:
            live[dot] += 1
        rows = self.rows("SELECT writer, counter, live FROM ops WHERE kind = 'append'")
        found = {Dot(*row[:2]): row[2] for row in rows}
        if pruned:
            # Operations that are not visible may have been pruned.
            found = dict.fromkeys((dot for dot in live if not live[dot]), 0) | found
        assert found == live
        if frontier:
            assert self.frontier() == frontier_of(ops)


def _anything(*_: object) -> int:
    return sqlite3.SQLITE_OK


def _read_only(action: int, *_: object) -> int:
    is_write = action in (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE)
    return sqlite3.SQLITE_DENY if is_write else sqlite3.SQLITE_OK
