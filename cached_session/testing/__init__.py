"""Fault tests for agents that use this package: a server, a network that breaks, a clock.

    async with FaultLab() as lab, lab.session("user-1") as session:
        lab.network().cut()
        await Runner.run(agent, "Are you there?", session=session)   # works all the same

Everything is real: a server on a socket, TCP connections that are cut, journals in files. It needs
the extra ``testing`` and no test framework; `cached_session.testing.fixtures` has it as pytest
fixtures. The library never imports this package.
"""

from __future__ import annotations

from cached_session.devserver import Clock, DevServer, Fault, FaultPlan
from cached_session.testing.manual_clock import ManualClock
from cached_session.testing.fault_lab import FaultLab
from cached_session.testing.random_faults import Havoc, havoc
from cached_session.testing.network import Network

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
