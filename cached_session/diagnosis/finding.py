"""`Finding`: the result of one check of the diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: its level, the state that was found, and advice."""

    check: str
    """Name of the check."""
    level: Level
    """Severity: ``ok``, ``warn`` (works, but needs attention) or ``fail`` (does not work)."""
    message: str
    """Description of the state that was found."""
    advice: str = ""
    """Recommended action; empty if no action is needed."""
