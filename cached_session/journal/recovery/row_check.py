"""Checks of cell values against what each column of a journal can hold.

SQLite stores any type in any column, and its integrity checks do not read the values. A cell with
damaged bytes may have another type, or a number that is out of range. Session calls do not check
cells, because the check would slow down every call. A call that reads such a cell fails with an
`INVALID_VALUE` error (`db_errors.py`), and the recovery and the doctor then search the file with
these checks.
"""

from __future__ import annotations

import json
import re
import sqlite3
from functools import cache

import orjson

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import INTEGER_LIMIT
from cached_session.history.ops import Kind
from cached_session.journal.recovery import schema_check
from cached_session.journal.tables.row_bounds import MAX_ITEMS, MAX_PARTS
from cached_session.journal.tables.states import STATES

__all__ = ["invalid_cells", "is_meta_row", "is_session_id", "row_condition"]

FLAG = "BETWEEN 0 AND 1"
ID = "NOT GLOB '*[^A-Za-z0-9_.-]*'"
COUNTER = f"BETWEEN 1 AND {INTEGER_LIMIT}"
INDEX = f"BETWEEN -1 AND {MAX_ITEMS}"
KIND = f"IN ({', '.join(repr(kind.value) for kind in Kind)})"
STAMP = f"BETWEEN 0 AND {MAX_STAMP}"
TIME = f"BETWEEN -{INTEGER_LIMIT} AND {INTEGER_LIMIT}"
BOUNDS = {
    "asked": "BETWEEN 0 AND 3",
    "by_counter": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "branch": ID,
    "bytes": ">= 0",
    "codec": FLAG,
    "conflicted": FLAG,
    "conflicts": ">= 0",
    "count": f"BETWEEN 1 AND {MAX_ITEMS}",
    "counter": COUNTER,
    "created_ms": TIME,
    "digest": "<> ''",
    "explained": FLAG,
    "failures": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "first": COUNTER,
    "ground": TIME,
    "ground_ms": TIME,
    "guarded_ms": TIME,
    "hydrated": FLAG,
    "idx": INDEX,
    "items": ">= 0",
    "key_id": ID,
    "last": f"BETWEEN first AND {INTEGER_LIMIT}",
    "last_ms": TIME,
    "live": "BETWEEN 0 AND count",
    "met": FLAG,
    "next_ms": TIME,
    "ops.kind": KIND,
    "part": f"BETWEEN 0 AND {MAX_PARTS}",
    "parts": f"BETWEEN 1 AND {MAX_PARTS}",
    "parts.kind": KIND,
    "pause_ms": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "private": FLAG,
    "pulled_ms": TIME,
    "revision": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "run_stamp": STAMP,
    "said_ms": TIME,
    "since_ms": TIME,
    "stamp": STAMP,
    "state": f"BETWEEN {min(STATES)} AND {max(STATES)}",
    "tries": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "turn_counter": COUNTER,
    "turn_stamp": "BETWEEN 0 AND stamp",
    "until_ms": TIME,
    "upto": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "version": "BETWEEN 1 AND 2",
}
"""SQL conditions on the values of columns. A key is the name of a column, or the names of a table
and a column."""
TYPES = {"sessions.session_id": "IN ('text', 'blob')", "items.payload": "<> 'null'"}
"""SQL conditions on the type of a column that can have several types. Payloads are checked when
they are read: a read skips a damaged payload and returns the others."""
OUTSIDE_FRONTIER = (
    "SELECT 1 FROM ops o WHERE NOT EXISTS (SELECT 1 FROM frontier f "
    "WHERE f.session = o.session AND f.writer = o.writer AND f.upto >= o.counter) "
    "AND NOT EXISTS (SELECT 1 FROM above a WHERE a.session = o.session AND a.writer = o.writer "
    "AND o.counter BETWEEN a.first AND a.last) LIMIT 1"
)
"""A query that finds an operation that the frontier does not include. The writer would use the
counter of such an operation again."""
NUMBER = re.compile(r"-?[0-9]{1,19}")
IMPORT_MARK = re.compile(r"[0-9]{1,19}:[0-9a-f]*|import:[0-9a-f]+:[0-9a-f]+")
"""Matches the value of an import mark. Also matches the value of the row with the name of a source:
this value is the key of the mark (tables/import_marks.py)."""


def invalid_cells(conn: sqlite3.Connection) -> list[str]:
    """Describe cells of a journal that no version could have written, with one entry for each
    column, meta row, session id or mark. The journal has the tables and columns of its format.

    Raises:
        sqlite3.DatabaseError: the file cannot be read.
    """
    present = schema_check.columns(conn)
    found = [
        f"{table}.{column} has an invalid value"
        for table, columns in _conditions().items()
        for column, condition in columns.items()
        if column in present.get(table, ())
        and conn.execute(f"SELECT 1 FROM {table} WHERE NOT ({condition}) LIMIT 1").fetchone()
    ]
    found += [
        f"the meta row {key!r:.80} has an invalid value"
        for key, value in conn.execute("SELECT key, value FROM meta")
        if not is_meta_row(key, value)
    ]
    found += [
        f"the id of the session with row number {number} is not valid"
        for session_id, number in conn.execute("SELECT session_id, id FROM sessions")
        if not is_session_id(session_id)
    ]
    if "marks" in present:
        found += [
            f"the value of the mark {name!r:.80} is not valid"
            for name, value in conn.execute("SELECT type, value FROM marks")
            if not _is_json(value)
        ]
    if not found and conn.execute(OUTSIDE_FRONTIER).fetchone():
        found.append("the frontier does not include all operations")
    return found


def row_condition(table: str) -> str:
    """Return the SQL condition that every valid row of a table meets."""
    return " AND ".join(f"({condition})" for condition in _conditions()[table].values())


@cache
def _conditions() -> dict[str, dict[str, str]]:
    return {
        table: {
            name: _condition(table, name, type_, is_needed) for name, type_, is_needed in columns
        }
        for table, columns in schema_check.expected_columns().items()
    }


def _condition(table: str, column: str, type_: str, is_needed: bool) -> str:
    where = f"{table}.{column}"
    condition = f"typeof({column}) {TYPES.get(where) or f'= {type_.lower()!r}'}"
    bounds = BOUNDS.get(where) or BOUNDS.get(column)
    if bounds is not None and type_:
        condition += f" AND {column} {bounds}"
    return condition if is_needed else f"{column} IS NULL OR {condition}"


def is_meta_row(key: object, value: object) -> bool:
    """Return whether a row of `meta` has a value that the code which reads it can parse."""
    if not isinstance(key, str) or not isinstance(value, str):
        return False
    if key == "salvage":
        return _is_json(value) and isinstance(json.loads(value), dict)
    if key.startswith("import:"):
        return IMPORT_MARK.fullmatch(value) is not None
    if key.startswith("audit:") or key.endswith("_ms") or key == "search_index":
        return NUMBER.fullmatch(value) is not None
    return True


def _is_json(text: object) -> bool:
    try:
        orjson.loads(text)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return False
    return True


def is_session_id(stored: object) -> bool:
    """Return whether a cell can hold a session id: a text, or bytes for an id with lone surrogates
    (see `stored_id`)."""
    if not isinstance(stored, bytes):
        return isinstance(stored, str)
    try:
        return stored.decode("utf-8", "surrogatepass") != ""
    except UnicodeDecodeError:
        return False
