from __future__ import annotations

from collections.abc import Iterator

import pytest

from cached_session.history import parts
from tests.property.histories import SMALL_PARTS


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Operations are cut small, so that pieces are the rule and cost nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", SMALL_PARTS)
        yield
