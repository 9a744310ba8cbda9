"""The seams: wall clock, monotonic clock, randomness and ids reach the library only through here.

A test or a simulation passes its own ``Runtime``, so that one seed replays a failure.
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
"""Random bytes of a writer id: 120 bits, so that no two openings in the world ever share one."""


def new_writer(token: bytes) -> str:
    """The text of a writer id: lower-case base32, whose byte order is its sort order everywhere."""
    return base64.b32encode(token).decode().rstrip("=").lower()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Runtime:
    """What the world gives: time, chance and names."""

    wall_ms: Callable[[], int] = _wall_ms
    """Unix time in milliseconds. May stand still, jump or lie: only readability depends on it."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that never go back: for intervals within this process only."""
    random: random.Random = field(default_factory=random.Random)
    """Jitter. Nothing that must be unguessable or unique comes from it."""
    token: Callable[[int], bytes] = secrets.token_bytes
    """Unique bytes: the source of writer ids."""

    threaded: bool = True
    """Whether work leaves the event loop's thread. A simulation does everything in turn."""

    def writer(self) -> str:
        """A fresh writer id."""
        return new_writer(self.token(WRITER_BYTES))
