from __future__ import annotations

import pytest

from tests.simulation import herd


@pytest.mark.slow
def test_reconnecting_devices_do_not_overload_the_server() -> None:
    """200 devices reconnect after an outage: none is refused, all finish shortly after the longest
    pause, and no second has more requests than the server accepts."""
    seen = herd.run(seed=1)
    assert len(seen.done) == 200
    assert max(seen.done) < 90.0
    assert seen.turned_away == 0
    assert seen.busiest <= 60
    assert seen.deepest < 1.0
    assert seen.requests <= 200 * 7


@pytest.mark.slow
def test_devices_that_start_together_obey_retry_after() -> None:
    """200 devices start together: refused ones return at the requested time, and all finish in a
    few times the duration of the work itself."""
    seen = herd.run(seed=1, start=True)
    assert len(seen.done) == 200
    assert seen.turned_away > 0
    needed = (seen.requests - seen.turned_away) / seen.rate
    assert max(seen.done) < 3 * needed
    assert max(count for second, count in seen.arrived.items() if second > 10) < 2 * seen.rate


def test_a_herd_is_reproducible() -> None:
    """The same seed gives the same herd."""
    first, second = (herd.run(seed=3, devices=20, rate=5) for _ in range(2))
    assert first == second
