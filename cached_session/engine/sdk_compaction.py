"""The hooks by which the Agents SDK compacts a session: read the items to summarise, and replace
exactly these items by the summary.

The SDK looks the hooks up by name, so `Snapshot` has the attributes that it expects.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Protocol

from cached_session.models import Entry

__all__ = ["CompactionHooks", "Snapshot"]

Item = Any
Place = tuple[str, int, int]
"""The position of an item: writer, counter and index."""


class Session(Protocol):
    """The methods of a session that the hooks use."""

    async def entries(self, limit: int | None = None) -> list[Entry]: ...

    async def replace_items(self, entries: Sequence[Entry], items: Sequence[Item] = ()) -> None: ...


@dataclass(frozen=True)
class Snapshot:
    """The latest items of a session, and a function that replaces a suffix of them."""

    items: list[Item]
    complete: bool
    """True if the snapshot has all items of the session."""
    replace_suffix: Callable[[int, list[Item]], Awaitable[bool]]


_read: ContextVar[tuple[int, frozenset[Place]] | None] = ContextVar(
    "cached_session_compaction_read", default=None
)
"""The number of the hooks, and the items that they read last in this context."""
_numbers = itertools.count()


class CompactionHooks:
    """The compaction hooks of one session object."""

    def __init__(self) -> None:
        self._number = next(_numbers)

    async def snapshot(
        self,
        session: Session,
        limit: int,
        oldest: Callable[[], Awaitable[list[Item]]],
        is_expired: Callable[[Item], bool] | None,
    ) -> Snapshot:
        """Return the latest ``limit`` items.

        `Snapshot.replace_suffix` removes the items from an index on and appends others, in one
        transaction. It returns False, and changes nothing, if the items from this index on are no
        longer the end of the history, because others have arrived or some were removed. The same
        transaction removes the expired items before the first one that is not expired. ``oldest``
        returns the oldest item, so that the whole history is read only if this item is expired.
        """
        found = await session.entries(limit + 1)
        entries = found[-limit:] if limit > 0 else []

        async def replace_suffix(start: int, output: list[Item]) -> bool:
            expected = entries[start:]
            if not expected:
                return False
            current = await session.entries(len(expected))
            if [*map(place_of, current)] != [*map(place_of, expected)]:
                return False
            pruned: list[Entry] = []
            if is_expired is not None and any(map(is_expired, await oldest())):
                older = (await session.entries())[: -len(expected)]
                pruned = [*takewhile(lambda entry: is_expired(entry.item), older)]
            await session.replace_items([*pruned, *expected], output)
            return True

        return Snapshot([entry.item for entry in entries], len(found) <= limit, replace_suffix)

    async def read(
        self, session: Session, limit: int | None, default: int | None
    ) -> tuple[list[Item], bool]:
        """Return the latest ``limit`` items for a compaction on request, and whether these are all
        items. Without a limit, return the latest ``default`` items and False."""
        entries = await session.entries(default if limit is None else limit)
        _read.set((self._number, frozenset(map(place_of, entries))))
        return [entry.item for entry in entries], limit is not None and len(entries) < limit

    async def replace_all(self, session: Session, items: list[Item]) -> None:
        """Replace the items that `read` returned last in this context, in one transaction. Items
        that were not read stay. If nothing was read, replace all items."""
        last = _read.get()
        entries = await session.entries()
        if last is not None and last[0] == self._number:
            entries = [entry for entry in entries if place_of(entry) in last[1]]
        await session.replace_items(entries, items)
        _read.set(None)


def place_of(entry: Entry) -> Place:
    """Return the position of an entry."""
    return entry.writer, entry.counter, entry.index
