"""What the cells of a journal can hold. SQLite takes any value in any column, and vouches for its
pages only: a cell of which some bytes are spoiled may have another type, or a number that nothing
counts to.

No call looks for that, because it would cost each of them. One that meets it fails somewhere in its
transaction, whatever Python says then (`outcome.NONSENSE`), and whoever mends looks here whether it
was the file.
"""

from __future__ import annotations

import json
import re
import sqlite3
from functools import cache

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import INTEGER_LIMIT
from cached_session.journal.recovery import schema_check
from cached_session.journal.tables.row_bounds import ITEMS_MOST, PARTS_MOST

__all__ = ["is_fact", "is_name", "nonsense", "rule"]

YES_OR_NO = "BETWEEN 0 AND 1"
COUNTER = f"BETWEEN 1 AND {INTEGER_LIMIT}"
INDEX = f"BETWEEN -1 AND {ITEMS_MOST}"
STAMP = f"BETWEEN 0 AND {MAX_STAMP}"
TIME = f"BETWEEN -{INTEGER_LIMIT} AND {INTEGER_LIMIT}"
BOUNDS = {
    "asked": "BETWEEN 0 AND 3",
    "by_counter": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "bytes": ">= 0",
    "codec": YES_OR_NO,
    "conflicted": YES_OR_NO,
    "conflicts": ">= 0",
    "count": f"BETWEEN 1 AND {ITEMS_MOST}",
    "counter": COUNTER,
    "created_ms": TIME,
    "digest": "<> ''",
    "explained": YES_OR_NO,
    "failures": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "first": COUNTER,
    "ground": TIME,
    "ground_ms": TIME,
    "guarded_ms": TIME,
    "hydrated": YES_OR_NO,
    "idx": INDEX,
    "items": ">= 0",
    "last": f"BETWEEN first AND {INTEGER_LIMIT}",
    "last_ms": TIME,
    "live": "BETWEEN 0 AND count",
    "met": YES_OR_NO,
    "next_ms": TIME,
    "ops.kind": "IN ('append', 'pop', 'clear')",
    "part": f"BETWEEN 0 AND {PARTS_MOST}",
    "parts": f"BETWEEN 1 AND {PARTS_MOST}",
    "parts.kind": "IN ('append', 'pop', 'clear')",
    "pause_ms": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "private": YES_OR_NO,
    "pulled_ms": TIME,
    "revision": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "run_stamp": STAMP,
    "said_ms": TIME,
    "since_ms": TIME,
    "stamp": STAMP,
    "state": "BETWEEN 0 AND 3",
    "tries": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "until_ms": TIME,
    "upto": f"BETWEEN 0 AND {INTEGER_LIMIT}",
}
"""By column, or by table and column: what an integer or a word can be, besides its type."""
ANY = {"sessions.session_id": "IN ('text', 'blob')", "items.payload": "<> 'null'"}
"""What may have several types. A payload is looked at by whoever reads it: it is left out alone."""
UNCOUNTED = (
    "SELECT 1 FROM ops o WHERE NOT EXISTS (SELECT 1 FROM frontier f "
    "WHERE f.session = o.session AND f.writer = o.writer AND f.upto >= o.counter) "
    "AND NOT EXISTS (SELECT 1 FROM above a WHERE a.session = o.session AND a.writer = o.writer "
    "AND o.counter BETWEEN a.first AND a.last) LIMIT 1"
)
"""An operation whose counter would be given to another."""
NUMBER = re.compile(r"-?[0-9]{1,19}")
IMPORTED = re.compile(r"[0-9]{1,19}:[0-9a-f]*")


def nonsense(conn: sqlite3.Connection) -> list[str]:
    """Cells of a whole journal that hold what none ever holds; some of them.

    Raises:
        sqlite3.DatabaseError: it cannot be read.
    """
    found = [
        f"{table}.{column} makes no sense"
        for table, columns in _rules().items()
        for column, sound in columns.items()
        if conn.execute(f"SELECT 1 FROM {table} WHERE NOT ({sound}) LIMIT 1").fetchone()
    ]
    found += [
        f"the fact {key!r:.80} makes no sense"
        for key, value in conn.execute("SELECT key, value FROM meta")
        if not is_fact(key, value)
    ]
    found += [
        f"the name of session {number} makes no sense"
        for name, number in conn.execute("SELECT session_id, id FROM sessions")
        if not is_name(name)
    ]
    if not found and conn.execute(UNCOUNTED).fetchone():
        found.append("the frontier does not know all operations")
    return found


def rule(table: str) -> str:
    """What is true of each sound row of a table, in SQL."""
    return " AND ".join(f"({sound})" for sound in _rules()[table].values())


@cache
def _rules() -> dict[str, dict[str, str]]:
    return {
        table: {name: _rule(table, name, type_, is_needed) for name, type_, is_needed in columns}
        for table, columns in schema_check.columns().items()
    }


def _rule(table: str, column: str, type_: str, is_needed: bool) -> str:
    where = f"{table}.{column}"
    sound = f"typeof({column}) {ANY.get(where) or f'= {type_.lower()!r}'}"
    bounds = BOUNDS.get(where) or BOUNDS.get(column)
    if bounds is not None and type_:
        sound += f" AND {column} {bounds}"
    return sound if is_needed else f"{column} IS NULL OR {sound}"


def is_fact(key: object, value: object) -> bool:
    """Whether a row of `meta` can be read by those who wrote its like."""
    if not isinstance(key, str) or not isinstance(value, str):
        return False
    if key == "salvage":
        try:
            return isinstance(json.loads(value), dict)
        except ValueError:
            return False
    if key.startswith("import:"):
        return IMPORTED.fullmatch(value) is not None
    if key.startswith("audit:") or key.endswith("_ms") or key == "search_index":
        return NUMBER.fullmatch(value) is not None
    return True


def is_name(name: object) -> bool:
    """Whether this can be a session id as it is stored."""
    if not isinstance(name, bytes):
        return isinstance(name, str)
    try:
        return name.decode("utf-8", "surrogatepass") != ""
    except UnicodeDecodeError:
        return False
