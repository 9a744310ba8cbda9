"""The full-text index, which finds the operations that may contain a word.

The index returns candidates: `journal/search.py` checks the text of each candidate. So an outdated
entry costs time, but never gives a wrong result.

Each operation is one document, whose row number is the operation's `seq`. SQLite splits the text
into sequences of three characters (trigrams), which works in any script. Words of one or two
characters (in Chinese, Japanese, Korean, Thai, emoji) are shorter than a trigram. So the document
repeats these characters with separators between them: each single character and each pair then
forms a trigram. Three more characters encode the session's number.

Indexing an operation alone costs SQLite more than storing it, and ten times as much as indexing it
together with many others. So a write does not index its operation. The writing thread indexes
operations in slices while it is idle, or after many writes without a pause. A search also
reads the operations that are not indexed yet.

The last indexed `seq` is stored in the file (`meta`, key `search_index`). A process without FTS5
deletes this key when it opens the file, and so does a process that finds the index damaged. The
next opening with FTS5 builds the index again.

A SQL filter instead of the index (``payload LIKE ?``, and every row that is not ASCII) was measured
with 100,000 items. The filter took 47 to 80 ms for a rare English word (index: 1 to 31 ms), and 1.5
to 2.3 s for a rare Chinese word (index: 1 to 64 ms).
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable, Sequence

from cached_session.history.item_text import normalize_text, role_and_text
from cached_session.journal.sqlite.db_errors import is_transient
from cached_session.journal.sqlite.runner import Runner
from cached_session.journal.tables.payloads import visible_payloads
from cached_session.journal.tables.states import PLACE, Place

__all__ = [
    "CREATE",
    "SearchIndex",
    "Spoiled",
    "add",
    "candidates",
    "catch_up",
    "document",
    "give_up",
    "is_available",
    "is_behind",
    "is_kept",
    "is_sound",
    "reach",
    "rebuild_if_damaged",
    "remove",
    "slice_up",
    "switch",
    "terms",
]

log = logging.getLogger("cached_session.journal")

CREATE = (
    "CREATE VIRTUAL TABLE words USING fts5(text, content='', columnsize=0, detail=none, "
    "tokenize='trigram case_sensitive 1')"
)
"""The statement that creates the index table. The table stores the trigrams of each operation,
without the text and without positions."""

KEY = "search_index"
GRAM = 3
SEPARATOR = "\x1f"
WIDE = re.compile("[\u0e00-\u0eff\u1100-\u11ff\u2e80-\U0010ffff]+")
"""Sequences of characters from scripts with words of one character: Thai and Lao, Jamo, and
everything from the CJK radicals on (kana, ideographs, Hangul, emoji)."""
MOST_TERMS = 48
"""Maximum number of trigrams in one query. More trigrams would not exclude further operations."""
PRIVATE, PRIVATE_SIZE = 0xE000, 6400
"""Unicode's private use area, whose characters encode the number of a session."""
BEHIND = 64
"""Maximum number of operations that may wait before the idle work indexes a slice."""
VISIBLE = "session = ? AND branch = '' AND +live > 0"
"""The condition that selects operations with visible items. The sign prevents that SQLite uses the
index `place`, which would read the whole session."""
GAVE_UP = "the search index failed and is not used until the next opening builds it again: %s"
"""The log message after an error of the index."""
SLICE = 256
"""Maximum number of operations that one background transaction indexes, in a few milliseconds."""
SLICE_BYTES = 256 * 1024
"""Maximum number of payload bytes in a slice of more than one operation."""


class Spoiled(Exception):
    """The index is damaged."""


def is_available(conn: sqlite3.Connection) -> bool:
    """Return whether this SQLite has FTS5 with trigrams (3.34 and later)."""
    try:
        conn.execute(f"CREATE VIRTUAL TABLE temp.try{CREATE[len('CREATE VIRTUAL TABLE ') :]}")
    except sqlite3.OperationalError:
        return False
    conn.execute("DROP TABLE temp.trywords")
    return True


def reach(conn: sqlite3.Connection) -> int | None:
    """Return the `seq` of the last indexed operation; None if the file has no index."""
    row = conn.execute(f"SELECT value FROM meta WHERE key = '{KEY}'").fetchone()
    return None if row is None else int(row[0])


