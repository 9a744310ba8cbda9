from __future__ import annotations

from tests import hypothesis_profiles

__all__ = ["hypothesis_profiles"]
