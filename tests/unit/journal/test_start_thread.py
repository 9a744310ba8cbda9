"""A writing thread that the system cannot start."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cached_session import CachedSession, JournalError


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
async def test_a_call_without_a_thread_fails_and_the_next_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The call raises at once and stores nothing. Once the system has a thread, calls work."""

    def refuse(_: threading.Thread) -> None:
        raise error

    session = CachedSession("s", journal=tmp_path / "a.db")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(JournalError, match="cannot start a thread"):
                await session.add_items([{"role": "user", "content": "refused"}])
    await session.add_items([{"role": "user", "content": "stored"}])
    assert await session.get_items() == [{"role": "user", "content": "stored"}]
    await session.close()
