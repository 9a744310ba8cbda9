"""Numbers formatted for messages that people read."""

from __future__ import annotations

__all__ = ["count", "lasting", "size"]


def count(number: int, noun: str, several: str = "") -> str:
    """Format a count with its noun; ``several`` is the plural if it does not end in -s."""
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def lasting(seconds: float) -> str:
    """Format a duration in the unit that suits its size."""
    for limit, divisor, unit in (
        (120, 1, "s"),
        (7200, 60, "min"),
        (172_800, 3600, "h"),
        (2 * 365 * 86400, 86400, "days"),
    ):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / (365.25 * 86400):.0f} years"


def size(number: float) -> str:
    """Format a number of bytes."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
