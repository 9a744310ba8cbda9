"""Checks of rows that a CHECK constraint cannot express: values that are parsed, and rows of other
tables.

The constraints of the schema (`tables/cell_checks.py`) cover all other cells, and SQLite's own
check finds them. Session calls do not check cells, because the check would slow down every call. A
call that reads an invalid cell fails with an `INVALID_VALUE` error (`db_errors.py`), and the
recovery and the doctor then check the file.
"""

from __future__ import annotations

import json
import re
import sqlite3

import orjson

__all__ = ["invalid_rows", "is_meta_row", "is_session_id"]

UNKNOWN_STATE = (
    "SELECT 1 FROM ops o WHERE session > 0 AND NOT EXISTS (SELECT 1 FROM waiting w "
    "WHERE w.session = o.session AND w.writer = o.writer AND w.counter = o.counter "
    "AND w.seq = o.seq) AND NOT EXISTS (SELECT 1 FROM acked a WHERE a.session = o.session "
    "AND a.writer = o.writer AND a.counter = o.counter AND a.seq = o.seq) LIMIT 1"
)
"""A query that finds an operation without a state."""
NO_OPERATION = (
    "SELECT 1 FROM (SELECT seq FROM waiting UNION ALL SELECT seq FROM acked) s "
    "WHERE NOT EXISTS (SELECT 1 FROM ops o WHERE o.seq = s.seq) LIMIT 1"
)
"""A query that finds a state without an operation."""
OUTSIDE_FRONTIER = (
    "SELECT 1 FROM ops o WHERE session > 0 AND NOT EXISTS (SELECT 1 FROM frontier f "
    "WHERE f.session = o.session AND f.writer = o.writer AND (f.upto >= o.counter "
    "OR f.behind = 1 AND EXISTS (SELECT 1 FROM waiting w WHERE w.session = o.session "
    "AND w.writer = o.writer AND w.counter = o.counter))) "
    "AND NOT EXISTS (SELECT 1 FROM above a WHERE a.session = o.session AND a.writer = o.writer "
    "AND o.counter BETWEEN a.first AND a.last) LIMIT 1"
)
"""A query that finds an operation that the frontier does not include. The writer would use the
counter of such an operation again. A writer's unfolded appends are included: they are the rows of
`waiting` above its row (tables/unfolded.py)."""
NUMBER = re.compile(r"-?[0-9]{1,19}")
IMPORT_MARK = re.compile(r"[0-9]{1,19}:[0-9a-f]*|import:[0-9a-f]+:[0-9a-f]+")
"""Matches the value of an import mark. Also matches the value of the row with the name of a source:
this value is the key of the mark (tables/import_marks.py)."""


def invalid_rows(conn: sqlite3.Connection) -> list[str]:
    """Describe rows of a journal of the current format that no version could have written and that
    meet the constraints of the schema.

    Raises:
        sqlite3.DatabaseError: the file cannot be read.
    """
    found = [
        f"the meta row {key!r:.80} has an invalid value"
        for key, value in conn.execute("SELECT key, value FROM meta")
        if not is_meta_row(key, value)
    ]
    found += [
        f"the id of the session with row number {number} is not valid"
        for session_id, number in conn.execute("SELECT session_id, id FROM sessions")
        if not is_session_id(session_id)
    ]
    found += [
        f"the value of the mark {name!r:.80} is not valid"
        for name, value in conn.execute("SELECT type, value FROM marks")
        if not _is_json(value)
    ]
    for query, problem in (
        (UNKNOWN_STATE, "an operation has no row in the table waiting or acked"),
        (NO_OPERATION, "a row of the table waiting or acked has no operation"),
        (OUTSIDE_FRONTIER, "the frontier does not include all operations"),
    ):
        if not found and conn.execute(query).fetchone():
            found.append(problem)
    return found


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
