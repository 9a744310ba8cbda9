"""How long to wait after a failure. Pure."""

from __future__ import annotations

import random

from cached_session.options import SyncOptions
from cached_session.remote.errors import RemoteError, Verdict

__all__ = ["exponential", "pause_after"]

SHORTEST = 0.05
"""Full jitter may draw nearly nothing: no failing loop ever turns faster than this."""
LONGEST_ASKED = 3600.0
"""A server may ask for time, but not for ever: an hour, then it is asked again."""


def pause_after(
    error: RemoteError, failures: int, options: SyncOptions, chance: random.Random
) -> float:
    """Seconds until the next attempt.

    The server's own wish comes first (with a tenth on top, at random, so that those who were told
    the same do not come back together); then exponential back-off with full jitter.
    """
    if error.retry_after is not None:
        asked = min(max(error.retry_after, SHORTEST), LONGEST_ASKED)
        return asked * (1 + 0.1 * chance.random())
    if error.verdict is Verdict.DENIED:
        return options.denied_retry * (0.5 + 0.5 * chance.random())
    return exponential(failures, options, chance)


def exponential(failures: int, options: SyncOptions, chance: random.Random) -> float:
    """Seconds after so many failures before: exponential, with full jitter."""
    ceiling = min(options.backoff_max, options.backoff_base * 2.0 ** min(failures, 32))
    return max(SHORTEST, ceiling * chance.random())
