"""Tools to test agents under faults: a server, a network that breaks, and a clock.

    async with FaultLab() as lab, lab.session("user-1") as session:
        lab.network().cut()
        await Runner.run(agent, "Are you there?", session=session)   # the agent works offline

Nothing is mocked: the server listens on a socket, TCP connections are cut, and journals are files.
Install the extra ``testing``. No test framework is needed; `cached_session.testing.fixtures` has
pytest fixtures. The library never imports this package.
"""

from __future__ import annotations

from cached_session.devserver import Clock, DevServer, Fault, FaultPlan
from cached_session.testing.fault_lab import FaultLab
from cached_session.testing.manual_clock import ManualClock
from cached_session.testing.network import Network
from cached_session.testing.random_faults import Havoc, havoc

__all__ = [
    "Clock",
    "DevServer",
    "Fault",
    "FaultLab",
    "FaultPlan",
    "Havoc",
    "ManualClock",
    "Network",
    "havoc",
]
