"""Where the data survives the process: one SQLite file, or nowhere.

The dictionaries in memory are the truth while the server runs; the journal is told of each change
and commits before the answer leaves. One table of keyed JSON is enough, because the server reads it
only once, when it starts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import orjson


class Journal(Protocol):
    """Keeps the latest JSON value of each (kind, key); changes count from `commit` on."""

    def load(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield every (key, value) of a kind, in the order the keys were first put."""
        ...

    def put(self, kind: str, key: str, value: Any) -> None:
        """Remember `value` under the key, replacing what was there."""
        ...

    def delete(self, kind: str, key: str) -> None:
        """Forget the key; unknown keys are fine."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def commit(self) -> None:
        """Make all changes so far survive the death of the process."""
        ...

    def close(self) -> None:
        """Commit and let the file go."""
        ...


class NoJournal:
    """The journal of a server without a data file: remembers nothing."""

    def load(self, kind: str) -> Iterator[tuple[str, Any]]:  # noqa: ARG002 - a Journal's method
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


class FileJournal:
    """A SQLite file; a committed change survives `kill -9` and leaves the file readable.

    The write-ahead log is not synced at each commit, so the loss of power (unlike the death of the
    process) may take back the last moments. Calls must be serialised by the caller.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, or make it.

        Raises:
            ValueError: it cannot be opened, or is somebody else's, a session's journal perhaps; it
                is left as it was.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._puts: dict[tuple[str, str], bytes | None] = {}
        self._wiped = False
        try:
            # The server's thread and a test's thread both write; the state's lock serialises them.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot keep the server's data: {error}") from error
        try:
            self._prepare(path)
        except sqlite3.Error as error:
            self._db.close()
            raise ValueError(f"{path} cannot keep the server's data: {error}") from error
        except ValueError:
            self._db.close()
            raise

    def _prepare(self, path: str | Path) -> None:
        # Before anything that writes.
        tables = {name for (name,) in self._db.execute("SELECT tbl_name FROM sqlite_master")}
        if tables - {"records"}:
            raise ValueError(
                f"{path} is another program's database, with the table {min(tables)!r}; "
                "choose another file for the server's data"
            )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # Purpose: the latest value of everything the server must know after a restart.
        # Writer: this class only, one transaction per request.
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS records"
            " (kind TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, UNIQUE (kind, key))"
        )

    def load(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield every (key, value) of a kind, in the order the keys were first put."""
        rows = self._db.execute(
            "SELECT key, value FROM records WHERE kind = ? ORDER BY rowid", (kind,)
        )
        for key, value in rows:
            yield key, orjson.loads(value)

    def put(self, kind: str, key: str, value: Any) -> None:
        """Remember `value` under the key, replacing what was there."""
        self._puts[kind, key] = orjson.dumps(value)

    def delete(self, kind: str, key: str) -> None:
        """Forget the key; unknown keys are fine."""
        self._puts[kind, key] = None

    def clear(self) -> None:
        """Forget everything."""
        self._puts.clear()
        self._wiped = True

    def commit(self) -> None:
        """Make all changes so far survive the death of the process."""
        if not self._puts and not self._wiped:
            return
        gone = [key for key, value in self._puts.items() if value is None]
        kept = [(*key, value) for key, value in self._puts.items() if value is not None]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._wiped:
                self._db.execute("DELETE FROM records")
            self._db.executemany("DELETE FROM records WHERE kind = ? AND key = ?", gone)
            self._db.executemany(
                "INSERT INTO records (kind, key, value) VALUES (?, ?, ?)"
                " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value",
                kept,
            )
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        self._puts.clear()
        self._wiped = False

    def close(self) -> None:
        """Commit and let the file go."""
        self.commit()
        self._db.close()
