"""The full-text index: which operations may hold a word. Written in the transaction of the items.

It gives candidates and never an answer: `journal/search.py` looks into each before it shows it. So
what is left behind in it can cost time and no truth.

One document an operation, under the operation's `seq`: the items of a batch come and go by it, and
an item needs no number of its own. SQLite takes the text apart into runs of three characters, which
needs no idea of what a word is in any script. Where a word may have one or two characters (Chinese,
Japanese, Korean, Thai, emoji), each of them is written once more between separators, so that a
single one, and each pair, is a run of three too. A mark of three characters names the session.

Indexing one operation costs SQLite more than storing it, and many at a time cost a tenth of that
each. So no write indexes anything: the journal's writing thread indexes a slice at a time while it
has nothing else to do, or after so many writes without a pause. Until then search looks at what
waits itself.

Up to which `seq` it reaches is written in the file (`meta`, key `search_index`). A SQLite without
FTS5 that opens it takes that away, as does whoever finds the index damaged; and whoever opens it
next with FTS5 builds it anew.
"""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby

from cached_session.history.item_text import normalize_text, role_and_text
from cached_session.journal.sqlite.db_errors import is_transient
from cached_session.journal.sqlite.runner import Runner

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
    "mend",
    "reach",
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
"""No copy of the text, no positions: the trigrams of an operation and nothing else."""

KEY = "search_index"
GRAM = 3
SEPARATOR = "\x1f"
WIDE = re.compile("[\u0e00-\u0eff\u1100-\u11ff\u2e80-\U0010ffff]+")
"""Scripts whose words may be as short as one character: Thai and Lao, Jamo, and all from the CJK
radicals on (kana, ideographs, Hangul, emoji)."""
MOST_TERMS = 48
"""Trigrams asked for at a time: a long query is told apart well before all of it is asked for."""
PRIVATE, PRIVATE_SIZE = 0xE000, 6400
"""Unicode's private use area, whose characters number the sessions."""
BEHIND = 64
"""Operations that may wait to be indexed."""
SLICE = 256
"""Operations indexed in one transaction of the background: some milliseconds."""
SLICE_BYTES = 256 * 1024
"""And no more of their payloads than this, if they are more than one."""


class Spoiled(Exception):
    """The index is damaged: what it says is worth nothing."""


def is_available(conn: sqlite3.Connection) -> bool:
    """Whether this SQLite has FTS5 and its trigrams (3.34 and later)."""
    try:
        conn.execute(f"CREATE VIRTUAL TABLE temp.try{CREATE[len('CREATE VIRTUAL TABLE ') :]}")
    except sqlite3.OperationalError:
        return False
    conn.execute("DROP TABLE temp.trywords")
    return True


def reach(conn: sqlite3.Connection) -> int | None:
    """The `seq` of the last operation that is indexed; None if the file keeps no index."""
    row = conn.execute(f"SELECT value FROM meta WHERE key = '{KEY}'").fetchone()
    return None if row is None else int(row[0])


def is_kept(conn: sqlite3.Connection) -> bool:
    """Whether the file has an index that is in step with its items."""
    return conn.execute(f"SELECT 1 FROM meta WHERE key = '{KEY}'").fetchone() is not None


def switch(conn: sqlite3.Connection, on: bool) -> None:
    """Have the index or not, at opening, inside a transaction; what is there is indexed later."""
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
    """Whether the index, if there is one, is whole: SQLite's own look at it, and for each session
    whether it has as many operations as it must. Costs a pass over the index."""
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


def mend(conn: sqlite3.Connection) -> None:
    """Begin a damaged index anew."""
    if not is_sound(conn):
        give_up(conn)
        switch(conn, True)


def _drop(conn: sqlite3.Connection) -> None:
    try:
        conn.execute("DROP TABLE words")
    except sqlite3.DatabaseError as error:
        if is_transient(error):
            raise
        # So damaged that SQLite cannot take it for an index: its tables go one by one.
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("DELETE FROM sqlite_master WHERE name = 'words'")
        conn.execute("PRAGMA writable_schema = RESET")
        for (name,) in conn.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'words_*'"
        ).fetchall():
            conn.execute(f"DROP TABLE {name}")


def is_behind(conn: sqlite3.Connection) -> bool:
    """Whether more operations wait to be indexed than may."""
    reached = reach(conn)
    return reached is not None and _last(conn) - reached > BEHIND


def slice_up(conn: sqlite3.Connection) -> None:
    """Index the next slice of what waits, if that is more than may wait."""
    reached = reach(conn)
    if reached is not None:
        catch_up(conn, reached, BEHIND, SLICE)


