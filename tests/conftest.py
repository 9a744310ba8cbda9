from __future__ import annotations

import pytest

from tests import hypothesis_profiles

__all__ = ["hypothesis_profiles"]

SLOW_SECONDS = 300.0
"""Time limit of a test that is marked as slow; that of others is in pyproject.toml."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give slow tests more time, unless they or the command line name a limit."""
    if config.getoption("timeout", None) is not None:
        return
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
