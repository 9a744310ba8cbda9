from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No deadline: a shared machine may stall, and a slow example is no wrong one. In CI the same
# examples each time: a failure there is one that a change made.
settings.register_profile(
    "here", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")
