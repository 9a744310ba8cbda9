"""Journals of an earlier format, made with its frozen schema."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["begin", "step_back"]

GOLDEN = Path(__file__).parents[1] / "golden" / "schema-1.json"


def begin(path: Path) -> None:
    """Create an empty journal of format 1."""
    schema = _schema()
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        for statement in schema["sql"].values():
            conn.execute(statement)
        conn.execute(f"PRAGMA application_id = {schema['application_id']}")
        conn.execute(f"PRAGMA user_version = {schema['user_version']}")


def step_back(path: Path) -> None:
    """Convert a closed journal to format 1 with the same rows. Format 2 only adds an index over
    them."""
    old = path.with_name(path.name + ".1")
    begin(old)
    with closing(sqlite3.connect(old, isolation_level=None)) as conn:
        conn.execute("ATTACH ? AS now", (str(path),))
        conn.execute("BEGIN")
        for name, statement in _schema()["sql"].items():
            if statement.startswith("CREATE TABLE"):
                conn.execute(f"INSERT INTO main.{name} SELECT * FROM now.{name}")
        conn.execute("DELETE FROM meta WHERE key = 'search_index'")
        # A number that was used is not used again.
        conn.execute("DELETE FROM main.sqlite_sequence")
        conn.execute("INSERT INTO main.sqlite_sequence SELECT * FROM now.sqlite_sequence")
        conn.execute("COMMIT")
    for left in path.parent.glob(path.name + "-*"):
        left.unlink()
    old.replace(path)


@cache
def _schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(GOLDEN.read_text())
    # A table precedes its indexes.
    found["sql"] = dict(sorted(found["sql"].items(), key=lambda row: "CREATE INDEX" in row[1]))
    return found