def catch_up(
    conn: sqlite3.Connection, reached: int, behind: int = 0, most: int | None = None
) -> None:
    """Index the visible items of the operations that wait, if they are more than so many; all of
    them, or the first ``most``."""
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
        "SELECT o.seq, i.session, CAST(i.payload AS BLOB) FROM ops o CROSS JOIN items i "
        "ON i.session = o.session AND i.stamp = o.stamp AND i.writer = o.writer "
        "AND i.counter = o.counter WHERE o.seq > ? AND o.seq <= ? ORDER BY o.seq, i.idx",
        (reached, last),
    )
    for (seq, session), group in groupby(rows, lambda row: row[:2]):
        payloads = [payload.decode(errors="replace") for _, _, payload in group]
        add(conn, [(seq, document(session, payloads))])
    conn.execute(f"UPDATE meta SET value = ? WHERE key = '{KEY}'", (str(last),))


def _last(conn: sqlite3.Connection) -> int:
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'ops'").fetchone()
    return int(row[0]) if row else 0


# -- documents and queries -----------------------------------------------------------------------


def document(session: int, payloads: Iterable[str]) -> str:
    """What is indexed of an operation: the readable text of its visible items, folded."""
    text = "\n".join([normalize_text(role_and_text(payload)[1]) for payload in payloads])
    if text.isascii():
        return f"{_mark(session)}{text}"
    runs = [SEPARATOR.join(run) for run in WIDE.findall(text)]
    return SEPARATOR.join([f"{_mark(session)}{text}", *runs, ""])


def terms(words: Sequence[str]) -> list[str]:
    """The runs of three that a document which holds every word must have; none if the words are
    too short for the index to tell."""
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
) -> list[tuple[int, str, int]]:
    """(stamp, writer, counter) of the operations that may hold these, latest first: those that the
    index names, and those that wait.

    Raises:
        Spoiled: the index cannot be read.
    """
    query = " AND ".join(
        f'"{gram.replace(chr(34), chr(34) * 2)}"' for gram in [_mark(session), *grams]
    )
    try:
        return conn.execute(
            "SELECT o.stamp, o.writer, o.counter FROM words w CROSS JOIN ops o ON o.seq = w.rowid "
            "WHERE w.words MATCH ? AND o.session = ? UNION "
            "SELECT stamp, writer, counter FROM ops WHERE seq > ? AND session = ? AND live > 0 "
            "ORDER BY 1 DESC, 2 DESC, 3 DESC",
            (query, session, reached, session),
        ).fetchall()
    except sqlite3.DatabaseError as error:
        if is_transient(error):
            raise
        raise Spoiled(str(error)) from error


def _mark(session: int) -> str:
    rest, low = divmod(session, PRIVATE_SIZE)
    high, middle = divmod(rest, PRIVATE_SIZE)
    return "".join(chr(PRIVATE + digit % PRIVATE_SIZE) for digit in (high, middle, low))


# -- keeping in step -----------------------------------------------------------------------------


def add(conn: sqlite3.Connection, documents: Sequence[tuple[int, str]]) -> None:
    """Index operations by their `seq`."""
    _do(conn, "INSERT INTO words (rowid, text) VALUES (?, ?)", documents)


def remove(conn: sqlite3.Connection, documents: Sequence[tuple[int, str]]) -> None:
    """Take operations out again, each with the text that it was indexed with."""
    _do(conn, "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", documents)


def _do(conn: sqlite3.Connection, sql: str, documents: Sequence[tuple[int, str]]) -> None:
    try:
        conn.executemany(sql, documents)
    except sqlite3.DatabaseError as error:
        # A SQLite without FTS5, or damage inside the index: words are never held up for its sake.
        if is_transient(error):
            raise
        log.warning("the search index is given up, and built anew at the next opening: %s", error)
        give_up(conn)


def give_up(conn: sqlite3.Connection) -> None:
    """Look through the items from now on; the next opening builds the index anew."""
    conn.execute(f"DELETE FROM meta WHERE key = '{KEY}'")


def check(conn: sqlite3.Connection) -> bool | None:
    """Return whether the index is sound; None if the file keeps none."""
    return is_sound(conn) if is_kept(conn) else None


class SearchIndex:
    """The full-text index of a journal."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def is_sound(self) -> bool | None:
        """Return whether the index is sound; None if the file keeps none. Takes the write lock."""
        return await self._runner.write(check)
