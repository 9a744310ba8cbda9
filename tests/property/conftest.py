from __future__ import annotations

from collections.abc import Iterator

import pytest

from cached_session.history import parts
from tests.property.histories import SMALL_PARTS


@pytest.fixture(autouse=True, scope="module")
def small_parts() -> Iterator[None]:
    """Split operations into small parts, so that most operations have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", SMALL_PARTS)
        yield
