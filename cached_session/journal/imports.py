"""Imports: batches of items from another store. Each batch is written in one transaction with
its import mark."""

from __future__ import annotations

from collections.abc import Sequence

from cached_session.journal.history import History
from cached_session.journal.readers import Readers
from cached_session.journal.tables import import_marks
from cached_session.journal.tables.import_marks import Mark
from cached_session.journal.tables.writes import Author
from cached_session.journal.writer import Writer

__all__ = ["Imports"]


class Imports:
    """The imports into a journal's sessions."""

    def __init__(self, history: History, writer: Writer, readers: Readers) -> None:
        self._history = history
        self._writer = writer
        self._readers = readers

    async def mark_named(self, name: str) -> tuple[str, Mark]:
        """Return the key of the mark with this name, and the mark. The key is empty if
        no such mark exists."""
        return await self._readers.read(import_marks.mark_named, name)

    async def mark_at(self, key: str) -> Mark:
        """Return the mark with this key: the progress of the import of one source."""
        return await self._readers.read(import_marks.mark_at, key)

    async def append(
        self,
        author: Author,
        session_id: str,
        encoded: Sequence[tuple[str, int]],
        *,
        private: bool,
        key: str,
        before: Mark,
        after: Mark,
        name: str | None,
    ) -> bool:
        """Append a batch and move its source's mark, in one transaction.

        Return False, and change nothing, if the mark is no longer ``before``, or if the name
        belongs to another mark.
        """
        written = await self._writer.write(
            import_marks.append_marked,
            author,
            session_id,
            encoded,
            private=private,
            key=key,
            before=before,
            after=after,
            name=name,
        )
        if written is None:
            return False
        self._history.cache_append(written, encoded)
        return True
