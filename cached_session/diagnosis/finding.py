"""What a look found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    """``warn``: it works, and something should be done. ``fail``: it does not work."""
    message: str
    advice: str = ""
    """What to do; empty where there is nothing to do."""
