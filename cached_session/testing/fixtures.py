"""Pytest fixtures of `FaultLab`.

Add this to a ``conftest.py``:

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
    """Yield a lab that uses real time, with its journals in ``tmp_path``."""
    with FaultLab(directory=tmp_path) as lab:
        yield lab


@pytest.fixture
def timeless_fault_lab(tmp_path: Path) -> Iterator[FaultLab]:
    """Yield a lab whose time only the test moves, with ``timeless_fault_lab.clock``."""
    with FaultLab(directory=tmp_path, clock=True) as lab:
        yield lab
