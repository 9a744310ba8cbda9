"""Close the journals that a test opened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.replication import fakes


@pytest.fixture(autouse=True)
def _close_journals() -> Iterator[None]:
    """Close every journal that the test opened, so that no connection is left to the collector."""
    yield
    while fakes.opened:
        fakes.opened.pop().close_blocking()
