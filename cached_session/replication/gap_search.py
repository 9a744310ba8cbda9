"""The search for a missing operation: which memory to fetch next, and when to search. Pure."""

from __future__ import annotations

from collections.abc import Generator

from cached_session.history.parts import Part
from cached_session.journal.tables.gaps import Gap
from cached_session.options import SyncOptions

__all__ = ["FETCHES_PER_SEARCH", "PartSearch", "search_delay_ms"]

FETCHES_PER_SEARCH = 1000
"""The maximum number of memories that one search for one operation fetches by id. The next search
fetches the rest of a longer operation. The item count in a memory may be forged, so that count
cannot be the limit. The searches of one pull also apply the memories that they have fetched
whenever the total reaches this number."""


def search_delay_ms(options: SyncOptions, gap: Gap, found: int) -> int:
    """Return the time between the end of a search and the next search, in milliseconds.

    The first searches follow each other quickly, in case a node of the server lags. The wait
    doubles after each search, up to `SyncOptions.poll_interval_idle`. After a search that reached
    its limit, return 0.

    Args:
        found: the number of memories that the search has fetched.
    """
    if found >= FETCHES_PER_SEARCH:
        return 0
    seconds = options.backoff_base * 2.0 ** min(gap.tries, 16)
    return int(1000 * min(seconds, options.poll_interval_idle))


class PartSearch:
    """The search for one missing operation, as a state machine.

    Fetch the part that `request` names and pass it to `receive`, until `request` is None.

    The search ends at the first part that the server does not have, because an incomplete operation
    cannot be applied. Popped items are not fetched.
    """

    def __init__(self, gap: Gap) -> None:
        self._steps = _steps(gap)
        self.request: tuple[int, int] | None = None
        """The (payload, part) to fetch next; None when the search is over."""
        self.needs_placeholder = False
        """True if the caller should fetch the placeholder after the search. A placeholder explains
        why the server does not have all parts of the operation."""
        self._advance(None)

    def receive(self, part: Part | None) -> None:
        """Choose the next request after the answer to the current request.

        Args:
            part: the requested part; None if the server does not have it.
        """
        self._advance(part)

    def _advance(self, part: Part | None) -> None:
        try:
            self.request = self._steps.send(part)
        except StopIteration as end:
            self.request, self.needs_placeholder = None, end.value


def _steps(gap: Gap) -> Generator[tuple[int, int], Part | None, bool]:
    """Yield each (payload, part) to fetch; return whether to look for a placeholder."""
    have, part_counts = set(gap.have), dict(gap.part_counts)
    fetched, count = 0, gap.count
    if not count:
        first = yield 0, 0
        if first is None:
            return True
        fetched, count = 1, first.count
        have.add((first.index, first.part))
        part_counts[first.index] = first.parts
    for index in range(count):
        part = 0
        # Each part contains the number of parts of its payload. Assume 1 until a part has arrived.
        while index not in gap.popped and part < part_counts.get(index, 1):
            if (index, part) not in have:
                if fetched >= FETCHES_PER_SEARCH:
                    return False
                found = yield index, part
                if found is None:
                    return True
                fetched += 1
                have.add((found.index, found.part))
                part_counts[found.index] = found.parts
            part += 1
    # If no part was fetched, every item is popped. Then only a placeholder can show that the writer
    # has parked the operation.
    return not fetched
