"""A set of counters as ranges: its size is that of its gaps, not of what it holds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Ranges"]

_NEVER = 1 << 63
"""Beyond every counter."""


class Ranges:
    """Positive integers, kept as disjoint ranges in order."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __contains__(self, counter: int) -> bool:
        place = bisect_right(self._firsts, counter) - 1
        return place >= 0 and counter <= self._lasts[place]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The ranges as (first, last), both included, lowest first."""
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        """How many ranges."""
        return len(self._firsts)

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"

    def add(self, first: int, last: int | None = None) -> None:
        """Put in one counter, or all from ``first`` to ``last``."""
        last = first if last is None else last
        # The ranges that touch or overlap the new one are melted into it.
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
        """What is in this set and not in the other."""
        rest = Ranges()
        gaps = iter([*other, (_NEVER, _NEVER)])
        gap_first, gap_last = next(gaps)
        for start, last in self:
            first = start
            while first <= last:
                while gap_last < first:
                    gap_first, gap_last = next(gaps)
                if gap_first > first:
                    rest.add(first, min(last, gap_first - 1))
                first = max(first, gap_last + 1) if gap_first <= last else last + 1
        return rest

    def end_of(self, counter: int) -> int:
        """The last counter of the range that holds this one, which must be in the set."""
        return self._lasts[bisect_right(self._firsts, counter) - 1]

    def upto(self) -> int:
        """The highest counter below which nothing is missing; 0 if 1 is not in the set."""
        return self._lasts[0] if self._firsts and self._firsts[0] == 1 else 0

    def holes(self, most: int) -> list[int]:
        """At most ``most`` missing counters below the highest one, lowest first."""
        found: list[int] = []
        expected = 1
        for first, last in self:
            room = most - len(found)
            if room <= 0:
                break
            found.extend(range(expected, min(first, expected + room)))
            expected = last + 1
        return found
