"""A user's handling of errors, and a user's fault tests."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import assert_type

from cached_session import (
    CachedSession,
    CachedSessionError,
    InvalidArgument,
    JournalError,
    JournalFull,
    PopUnconfirmed,
    SyncError,
    SyncTimeout,
    Unauthorized,
)
from cached_session.testing import FaultLab, ManualClock, Network


async def handle(session: CachedSession) -> str:
    """Handle each kind of error by its class; the base class takes them all."""
    try:
        await session.sync(timeout=1)
        await session.pop_item()
    except (Unauthorized, SyncTimeout) as error:
        assert_type(error, Unauthorized | SyncTimeout)
        return "sync"
    except JournalFull as error:
        journal: JournalError = error
        return str(journal)
    except CachedSessionError as error:
        assert_type(error, CachedSessionError)
        return str(error)
    return ""


def relate(
    wrong: InvalidArgument, late: SyncTimeout, doubtful: PopUnconfirmed
) -> tuple[ValueError, TypeError, TimeoutError, SyncError]:
    """Use errors as the built-in ones that they are, too."""
    return wrong, wrong, late, doubtful


async def test_an_agent(path: Path) -> None:
    """Test under faults, in real time and in a time of its own."""
    async with FaultLab(directory=path, clock=True) as lab:
        assert_type(lab, FaultLab)
        network = lab.network()
        assert_type(network, Network)
        async with lab.session("user-1") as session:
            assert_type(session, CachedSession)
            with network.cut():
                await session.add_items([{"role": "user", "content": "offline"}])
        clock = lab.clock
        assert_type(clock, ManualClock)
