"""The part of a session's listing that this process has read, and when to read it again. Pure.

A memory may become visible late, below newer memories. A *thorough* scan looks for such memories.
"""

from __future__ import annotations

from dataclasses import dataclass

from cached_session.journal.tables.pull_state import PullState

__all__ = [
    "SAFETY_SECONDS",
    "ListingProgress",
    "first_progress",
    "needs_thorough_scan",
    "next_progress",
]

SAFETY_SECONDS = 120
"""The number of seconds of the known part that a thorough scan reads again. Memories may become
visible late, and the clocks of the server's nodes differ."""
THOROUGH_SECONDS = 600
"""The longest time in seconds between two thorough scans while new memories arrive."""
SECOND_MS = 2000
"""The time in milliseconds after which the second of a listed memory is over."""


@dataclass(frozen=True)
class ListingProgress:
    """The scans of a session's listing that this process has finished.

    Its seconds are those of the server's clock.
    """

    thorough_ms: int = 0
    """The beginning of the last thorough scan, in milliseconds; 0 if there was none."""
    complete_second: int = 0
    """The latest second of which every memory was listed; 0 if unknown."""
    settled_second: int = 0
    """The latest second at which a thorough scan has begun, after every memory of that time had
    become visible; 0 if unknown."""


def first_progress(state: PullState, now_ms: int) -> ListingProgress:
    """Return the progress of a session that this process has not listed yet.

    If the newest memory is old, an earlier process has listed everything that was stored with it.
    """
    if now_ms - state.since_ms <= 1000 * SAFETY_SECONDS:
        return ListingProgress()
    return ListingProgress(now_ms, state.newest_second, state.newest_second)


def next_progress(
    before: ListingProgress,
    state: PullState,
    *,
    newest: int,
    is_thorough: bool,
    began_ms: int,
    server_second: int,
) -> ListingProgress:
    """Return the progress after a finished scan.

    Args:
        before: the progress before the scan.
        state: the progress of earlier pulls, of this process and of others.
        newest: the newest second that the scan has listed.
        is_thorough: whether the scan has read `SAFETY_SECONDS` of the known part.
        began_ms: the beginning of the scan.
        server_second: the server's time at the beginning of the scan; 0 if it is unknown.
    """
    age_ms = 1000 * (server_second - newest)
    if newest == state.newest_second:
        # The clocks differ. So the memory is also old some time after the first pull that found it.
        age_ms = max(age_ms, began_ms - state.since_ms)
    return ListingProgress(
        began_ms if is_thorough else before.thorough_ms,
        newest if age_ms >= SECOND_MS else before.complete_second,
        newest if age_ms >= 1000 * SAFETY_SECONDS and is_thorough else before.settled_second,
    )


def needs_thorough_scan(state: PullState, progress: ListingProgress, now_ms: int) -> bool:
    """Return whether the next scan should look for memories that have become visible late.

    One scan is thorough when the newest memory is old enough, so that every older memory is visible
    by then. While new memories arrive, a scan is thorough from time to time.
    """
    if progress.settled_second == state.newest_second:
        return False
    is_old = now_ms - state.since_ms >= 1000 * SAFETY_SECONDS
    return is_old or now_ms - progress.thorough_ms >= 1000 * THOROUGH_SECONDS
