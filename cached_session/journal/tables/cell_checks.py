"""The CHECK constraints of the schema: what a cell of each column can hold.

SQLite stores any type in any column. With a CHECK on every column, `PRAGMA quick_check` finds cells
that no version of the library could have written, for example after damage of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import INTEGER_LIMIT
from cached_session.history.ops import COUNT_LIMIT, Kind
from cached_session.journal.tables.states import PARKED, PENDING, SENT

__all__ = ["BOUNDS", "NULLABLE", "TYPES", "cell_condition", "with_checks"]

FLAG = "BETWEEN 0 AND 1"
ID = "NOT GLOB '*[^A-Za-z0-9_.-]*'"
COUNTER = f"BETWEEN 1 AND {INTEGER_LIMIT}"
KINDS = f"IN ({', '.join(repr(kind.value) for kind in Kind)})"
STAMP = f"BETWEEN 0 AND {MAX_STAMP}"
TIME = f"BETWEEN -{INTEGER_LIMIT} AND {INTEGER_LIMIT}"
BOUNDS = {
    "asked": "BETWEEN 0 AND 3",
    "behind": FLAG,
    "branch": ID,
    "by_counter": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "bytes": ">= 0",
    "codec": FLAG,
    "conflicted": FLAG,
    "conflicts": ">= 0",
    "count": f"BETWEEN 1 AND {COUNT_LIMIT}",
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
    "idx": f"BETWEEN -1 AND {COUNT_LIMIT}",
    "items": ">= 0",
    "key_id": ID,
    "kind": KINDS,
    "last": f"BETWEEN first AND {INTEGER_LIMIT}",
    "last_ms": TIME,
    "live": "BETWEEN 0 AND count",
    "met": FLAG,
    "next_ms": TIME,
    "part": f"BETWEEN 0 AND {COUNT_LIMIT}",
    "parts": f"BETWEEN 1 AND {COUNT_LIMIT}",
    "pause_ms": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "private": FLAG,
    "pulled_ms": TIME,
    "resent": FLAG,
    "revision": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "run_stamp": STAMP,
    "said_ms": TIME,
    "seq": ">= 1",
    "since_ms": TIME,
    "stamp": STAMP,
    "state": f"IN ({PENDING}, {SENT}, {PARKED})",
    "tokens": ">= 0",
    "tries": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "turn_counter": COUNTER,
    "turn_stamp": "BETWEEN 0 AND stamp",
    "until_ms": TIME,
    "upto": f"BETWEEN 0 AND {INTEGER_LIMIT}",
    "version": "BETWEEN 1 AND 2",
}
"""SQL conditions on the values of the columns with these names."""
TYPES = {"session_id": "IN ('text', 'blob')"}
"""SQL conditions on the type of a column that can have several types."""
EXCEPT = {"gates.kind"}
"""Columns that have the name of a column in `BOUNDS` and other values."""
NULLABLE = frozenset({"body", "error", "tokens"})
"""The columns that can be NULL."""
TABLE = re.compile(r"^CREATE TABLE (\w+)", re.MULTILINE)
COLUMN = re.compile(r"^(    ([a-z_]+) (INTEGER|TEXT|UNIQUE)[^,\n]*?)(,?)( +--.*)?$")


def cell_condition(table: str, column: str, type_: str) -> str:
    """Return the SQL condition that every valid cell of a column meets."""
    condition = f"typeof({column}) {TYPES.get(column) or f'= {type_.lower()!r}'}"
    bounds = None if f"{table}.{column}" in EXCEPT else BOUNDS.get(column)
    if bounds is not None:
        condition += f" AND {column} {bounds}"
    return f"{column} IS NULL OR {condition}" if column in NULLABLE else condition


def with_checks(ddl: str) -> str:
    """Return the statements of a schema with a CHECK on each column of each table."""
    return "\n".join(_lines_with_checks(ddl))


def _lines_with_checks(ddl: str) -> Iterator[str]:
    table = ""
    for line in ddl.split("\n"):
        created = TABLE.match(line)
        if created:
            table = created[1]
        column = COLUMN.match(line)
        if column and "PRIMARY KEY" not in line:
            definition, name, type_, comma, comment = column.groups()
            condition = cell_condition(table, name, type_)
            yield f"{definition} CHECK ({condition}){comma}{comment or ''}"
        else:
            yield line
