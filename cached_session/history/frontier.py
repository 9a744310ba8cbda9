"""A frontier: a set of operations, stored as ranges of counters for each writer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cached_session.history.ranges import Ranges

__all__ = ["Frontier"]

INTEGER_LIMIT = 1 << 53
"""Exclusive upper limit of the integers that replicas exchange. Some JSON parsers round larger
integers."""


class Frontier:
    """A mutable set of dots.

    Its memory use grows with the number of writers and gaps, not with the number of dots.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, Ranges] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frontier):
            return NotImplemented
        return self.encode() == other.encode()

    def __hash__(self) -> int:  # equality is by value, so the hash of a mutable set would change
        raise TypeError("a Frontier is mutable and cannot be hashed")

    def __contains__(self, dot: tuple[str, int]) -> bool:
        writer, counter = dot
        known = self._known.get(writer)
        return known is not None and counter in known

    def __repr__(self) -> str:
        return f"Frontier({self.encode()!r})"

    def writers(self) -> Iterator[str]:
        """Iterate over the writers that have at least one dot in the set."""
        return iter(self._known)

    def ranges(self, writer: str) -> Ranges:
        """Return the counters of one writer. The caller must not change them."""
        return self._known.get(writer) or Ranges()

    def contiguous_end(self, writer: str) -> int:
        """Return the end of the range that starts at counter 1; 0 if counter 1 is missing."""
        return self.ranges(writer).contiguous_end()

    def add(self, writer: str, first: int, last: int | None = None) -> None:
        """Add the dot ``first`` of a writer, or the dots from ``first`` to ``last``."""
        self._known.setdefault(writer, Ranges()).add(first, last)

    def subtract(self, writer: str, ranges: Ranges) -> None:
        """Remove the dots of one writer whose counters are in ``ranges``."""
        known = self._known.get(writer)
        if known is None:
            return
        rest = known.minus(ranges)
        if len(rest):
            self._known[writer] = rest
        else:
            del self._known[writer]

    def merge(self, other: Frontier) -> None:
        """Add every dot of ``other``."""
        for writer in other.writers():
            for first, last in other.ranges(writer):
                self.add(writer, first, last)

    def gaps(self, writer: str, limit: int) -> list[int]:
        """Return at most ``limit`` missing counters below the writer's highest, lowest first."""
        return self.ranges(writer).gaps(limit)

    def encode(self) -> dict[str, list[list[int]]]:
        """Return the set as sorted plain data: ``{writer: [[first, last], ...]}``."""
        return {
            writer: [[first, last] for first, last in self._known[writer]]
            for writer in sorted(self._known)
        }

    @classmethod
    def decode(cls, data: object) -> Frontier:
        """Build a frontier from ``data``, the result of `encode`.

        Raises:
            ValueError: ``data`` does not have the form that `encode` returns.
        """
        if not isinstance(data, dict):
            raise ValueError(f"a frontier must be an object of writers, not {data!r:.80}")
        frontier = cls()
        for writer, ranges in data.items():
            if not isinstance(writer, str) or not isinstance(ranges, list) or not ranges:
                raise ValueError(f"a frontier must have ranges for writer {writer!r:.80}")
            for first, last in map(_decode_range, ranges):
                frontier.add(writer, first, last)
        return frontier

    @classmethod
    def of(cls, dots: Iterable[tuple[str, int]]) -> Frontier:
        """Build a frontier from single dots."""
        frontier = cls()
        for writer, counter in dots:
            frontier.add(writer, counter)
        return frontier


def _decode_range(data: object) -> tuple[int, int]:
    if (
        not isinstance(data, list)
        or len(data) != 2
        or not all(type(counter) is int for counter in data)
        or not 1 <= data[0] <= data[1] < INTEGER_LIMIT
    ):
        raise ValueError(f"a range of counters must be [first, last], not {data!r:.80}")
    return data[0], data[1]
