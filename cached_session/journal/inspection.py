"""Checks of a journal file. They do not open the file as a journal, because the journal would
replace a damaged file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cached_session.errors import CachedSessionError
from cached_session.journal.open_connection import existing_uri
from cached_session.journal.recovery.find_damage import find_problems
from cached_session.journal.sqlite.db_errors import (
    FOREIGN_ERRORS,
    is_damage,
    is_locked,
    journal_error,
)
from cached_session.journal.tables import schema

__all__ = ["Inspection", "inspect_file", "is_write_locked"]

READ_SECONDS = 5.0
"""Maximum seconds to wait for a lock on the file."""


class Inspection(NamedTuple):
    """The findings of a check of a journal file."""

    problems: list[str]
    """Descriptions of the damage; empty for an intact file."""
    format: int
    """The format number in the header of the file; 0 if the file could not be read."""
    is_current: bool
    """True if this version of the package writes the same format."""


def inspect_file(path: str) -> Inspection:
    """Check the integrity of a journal file: its pages, its schema, and each row.

    Raises:
        JournalError: the file is not a journal, or cannot be read because of a lock or its mode.
        JournalTooNew: the file has a newer format.
    """
    try:
        uri = f"{Path(path).absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=READ_SECONDS)) as conn:
            is_current = schema.identify(conn, path)
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            problems = find_problems(conn, is_current=is_current)
    except CachedSessionError:
        raise
    except FOREIGN_ERRORS as error:
        mapped = journal_error(error, path)
        if isinstance(mapped, CachedSessionError) and not is_damage(error):
            raise mapped from error
        return Inspection([str(error)], 0, is_current=False)
    return Inspection(problems, version, is_current)


def is_write_locked(path: str, seconds: float) -> bool:
    """Return whether another connection holds the write lock for this number of seconds. Return
    False if the file cannot be opened, because other checks report this error.
    """
    try:
        with closing(
            sqlite3.connect(existing_uri(path), uri=True, timeout=seconds, isolation_level=None)
        ) as conn:
            conn.execute("BEGIN IMMEDIATE")
            conn.execute("ROLLBACK")
    except sqlite3.Error as error:
        return is_locked(error)
    return False
