"""The only source of wall-clock time, monotonic time, randomness and ids in the library.

A test or a simulation passes its own ``Runtime``, so that a failure can be reproduced from a seed.
"""

from __future__ import annotations

import base64
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Runtime", "new_writer"]

WRITER_BYTES = 15
"""Number of random bytes of a writer id: 120 bits, so that no two ids are equal."""


def new_writer(token: bytes) -> str:
    """Return a writer id in lower-case base32, which sorts in the same way everywhere: by bytes."""
    return base64.b32encode(token).decode().rstrip("=").lower()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Runtime:
    """Replaceable sources of time, randomness and ids."""

    wall_ms: Callable[[], int] = _wall_ms
    """Function that returns Unix time in milliseconds. The clock may stop, jump or be wrong: only
    displayed times depend on it."""
    monotonic: Callable[[], float] = time.monotonic
    """Function that returns seconds of a clock that never goes back, for intervals within this
    process."""
    random: random.Random = field(default_factory=random.Random)
    """Source of jitter. It is not used for values that must be unique or unpredictable."""
    token: Callable[[int], bytes] = secrets.token_bytes
    """Function that returns unique bytes, for writer ids."""

    threaded: bool = True
    """True: blocking work runs in other threads. A simulation runs everything in one thread."""

    def writer(self) -> str:
        """Return a new writer id."""
        return new_writer(self.token(WRITER_BYTES))
