"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check."""
    level: Level
    """``ok``: no problem. ``warn``: it works, but needs attention. ``fail``: it does not work."""
    message: str
    """Description of the state that was found."""
    advice: str = ""
    """Recommended action; empty if none is needed."""