def is_kept(conn: sqlite3.Connection) -> bool:
    """Return whether the file has an index that is in use."""
    return conn.execute(f"SELECT 1 FROM meta WHERE key = '{KEY}'").fetchone() is not None


def switch(conn: sqlite3.Connection, on: bool) -> None:
    """Create or drop the index, inside the transaction that opens the file. Existing items are
    indexed later."""
    if on == is_kept(conn):
        return
    there = conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone()
    if on:
        if there:
            _drop(conn)
        conn.execute(CREATE)
        conn.execute(f"INSERT OR REPLACE INTO meta VALUES ('{KEY}', '0')")
    else:
        give_up(conn)
        if there and is_available(conn):
            _drop(conn)


def is_sound(conn: sqlite3.Connection) -> bool:
    """Return whether the index is sound: by SQLite's integrity check, and by the number of indexed
    operations of each session. The check reads the whole index. Return True if the file has no
    index."""
    reached = reach(conn)
    if reached is None:
        return True
    try:
        conn.execute("INSERT INTO words (words) VALUES ('integrity-check')")
        for session, must in conn.execute(
            "SELECT session, count(*) FROM ops WHERE seq <= ? AND kind = 'append' AND live > 0 "
            "GROUP BY session",
            (reached,),
        ).fetchall():
            (has,) = conn.execute(
                "SELECT count(*) FROM words WHERE words MATCH ?", (f'"{_mark(session)}"',)
            ).fetchone()
            if has < must:
                return False
    except sqlite3.DatabaseError as error:
        if is_transient(error):
            raise
        return False
    return True


def rebuild_if_damaged(conn: sqlite3.Connection) -> None:
    """Build the index again if it is damaged."""
    if not is_sound(conn):
        give_up(conn)
        switch(conn, True)


def _drop(conn: sqlite3.Connection) -> None:
    try:
        conn.execute("DROP TABLE words")
    except sqlite3.DatabaseError as error:
        if is_transient(error):
            raise
        # SQLite cannot drop a badly damaged index: delete its schema row and drop its tables one by
        # one.
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("DELETE FROM sqlite_master WHERE name = 'words'")
        conn.execute("PRAGMA writable_schema = RESET")
        for (name,) in conn.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'words_*'"
        ).fetchall():
            conn.execute(f"DROP TABLE {name}")


def is_behind(conn: sqlite3.Connection) -> bool:
    """Return whether more than `BEHIND` operations wait to be indexed."""
    reached = reach(conn)
    return reached is not None and _last(conn) - reached > BEHIND


def slice_up(conn: sqlite3.Connection) -> None:
    """Index the next slice if more than `BEHIND` operations wait."""
    reached = reach(conn)
    if reached is not None:
        catch_up(conn, reached, BEHIND, SLICE)


