"""Persistent storage of the server: a SQLite file, or no storage.

The server works on dictionaries in memory. The storage gets each change and commits it before the
response is sent. One table of JSON values is enough, because the server reads it only at the start.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import orjson


class Storage(Protocol):
    """Stores the latest JSON value of each (kind, key); changes are durable after `commit`."""

    def load(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield every (key, value) of a kind, in the order in which the keys were first stored."""
        ...

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store `value` under the key; replace the former value."""
        ...

    def delete(self, kind: str, key: str) -> None:
        """Delete the key; an unknown key is ignored."""
        ...

    def clear(self) -> None:
        """Delete all keys."""
        ...

    def commit(self) -> None:
        """Write all changes, so that they survive a crash of the process."""
        ...

    def close(self) -> None:
        """Commit and close the file."""
        ...


class NoStorage:
    """The storage of a server without a data file. It stores nothing."""

    def load(self, kind: str) -> Iterator[tuple[str, Any]]:  # noqa: ARG002 - the signature of Storage
        """Yield nothing."""
        return iter(())

    def put(self, kind: str, key: str, value: Any) -> None:
        """Do nothing."""

    def delete(self, kind: str, key: str) -> None:
        """Do nothing."""

    def clear(self) -> None:
        """Do nothing."""

    def commit(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class SqliteStorage:
    """A SQLite file. A committed change survives `kill -9`.

    The write-ahead log is not synced at each commit, so a power failure can lose the latest
    commits. The caller must serialise the calls.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, or create it.

        Raises:
            ValueError: the file cannot be opened, or belongs to another program, for example the
                journal of a session; it was not changed.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._pending: dict[tuple[str, str], bytes | None] = {}
        self._cleared = False
        try:
            # The threads of the server and of a test both write; the state's lock serialises them.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise ValueError(f"cannot open {path} for the data of the server: {error}") from error
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self._db.close()
            raise ValueError(f"cannot open {path} for the data of the server: {error}") from error
        except ValueError:
            self._db.close()
            raise

    def _prepare(self, path: str | Path) -> None:
        # Check before the first write, so that the file of another program stays unchanged.
        tables = {name for (name,) in self._db.execute("SELECT tbl_name FROM sqlite_master")}
        if tables - {"records"}:
            raise ValueError(
                f"{path} is the database of another program, with the table "
                f"{min(tables - {'records'})!r}; it was not changed; choose another file for the "
                "data of the server"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # Purpose: the latest value of all data that the server needs after a restart.
        # Writer: this class, in one transaction per request.
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records"
            " (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, UNIQUE (kind, key))"
        )

    def load(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield every (key, value) of a kind, in the order in which the keys were first stored."""
        rows = self._db.execute(
            "SELECT key, value FROM records WHERE kind = ? ORDER BY rowid", (kind,)
        )
        for key, value in rows:
            yield key, orjson.loads(value)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Store `value` under the key; replace the former value."""
        self._pending[kind, key] = orjson.dumps(value)

    def delete(self, kind: str, key: str) -> None:
        """Delete the key; an unknown key is ignored."""
        self._pending[kind, key] = None

    def clear(self) -> None:
        """Delete all keys."""
        self._pending.clear()
        self._cleared = True

    def commit(self) -> None:
        """Write all changes, so that they survive a crash of the process."""
        if not self._pending and not self._cleared:
            return
        deleted = [key for key, value in self._pending.items() if value is None]
        stored = [(*key, value) for key, value in self._pending.items() if value is not None]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._cleared:
                self._db.execute("DELETE FROM records")
            self._db.executemany("DELETE FROM records WHERE kind = ? AND key = ?", deleted)
            self._db.executemany(
                "INSERT INTO records (kind, key, value) VALUES (?, ?, ?)"
                " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
                stored,
            )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        self._pending.clear()
        self._cleared = False

    def close(self) -> None:
        """Commit and close the file."""
        self.commit()
        self._db.close()
