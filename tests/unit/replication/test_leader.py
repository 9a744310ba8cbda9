"""The election of a leader."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import pytest
from filelock import FileLock

from cached_session.replication.leader import Leader


def leader(path: Path) -> Leader:
    return Leader(FileLock(path, thread_local=False))


async def test_a_journal_in_memory_has_its_leader_immediately() -> None:
    """There is no other process."""
    alone = Leader(None)
    await alone.lead(3600.0)
    assert alone.is_leader
    alone.resign()
    assert not alone.is_leader


async def test_one_of_two_leads_until_it_resigns(tmp_path: Path) -> None:
    """The other one takes over when it looks again."""
    first, second = leader(tmp_path / "lock"), leader(tmp_path / "lock")
    await first.lead(3600.0)
    await first.lead(3600.0)
    with anyio.move_on_after(0):
        await second.lead(3600.0)
    assert first.is_leader
    assert not second.is_leader
    second.resign()
    first.resign()
    await second.lead(3600.0)
    assert second.is_leader
    second.resign()


async def test_a_lock_that_cannot_be_taken_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process does not lead, and tries again."""
    (tmp_path / "file").touch()
    blocked = leader(tmp_path / "file" / "lock")
    with caplog.at_level(logging.ERROR), anyio.move_on_after(0):
        await blocked.lead(3600.0)
    assert not blocked.is_leader
    assert "cannot acquire the lock file" in caplog.text
