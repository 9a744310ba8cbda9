"""The fixtures, imported as a user imports them."""

from __future__ import annotations

from cached_session.testing.fixtures import fault_lab, timeless_fault_lab

__all__ = ["fault_lab", "timeless_fault_lab"]
