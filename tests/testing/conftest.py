"""The fixtures, taken as a user takes them."""

from __future__ import annotations

from cached_session.testing.fixtures import fault_lab, timeless_fault_lab

__all__ = ["fault_lab", "timeless_fault_lab"]
