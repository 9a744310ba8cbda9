"""The Hypothesis profiles of all property tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

__all__ = ["examples"]

FEW = 100
"""Examples of a test in the profile `fixed`, unless the test sets another number."""
MANY = 20
"""Factor for the number of examples in the profile `fresh`."""

# No deadline: a shared machine may stall, and a slow example is not a failure.
settings.register_profile(
    "fixed",
    max_examples=FEW,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "fresh", settings.get_profile("fixed"), max_examples=FEW * MANY, derandomize=False
)
# `make fuzz` selects the other profile: --hypothesis-profile=fresh.
settings.load_profile("fixed")


def examples(count: int, *, stateful_step_count: int = 50) -> settings:
    """Return the settings of a test that takes ``count`` examples, or many more in `fresh`."""
    return settings(
        max_examples=count * settings().max_examples // FEW,
        stateful_step_count=stateful_step_count,
    )
