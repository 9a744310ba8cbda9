"""The lab as pytest fixtures.

In a ``conftest.py``:

pytest_plugins = ["cached_session.testing.fixtures"]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cached_session.testing.fault_lab import FaultLab

__all__ = ["fault_lab", "timeless_fault_lab"]


@pytest.fixture
def fault_lab(tmp_path: Path) -> Iterator[FaultLab]:
    """A lab on real time, with its journals in the test's own directory."""
    with FaultLab(directory=tmp_path) as lab:
        yield lab


@pytest.fixture
def timeless_fault_lab(tmp_path: Path) -> Iterator[FaultLab]:
    """A lab whose time passes only when the test says so: ``timeless_fault_lab.clock``."""
    with FaultLab(directory=tmp_path, clock=True) as lab:
        yield lab