def catch_up(
    conn: sqlite3.Connection, reached: int, behind: int = 0, most: int | None = None
) -> None:
    """Index the waiting operations if more than ``behind`` operations wait. ``most`` is the maximum
    number of operations to index, in the order of writing; None for all."""
    last = _last(conn)
    if last - reached <= behind:
        return
    if most is not None:
        row = conn.execute(
            "SELECT max(seq), total(bytes) FROM ("
            "SELECT seq, bytes FROM ops WHERE seq > ? ORDER BY seq LIMIT ?)",
            (reached, most),
        ).fetchone()
        if row[0] is not None and row[1] > SLICE_BYTES and most > 1:
            catch_up(conn, reached, behind, most // 2)
            return
        following = conn.execute("SELECT 1 FROM ops WHERE seq > ?", (row[0],)).fetchone()
        last = row[0] if following else last
        if last <= reached:
            raise ValueError(f"the operations behind number {reached} are not in order")
    rows = conn.execute(
        "SELECT seq, session, CAST(body AS BLOB), count, live FROM ops "
        "WHERE seq > ? AND seq <= ? AND +live > 0 ORDER BY seq",
        (reached, last),
    )
    for seq, session, body, count, live in rows:
        shown = visible_payloads(body, count, live)
        payloads = [payload.decode(errors="replace") for _, payload in shown]
        add(conn, [(seq, document(session, payloads))])
    conn.execute(f"UPDATE meta SET value = ? WHERE key = '{KEY}'", (str(last),))


def _last(conn: sqlite3.Connection) -> int:
    (last,) = conn.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()
    return int(last)


# -- documents and queries -----------------------------------------------------------------------


def document(session: int, payloads: Iterable[str]) -> str:
    """Return the document of an operation: the readable text of its visible items, normalized."""
    text = "\n".join([normalize_text(role_and_text(payload)[1]) for payload in payloads])
    if text.isascii():
        return f"{_mark(session)}{text}"
    runs = [SEPARATOR.join(run) for run in WIDE.findall(text)]
    return SEPARATOR.join([f"{_mark(session)}{text}", *runs, ""])


def terms(words: Sequence[str]) -> list[str]:
    """Return the trigrams that a document with every word must have; an empty list if the words are
    too short."""
    found: dict[str, None] = {}
    for word in words:
        if len(word) >= GRAM:
            grams = [word[at : at + GRAM] for at in range(len(word) - GRAM + 1)]
        elif not WIDE.fullmatch(word):
            continue
        elif len(word) == 1:
            grams = [f"{SEPARATOR}{word}{SEPARATOR}"]
        else:
            grams = [SEPARATOR.join(word)]
        found.update(dict.fromkeys(grams))
    return list(found)[:MOST_TERMS]


def candidates(
    conn: sqlite3.Connection, session: int, grams: Sequence[str], reached: int
) -> list[tuple[Place, int]]:
    """Return the place and the `seq` of the operations that may contain these trigrams, latest
    first: operations in the index, and all operations that are not indexed yet.

    Raises:
        Spoiled: the index cannot be read.
    """
    query = " AND ".join(
        f'"{gram.replace(chr(34), chr(34) * 2)}"' for gram in [_mark(session), *grams]
    )
    try:
        rows = conn.execute(
            f"SELECT {PLACE}, seq FROM words w CROSS JOIN ops o ON o.seq = w.rowid "
            f"WHERE w.words MATCH ? AND {VISIBLE} UNION "
            f"SELECT {PLACE}, seq FROM ops WHERE seq > ? AND {VISIBLE} "
            "ORDER BY 1 DESC, 2 DESC, 3 DESC, 4 DESC, 5 DESC, 6 DESC",
            (query, session, reached, session),
        ).fetchall()
    except sqlite3.DatabaseError as error:
        if is_transient(error):
            raise
        raise Spoiled(str(error)) from error
    return [(tuple(place), seq) for *place, seq in rows]


def _mark(session: int) -> str:
    rest, low = divmod(session, PRIVATE_SIZE)
    high, middle = divmod(rest, PRIVATE_SIZE)
    return "".join(chr(PRIVATE + digit % PRIVATE_SIZE) for digit in (high, middle, low))


# -- changes of the index ------------------------------------------------------------------------


def add(conn: sqlite3.Connection, documents: Sequence[tuple[int, str]]) -> None:
    """Index documents, each given as (`seq` of the operation, text)."""
    _write(conn, "INSERT INTO words (rowid, text) VALUES (?, ?)", documents)


def remove(conn: sqlite3.Connection, documents: Sequence[tuple[int, str]]) -> None:
    """Remove operations from the index, each with the text under which it was indexed."""
    _write(conn, "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", documents)


def _write(conn: sqlite3.Connection, sql: str, documents: Sequence[tuple[int, str]]) -> None:
    try:
        conn.executemany(sql, documents)
    except sqlite3.DatabaseError as error:
        # SQLite has no FTS5, or the index is damaged. Neither cause must make the write fail.
        if is_transient(error):
            raise
        log.warning(GAVE_UP, error)
        give_up(conn)


def give_up(conn: sqlite3.Connection) -> None:
    """Stop using the index; the next opening builds it again."""
    conn.execute(f"DELETE FROM meta WHERE key = '{KEY}'")


def check(conn: sqlite3.Connection) -> bool | None:
    """Return whether the index is sound; None if the file has no index."""
    return is_sound(conn) if is_kept(conn) else None


class SearchIndex:
    """The full-text index of a journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def is_sound(self) -> bool | None:
        """Return whether the index is sound; None if the file has no index. The check
        takes the write lock."""
        return await self._runner.write(check)
