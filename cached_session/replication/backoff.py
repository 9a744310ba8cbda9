"""The seconds to wait after a failure. Pure."""

from __future__ import annotations

import random

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["LONGEST_ASKED", "SHORTEST", "exponential", "pause_after"]

SHORTEST = 0.05
"""No failing loop runs faster than this. Full jitter alone may draw nearly nothing."""
LONGEST_ASKED = 3600.0
"""A server may ask for an hour at most. Then it is tried again."""


def pause_after(
    error: RemoteError, failures: int, options: SyncOptions, chance: random.Random
) -> float:
    """Return the seconds until the next attempt, after so many failures in a row before this one.

    A time that the server asked for comes first, with up to a tenth on top, so that clients that
    were given the same time do not come back together. Everything else backs off exponentially.
    """
    if error.retry_after is not None:
        asked = min(max(error.retry_after, SHORTEST), LONGEST_ASKED)
        return asked * (1 + 0.1 * chance.random())
    if error.verdict is Verdict.DENIED:
        return options.denied_retry * (0.5 + 0.5 * chance.random())
    return exponential(failures, options, chance)


def exponential(failures: int, options: SyncOptions, chance: random.Random) -> float:
    """Return the seconds after so many failures before: exponential back-off with full jitter."""
    ceiling = min(options.backoff_max, options.backoff_base * 2.0 ** min(failures, 32))
    return max(SHORTEST, ceiling * chance.random())
