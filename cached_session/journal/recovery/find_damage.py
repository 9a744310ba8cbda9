"""The search for damage in a journal file."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from cached_session.journal.recovery import row_check, schema_check
from cached_session.journal.sqlite.db_errors import is_damage
from cached_session.journal.tables import schema

__all__ = ["find_damage", "find_problems"]


def find_damage(real: str, path: str, timeout: float) -> str | None:
    """Return a description of the damage of a journal file; None if the file is not damaged.
    ``real`` is the path of the file, and ``path`` its name in messages.

    Raises:
        JournalError: the file is not a journal, or a newer version wrote it.
        sqlite3.Error: the file is locked, or the disk failed.
    """
    with closing(sqlite3.connect(real, timeout=timeout, isolation_level=None)) as conn:
        try:
            conn.execute("PRAGMA query_only = ON")
            (application,) = conn.execute("PRAGMA application_id").fetchone()
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            if application != schema.APPLICATION_ID or version > schema.FORMAT:
                schema.identify(conn, path)
                return None
            if version < 1:
                return f"its format number {version} is not valid"
            is_current = schema.identify(conn, path)
            problems = find_problems(conn, is_current=is_current)
            if not problems and not is_current:
                problems = _migration_problems(real, path, timeout)
            return "; ".join(problems).replace("\n", " ") or None
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if is_damage(error):
                return str(error)
            raise


def find_problems(conn: sqlite3.Connection, *, is_current: bool) -> list[str]:
    """Return descriptions of the damage of an open file: in its pages, schema, indexes and cells.

    The tables of an older format have no constraints. So the check of such a file does not find
    invalid cells.

    Raises:
        sqlite3.DatabaseError, UnicodeDecodeError: a part of the file cannot be read.
    """
    problems = [str(text) for (text,) in conn.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        return problems
    if is_current and not schema_check.is_complete(conn):
        return ["its schema is not that of a journal"]
    problems = schema_check.index_problems(conn)
    if is_current and not problems:
        problems = row_check.invalid_rows(conn)
        # SQLite does not check whether texts are valid UTF-8.
        schema_check.decode_all_texts(conn)
    return problems


def _migration_problems(real: str, path: str, timeout: float) -> list[str]:
    """Return the error of a migration of a file of an older format, without a change of the file.

    The constraints of the current format find the invalid cells of the file.
    """
    with closing(sqlite3.connect(real, timeout=timeout, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        try:
            schema.migrate_file(conn, path)
            problems = find_problems(conn, is_current=True)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if not is_damage(error):
                raise
            problems = [str(error)]
        finally:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
    return problems
