"""Which part of a listing has been read, and when it is read again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cached_session.journal.tables.pull_state import PullState
from cached_session.replication.listing_progress import (
    ListingProgress,
    first_progress,
    needs_thorough_scan,
    next_progress,
)

NOW_MS = 2_000_000_000
KNOWN = PullState(is_known=True, is_hydrated=True, newest_second=1000, since_ms=NOW_MS)
"""The state of a session that an earlier pull has read to the end, just now."""


@pytest.mark.parametrize(
    ("listed_ago", "progress", "thorough"),
    [
        (0, ListingProgress(), True),
        (119, ListingProgress(NOW_MS - 119_000), False),
        (120, ListingProgress(NOW_MS - 120_000), True),
        (120, ListingProgress(NOW_MS - 120_000, settled_second=1000), False),
        (0, ListingProgress(NOW_MS - 599_000, settled_second=900), False),
        (0, ListingProgress(NOW_MS - 600_000, settled_second=900), True),
    ],
)
def test_a_scan_is_thorough_once_the_newest_memory_is_old(
    listed_ago: int, progress: ListingProgress, thorough: bool
) -> None:
    """And from time to time while new memories arrive."""
    state = replace(KNOWN, since_ms=NOW_MS - 1000 * listed_ago)
    assert needs_thorough_scan(state, progress, NOW_MS) is thorough


def test_a_process_trusts_an_old_listing_of_another_one() -> None:
    """A command that runs every hour does not read the last minutes again each time."""
    old = replace(KNOWN, since_ms=NOW_MS - 121_000)
    assert not needs_thorough_scan(old, first_progress(old, NOW_MS), NOW_MS)
    assert needs_thorough_scan(KNOWN, first_progress(KNOWN, NOW_MS), NOW_MS)


@pytest.mark.parametrize(
    ("server_second", "since", "complete", "settled"),
    [
        (0, 0, 0, 0),
        (1001, 1, 0, 0),
        (1002, 0, 1000, 0),
        (0, 2, 1000, 0),
        (1120, 0, 1000, 1000),
        (0, 120, 1000, 1000),
    ],
)
def test_a_finished_scan_completes_seconds_that_are_over(
    server_second: int, since: int, complete: int, settled: int
) -> None:
    """By the server's clock, or by the time since a pull has first found the newest memory."""
    state = replace(KNOWN, since_ms=NOW_MS - 1000 * since)
    reached = next_progress(
        ListingProgress(),
        state,
        newest=1000,
        is_thorough=True,
        began_ms=NOW_MS,
        server_second=server_second,
    )
    assert reached == ListingProgress(NOW_MS, complete, settled)
