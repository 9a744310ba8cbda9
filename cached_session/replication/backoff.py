"""The time to wait after a failure, in seconds. Pure."""

from __future__ import annotations

import random

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["LONGEST_ASKED", "SHORTEST", "exponential", "pause_after"]

SHORTEST = 0.05
"""The shortest wait after a failure, in seconds. Full jitter alone may yield a wait of nearly 0."""
LONGEST_ASKED = 3600.0
"""The longest wait in seconds that a server can request. A longer request counts as an hour."""


def pause_after(
    error: RemoteError, failures: int, options: SyncOptions, chance: random.Random
) -> float:
    """Return the seconds to wait before the next attempt.

    A time that the server requested takes precedence. Up to a tenth is added to it, so that clients
    with identical times do not retry together. After `DENIED`, wait for 50 to 100 % of
    `SyncOptions.denied_retry`. All other errors back off exponentially.

    Args:
        failures: the number of failures in a row before this failure.
    """
    if error.retry_after is not None:
        asked = min(max(error.retry_after, SHORTEST), LONGEST_ASKED)
        return asked * (1 + 0.1 * chance.random())
    if error.verdict is Verdict.DENIED:
        return options.denied_retry * (0.5 + 0.5 * chance.random())
    return exponential(failures, options, chance)


def exponential(failures: int, options: SyncOptions, chance: random.Random) -> float:
    """Return the seconds to wait after ``failures`` earlier failures.

    The back-off is exponential with full jitter.
    """
    ceiling = min(options.backoff_max, options.backoff_base * 2.0 ** min(failures, 32))
    return max(SHORTEST, ceiling * chance.random())
