"""The journal of a device: a file whose tables are stores with named methods."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cached_session.journal.connections import Connections
from cached_session.journal.history import History
from cached_session.journal.imports import Imports
from cached_session.journal.open_connection import MEMORY
from cached_session.journal.quota import Quota
from cached_session.journal.readers import Readers
from cached_session.journal.sqlite.awaiting import shielded
from cached_session.journal.sqlite.db_errors import journal_error
from cached_session.journal.tables.audit_state import Audits
from cached_session.journal.tables.claims import Claims
from cached_session.journal.tables.first_reads import FirstReads
from cached_session.journal.tables.gaps import Gaps
from cached_session.journal.tables.inbox import Inbox
from cached_session.journal.tables.known_operations import KnownOperations
from cached_session.journal.tables.known_server import KnownServer
from cached_session.journal.tables.marks import Marks
from cached_session.journal.tables.outbox import Outbox
from cached_session.journal.tables.parked_operations import ParkedOperations
from cached_session.journal.tables.pauses import PauseTable
from cached_session.journal.tables.pull_state import Pulls
from cached_session.journal.tables.retention_marks import RetentionMarks
from cached_session.journal.tables.search_index import SearchIndex
from cached_session.journal.tables.session_infos import SessionInfos
from cached_session.journal.tables.sessions import Sessions
from cached_session.journal.tables.status_counts import StatusCounts
from cached_session.journal.thread_pool import ThreadPool
from cached_session.journal.writer import Writer

__all__ = ["MEMORY", "Journal", "journal_error", "shielded"]


class Journal:
    """A journal file. The first call opens the file; after `close` it cannot be opened again.

    Its stores are attributes: ``journal.history.append(...)``, ``journal.outbox.take(...)``. Each
    store runs its SQL functions through the methods of the writer and the readers. A journal has
    these methods as attributes, so a store can use the journal as a `Runner`.

    Safe to use from any thread and any event loop. If ``threaded`` is false, the same code runs on
    the calling thread, for the simulation.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: str = "full",
        busy_timeout: float = 5.0,
        threaded: bool = True,
        search_index: bool = True,
        max_pending_items: int | None = None,
        max_pending_bytes: int | None = None,
        on_replaced: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> None:
        """Make a journal that is not open yet.

        Args:
            path: the SQLite file, or `MEMORY`.
            durability: SQLite's ``synchronous`` mode.
            busy_timeout: maximum seconds to wait for another process's lock.
            threaded: whether to write and read in threads.
            search_index: whether the file has a full-text index.
            max_pending_items: maximum number of unsent items; None for no limit.
            max_pending_bytes: maximum number of unsent bytes; None for no limit.
            on_replaced: called on the writing thread when another file has replaced the journal (it
                was damaged, or moved away). Returns the writer id that must not be used any more
                and the writer id that replaces it.
        """
        self.path = MEMORY if os.fspath(path) == MEMORY else os.fspath(Path(path))
        self._on_replaced = on_replaced
        self._connections = connections = Connections(
            self.path,
            durability=durability,
            busy_ms=int(busy_timeout * 1000),
            search_index=search_index,
            on_replaced=self._replaced,
        )
        pool = ThreadPool()
        self._writer = writer = Writer(connections, pool, threaded=threaded)
        self._readers = readers = Readers(connections, writer, pool, threaded=threaded)
        self.in_memory = connections.in_memory
        """True if the journal has no file. Its content is lost when the journal is closed."""

        self.open, self.open_blocking = writer.open, writer.open_blocking
        self.close, self.close_blocking = writer.close, writer.close_blocking
        self.write, self.write_soon = writer.write, writer.write_soon
        self.write_blocking, self.maintain = writer.write_blocking, writer.maintain
        self.read, self.read_blocking = readers.read, readers.read_blocking
        self.read_aside, self.read_long = readers.read_aside, readers.read_long
        self.rows = readers.rows
        self.version, self.offload = readers.version, readers.offload
        self.suspect = connections.suspect

        self.history = History(
            connections, writer, readers, Quota(max_pending_items, max_pending_bytes)
        )
        self.imports = Imports(self.history, writer, readers)
        self.inbox = Inbox(self)
        self.gaps = Gaps(self)
        self.pulls = Pulls(self)
        self.claims = Claims(self)
        self.audits = Audits(self)
        self.outbox = Outbox(self)
        self.parked = ParkedOperations(self)
        self.pauses = PauseTable(self)
        self.known_operations = KnownOperations(self)
        self.known_server = KnownServer(self)
        self.retention = RetentionMarks(self)
        self.sessions = Sessions(self)
        self.first_reads = FirstReads(self)
        self.search_index = SearchIndex(self)
        self.status = StatusCounts(self)
        self.marks = Marks(self)
        self.infos = SessionInfos(self)

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"

    @property
    def is_open(self) -> bool:
        """True if the file is open and still has the journal's name."""
        connections = self._connections
        return (
            connections.writer is not None
            and not self._writer.closed
            and not connections.must_open()
        )

    def _replaced(self) -> tuple[str, str]:
        writers = self._on_replaced()
        self.history.forget()
        return writers
