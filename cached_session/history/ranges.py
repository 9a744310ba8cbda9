"""A set of counters, stored as ranges.

Its memory use grows with the number of gaps, not with the number of counters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Ranges"]

_BEYOND = 1 << 63
"""An integer above every counter."""


class Ranges:
    """A set of positive integers, stored as sorted ranges that do not touch."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __contains__(self, counter: int) -> bool:
        index = bisect_right(self._firsts, counter) - 1
        return index >= 0 and counter <= self._lasts[index]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the ranges as (first, last), both included, lowest first."""
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._firsts)

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"

    def add(self, first: int, last: int | None = None) -> None:
        """Add the counter ``first``, or all counters from ``first`` to ``last``."""
        last = first if last is None else last
        # Merge the new range with the ranges that touch or overlap it.
        start = bisect_right(self._firsts, first) - 1
        if start < 0 or self._lasts[start] < first - 1:
            start += 1
        end = bisect_right(self._firsts, last + 1)
        if start < end:
            first = min(first, self._firsts[start])
            last = max(last, self._lasts[end - 1])
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]

    def minus(self, other: Ranges) -> Ranges:
        """Return the counters that are in this set and not in ``other``."""
        rest = Ranges()
        removed = iter([*other, (_BEYOND, _BEYOND)])
        removed_first, removed_last = next(removed)
        for start, last in self:
            first = start
            while first <= last:
                while removed_last < first:
                    removed_first, removed_last = next(removed)
                if removed_first > first:
                    rest.add(first, min(last, removed_first - 1))
                first = max(first, removed_last + 1) if removed_first <= last else last + 1
        return rest

    def end_of(self, counter: int) -> int:
        """Return the last counter of the range with ``counter``, which must be in the set."""
        return self._lasts[bisect_right(self._firsts, counter) - 1]

    def contiguous_end(self) -> int:
        """Return the end of the range that starts at 1; 0 if 1 is not in the set."""
        return self._lasts[0] if self._firsts and self._firsts[0] == 1 else 0

    def gaps(self, limit: int) -> list[int]:
        """Return at most ``limit`` missing counters below the highest counter, lowest first."""
        found: list[int] = []
        expected = 1
        for first, last in self:
            remaining = limit - len(found)
            if remaining <= 0:
                break
            found.extend(range(expected, min(first, expected + remaining)))
            expected = last + 1
        return found
