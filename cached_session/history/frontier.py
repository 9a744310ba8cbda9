"""A frontier: which operations of each writer are known, as a prefix and the few dots above a hole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Frontier"]


class Frontier:
    """A set of dots that is mostly prefixes, so that its size is that of its writers and holes."""

    __slots__ = ("_above", "_upto")

    def __init__(
        self,
        upto: Mapping[str, int] | None = None,
        above: Mapping[str, Iterable[int]] | None = None,
    ) -> None:
        self._upto: dict[str, int] = dict(upto or {})
        self._above: dict[str, set[int]] = {}
        for writer, counters in (above or {}).items():
            for counter in counters:
                self.add(writer, counter)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frontier):
            return NotImplemented
        return self.encode() == other.encode()

    def __hash__(self) -> int:  # mutable: equality is by value, so it has no stable hash
        raise TypeError("a Frontier is mutable and cannot be hashed")

    def __contains__(self, dot: tuple[str, int]) -> bool:
        writer, counter = dot
        return counter <= self._upto.get(writer, 0) or counter in self._above.get(writer, ())

    def __repr__(self) -> str:
        return f"Frontier({self.encode()!r})"

    def writers(self) -> Iterator[str]:
        """Every writer that has at least one dot in the set."""
        return iter(self._upto.keys() | self._above.keys())

    def upto(self, writer: str) -> int:
        """The highest counter below which nothing is missing; 0 for an unknown writer."""
        return self._upto.get(writer, 0)

    def above(self, writer: str) -> frozenset[int]:
        """The dots above the first hole."""
        return frozenset(self._above.get(writer, ()))

    def add(self, writer: str, counter: int) -> bool:
        """Put one dot in; True if it was new. A filled hole closes the prefix over it."""
        upto = self._upto.get(writer, 0)
        above = self._above.get(writer)
        if counter <= upto or (above is not None and counter in above):
            return False
        if counter != upto + 1:
            self._above.setdefault(writer, set()).add(counter)
            return True
        upto = counter
        if above is not None:
            while upto + 1 in above:
                upto += 1
                above.discard(upto)
            if not above:
                del self._above[writer]
        self._upto[writer] = upto
        return True

    def merge(self, other: Frontier) -> None:
        """Put every dot of ``other`` in."""
        for writer, upto in other._upto.items():
            if upto > self._upto.get(writer, 0):
                rest = {c for c in self._above.pop(writer, ()) if c > upto}
                self._upto[writer] = upto
                for counter in sorted(rest):
                    self.add(writer, counter)
        for writer, above in other._above.items():
            for counter in sorted(above):
                self.add(writer, counter)

    def holes(self, writer: str, most: int) -> list[int]:
        """At most ``most`` missing counters below the writer's highest known one, lowest first."""
        found: list[int] = []
        expected = self.upto(writer) + 1
        for counter in sorted(self._above.get(writer, ())):
            room = most - len(found)
            if room <= 0:
                break
            found.extend(range(expected, min(counter, expected + room)))
            expected = counter + 1
        return found

    def encode(self) -> dict[str, list[int]]:
        """Plain data, sorted: ``{writer: [prefix, dot above a hole, ...]}``."""
        return {
            writer: [self._upto.get(writer, 0), *sorted(self._above.get(writer, ()))]
            for writer in sorted(self.writers())
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
        for writer, counters in data.items():
            if (
                not isinstance(writer, str)
                or not isinstance(counters, list)
                or not counters
                or not all(type(c) is int and 0 <= c < 1 << 53 for c in counters)
            ):
                raise ValueError(f"no list of counters for writer {writer!r}")
            if counters[0]:
                frontier._upto[writer] = counters[0]
            for counter in counters[1:]:
                if counter < 1:
                    raise ValueError(f"counter {counter} of writer {writer!r} is below 1")
                frontier.add(writer, counter)
        return frontier
