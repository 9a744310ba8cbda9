"""A frontier: which operations of each writer are known, as ranges of their counters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cached_session.history.ranges import Ranges

__all__ = ["Frontier"]

MOST = 1 << 53
"""Counters from here on are nonsense: JSON numbers past it are not safe everywhere."""


class Frontier:
    """A set of dots whose size is that of its writers and holes."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, Ranges] = {}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frontier):
            return NotImplemented
        return self.encode() == other.encode()

    def __hash__(self) -> int:  # mutable: equality is by value, so it has no stable hash
        raise TypeError("a Frontier is mutable and cannot be hashed")

    def __contains__(self, dot: tuple[str, int]) -> bool:
        writer, counter = dot
        known = self._known.get(writer)
        return known is not None and counter in known

    def __repr__(self) -> str:
        return f"Frontier({self.encode()!r})"

    def writers(self) -> Iterator[str]:
        """Every writer that has at least one dot in the set."""
        return iter(self._known)

    def ranges(self, writer: str) -> Ranges:
        """The counters of one writer. It is a view: do not change it."""
        return self._known.get(writer) or Ranges()

    def upto(self, writer: str) -> int:
        """The highest counter below which nothing is missing; 0 for an unknown writer."""
        return self.ranges(writer).upto()

    def add(self, writer: str, first: int, last: int | None = None) -> None:
        """Put in one dot, or a range of them."""
        self._known.setdefault(writer, Ranges()).add(first, last)

    def subtract(self, writer: str, ranges: Ranges) -> None:
        """Take the dots of one writer out that are in ``ranges``."""
        known = self._known.get(writer)
        if known is None:
            return
        rest = known.minus(ranges)
        if len(rest):
            self._known[writer] = rest
        else:
            del self._known[writer]

    def merge(self, other: Frontier) -> None:
        """Put every dot of ``other`` in."""
        for writer in other.writers():
            for first, last in other.ranges(writer):
                self.add(writer, first, last)

    def holes(self, writer: str, most: int) -> list[int]:
        """At most ``most`` missing counters below the writer's highest known one, lowest first."""
        return self.ranges(writer).holes(most)

    def encode(self) -> dict[str, list[list[int]]]:
        """Plain data, sorted: ``{writer: [[first, last], ...]}``."""
        return {
            writer: [[first, last] for first, last in self._known[writer]]
            for writer in sorted(self._known)
        }

    @classmethod
    def decode(cls, data: object) -> Frontier:
        """The inverse of `encode`.

        Raises:
            ValueError: if ``data`` has another shape.
        """
        if not isinstance(data, dict):
            raise ValueError("a frontier is an object of writers")
        frontier = cls()
        for writer, ranges in data.items():
            if not isinstance(writer, str) or not isinstance(ranges, list) or not ranges:
                raise ValueError(f"no ranges for writer {writer!r}")
            for first, last in map(_range, ranges):
                frontier.add(writer, first, last)
        return frontier

    @classmethod
    def of(cls, dots: Iterable[tuple[str, int]]) -> Frontier:
        """A frontier of single dots."""
        frontier = cls()
        for writer, counter in dots:
            frontier.add(writer, counter)
        return frontier


def _range(data: object) -> tuple[int, int]:
    if (
        not isinstance(data, list)
        or len(data) != 2
        or not all(type(counter) is int for counter in data)
        or not 1 <= data[0] <= data[1] < MOST
    ):
        raise ValueError(f"not a range of counters: {data!r:.80}")
    return data[0], data[1]
