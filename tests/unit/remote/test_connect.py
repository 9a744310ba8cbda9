from __future__ import annotations

import threading
from typing import Any

import pytest

from cached_session import SyncOptions
from cached_session.remote import connect as connect_module


async def test_a_client_is_made_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the certificates that the system trusts, some twenty milliseconds of them."""
    made: list[threading.Thread] = []
    connect = connect_module.connect

    def watched(*arguments: Any) -> Any:
        made.append(threading.current_thread())
        return connect(*arguments)

    monkeypatch.setattr(connect_module, "connect", watched)
    spec = connect_module.RemoteSpec.make("http://127.0.0.1:1", None, None)
    assert spec is not None
    remote = await spec.open(SyncOptions())
    await remote.aclose()
    assert len(made) == 1
    assert made[0] is not threading.current_thread()
