"""Import of items from files: JSON lines and databases of the Agents SDK.

Every import is idempotent and can be resumed: items that an earlier call added from the same source
are skipped, even if that call was killed. Memory use is bounded, and the event loop is not blocked.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

from cached_session.cache import SessionCache
from cached_session.engine import importer
from cached_session.engine.importer import Row
from cached_session.models import ImportProgress, ImportReport
from cached_session.moving import jsonl, sqlite
from cached_session.session import CachedSession, import_source, open_engine

__all__ = [
    "OnProgress",
    "import_jsonl",
    "import_rows",
    "import_sqlite",
    "import_sqlite_session",
]

OnProgress = Callable[[ImportProgress], None]


async def import_jsonl(
    session: CachedSession,
    path: str | os.PathLike[str],
    *,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items of a file with one JSON value per line.

    A later `export_jsonl` writes each item with identical bytes. A line that is not valid JSON is
    skipped and counted. The file is read in a thread. If the call is cancelled, only complete
    batches are stored, and the next call resumes after these batches.

    Args:
        session: the session that gets the items.
        path: the file.
        on_progress: called after each batch. An exception from it ends the import after that batch.

    Raises:
        InvalidArgument: the file cannot be read, or its beginning has changed since an earlier
            import.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    engine = await open_engine(session)
    total = await engine.journal.offload(lambda: sum(1 for _ in jsonl.read_lines(path)))
    return await import_rows(session, "jsonl", jsonl.read_rows(path), total, on_progress)


async def import_sqlite_session(
    session: CachedSession,
    path: str | os.PathLike[str],
    source_session_id: str | None = None,
    *,
    branch: str = sqlite.MAIN_BRANCH,
    messages_table: str = sqlite.MESSAGES_TABLE,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """Add the items of a session in an Agents SDK database (``SQLiteSession`` and its subclasses).

    The database is opened read-only and may be in use. A later call adds only the items that the
    database did not have at this call.

    Args:
        session: the session that gets the items.
        path: the database.
        source_session_id: the id of the session in the database. Default: the id of ``session``.
        branch: the branch to read, if the database is of an ``AdvancedSQLiteSession``.
        messages_table: the table with the items, if the database was created with another name.
        on_progress: called after each batch. An exception from it ends the import after that batch.

    Raises:
        InvalidArgument: the file is not such a database, the session has no such branch, or the
            beginning of its history has changed since an earlier import.
        SessionClosed, JournalError: as `CachedSession.add_items`.
    """
    source = session.session_id if source_session_id is None else source_session_id
    engine = await open_engine(session)
    total = await engine.journal.offload(sqlite.count_rows, path, source, branch, messages_table)
    rows = sqlite.read_rows(path, source, branch, messages_table)
    return await import_rows(session, f"sqlite:{branch}:{source}", rows, total, on_progress)


async def import_sqlite(
    cache: SessionCache,
    path: str | os.PathLike[str],
    *,
    branch: str = sqlite.MAIN_BRANCH,
    messages_table: str = sqlite.MESSAGES_TABLE,
    on_progress: OnProgress | None = None,
) -> list[ImportReport]:
    """Call `import_sqlite_session` for every session of a database, each with its own id.

    If the call is cancelled, the sessions that were already imported stay in the journal.

    Returns:
        A report for each session, in the order of the imports.

    Raises:
        InvalidArgument, SessionClosed, JournalError: as `import_sqlite_session`.
    """
    reports = []
    for session_id in await asyncio.to_thread(sqlite.list_sessions, path, messages_table):
        async with cache.session(session_id, hydrate=False) as session:
            reports.append(
                await import_sqlite_session(
                    session,
                    path,
                    branch=branch,
                    messages_table=messages_table,
                    on_progress=on_progress,
                )
            )
    return reports


async def import_rows(
    session: CachedSession,
    source: str,
    rows: Iterator[Row],
    total: int | None,
    on_progress: OnProgress | None,
) -> ImportReport:
    """Add the rows of a source that no earlier import has added. Rows are read in a thread."""
    engine = await open_engine(session)
    batches: AsyncIterator[list[Row]] = importer.read_batches(engine, rows)
    async with aclosing(batches):  # type: ignore[type-var]
        return await importer.import_batches(
            engine, import_source(session, source, total=total), batches, on_progress
        )
