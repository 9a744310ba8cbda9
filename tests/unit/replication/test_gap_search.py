"""Which memory of a missing operation is fetched next, and when the next search is due."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from cached_session import SyncOptions
from cached_session.history.ops import Dot, Kind
from cached_session.history.parts import Part
from cached_session.journal.tables.gaps import Gap
from cached_session.replication import gap_search
from cached_session.replication.gap_search import (
    FETCHES_PER_SEARCH,
    PartSearch,
    search_delay_ms,
)

DOT = Dot("writer", 1)


def gap(
    count: int = 0,
    have: Collection[tuple[int, int]] = (),
    popped: Collection[int] = (),
    tries: int = 0,
    **part_counts: int,
) -> Gap:
    counts = {int(name[1:]): parts for name, parts in part_counts.items()}
    return Gap(DOT, tries, frozenset(have), counts, frozenset(popped), count)


def part(index: int, number: int = 0, parts: int = 1, count: int = 1) -> Part:
    return Part(
        DOT, Kind.APPEND, 1, 1, False, "digest", "seal", count, index, parts, number, "text"
    )


def fetched(search: PartSearch, server: dict[tuple[int, int], Part]) -> list[tuple[int, int]]:
    """Run a search; return what it has requested."""
    requests = []
    while search.request is not None:
        requests.append(search.request)
        search.receive(server.get(search.request))
    return requests


def test_the_first_part_tells_how_many_payloads_there_are() -> None:
    """An operation of which nothing is known is fetched payload by payload."""
    search = PartSearch(gap())
    server = {(index, 0): part(index, count=3) for index in range(3)}
    assert fetched(search, server) == [(0, 0), (1, 0), (2, 0)]
    assert not search.needs_placeholder


def test_the_first_part_of_a_payload_tells_how_many_parts_there_are() -> None:
    """Every part of a long payload is fetched."""
    search = PartSearch(gap(count=2))
    server = {(0, 0): part(0), **{(1, n): part(1, n, parts=3, count=2) for n in range(3)}}
    assert fetched(search, server) == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_parts_that_are_here_are_not_fetched() -> None:
    """Nor are the popped items of a batch."""
    search = PartSearch(gap(4, have={(0, 0), (1, 1)}, popped={2}, p0=1, p1=2))
    server = {(1, 0): part(1, parts=2, count=4), (3, 0): part(3, count=4)}
    assert fetched(search, server) == [(1, 0), (3, 0)]


def test_a_search_ends_at_the_first_missing_part() -> None:
    """Nothing is shown before all parts are here; a placeholder may explain why one is missing."""
    search = PartSearch(gap(count=3))
    assert fetched(search, {(0, 0): part(0, count=3), (2, 0): part(2, count=3)}) == [(0, 0), (1, 0)]
    assert search.needs_placeholder


def test_an_absent_operation_may_be_explained() -> None:
    """The placeholder of a parked operation is looked for where nothing of it is on the server."""
    search = PartSearch(gap())
    assert fetched(search, {}) == [(0, 0)]
    assert search.needs_placeholder


def test_an_operation_whose_items_are_all_popped_may_be_explained() -> None:
    """No part of it is fetched."""
    search = PartSearch(gap(count=2, popped={0, 1}))
    assert search.request is None
    assert search.needs_placeholder


def test_a_search_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged count costs no more than the limit, and looks for no placeholder."""
    monkeypatch.setattr(gap_search, "FETCHES_PER_SEARCH", 3)
    search = PartSearch(gap())
    server = {(index, 0): part(index, count=1 << 40) for index in range(9)}
    assert fetched(search, server) == [(0, 0), (1, 0), (2, 0)]
    assert not search.needs_placeholder


def test_searches_become_rare() -> None:
    """The first follow soon, later ones at the interval of an idle session."""
    options = SyncOptions(backoff_base=0.5, poll_interval_idle=300)
    delays = [search_delay_ms(options, gap(tries=tries), found=0) for tries in range(12)]
    assert delays[:4] == [500, 1000, 2000, 4000]
    assert delays[-1] == 300_000
    assert search_delay_ms(options, gap(tries=1 << 40), found=0) == 300_000


def test_a_search_that_reached_its_limit_goes_on() -> None:
    """The rest of a long operation is fetched by the next pull."""
    assert search_delay_ms(SyncOptions(), gap(tries=9), found=FETCHES_PER_SEARCH) == 0
