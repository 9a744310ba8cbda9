from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from cached_session import SyncOptions
from cached_session.errors import InvalidArgument
from cached_session.remote import connect as connect_module
from cached_session.remote.connect import RemoteSpec, remove_spec
from tests.unit.remote.remote_support import CANARY, URL, client_over


async def test_a_client_is_made_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new client reads the certificates that the system trusts: some twenty milliseconds."""
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


def test_a_key_over_plain_http_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    """Only the first use of a key over plain HTTP to another host warns, without naming the key."""
    url = "http://once.memory.example"
    RemoteSpec.make(url, None, None)
    assert not recwarn.list
    for _ in range(2):
        RemoteSpec.make(url, CANARY, None)
    (warning,) = recwarn.list
    assert "unencrypted" in str(warning.message)
    assert CANARY not in str(warning.message)


@pytest.mark.parametrize("key", ["key\n", "schlüssel", b"key", 7])
def test_a_key_that_no_header_can_hold_is_refused(key: Any) -> None:
    """The value is a secret, so the error does not show it."""
    with pytest.raises(InvalidArgument, match="printable ASCII") as caught:
        RemoteSpec.make(URL, key, None)
    assert repr(key) not in str(caught.value)


def test_no_arguments_mean_local_use() -> None:
    """Without an address and a client there is no server."""
    assert RemoteSpec.make(None, None, None) is None


def test_a_key_needs_an_address() -> None:
    """A key alone is a mistake, and not local use."""
    with pytest.raises(InvalidArgument, match="api_key was passed without url"):
        RemoteSpec.make(None, "key", None)


async def test_specs_of_one_server_differ_by_key() -> None:
    """Two keys for one server are two ways to reach it; an injected client has its own key."""
    client = client_over(lambda _: httpx.Response(200))
    one, other, injected = (
        RemoteSpec.make(URL, "one", None),
        RemoteSpec.make(URL, "other", None),
        RemoteSpec.make(None, None, client),
    )
    assert one is not None
    assert other is not None
    assert injected is not None
    assert not one.is_same_server(other)
    assert one.is_same_server(injected)
    assert injected.shares_client(RemoteSpec.make(None, None, client))
    assert not one.shares_client(other)
    assert CANARY not in repr(injected)
    assert "one" not in repr(one)
    await client.close()


def test_a_spec_is_removed_by_identity() -> None:
    """Equal specs of other sessions stay."""
    specs = [RemoteSpec(URL), RemoteSpec(URL), RemoteSpec(URL)]
    left = remove_spec(specs, specs[1])
    assert len(left) == 2
    assert left[0] is specs[0]
    assert left[1] is specs[2]
    assert remove_spec(specs, RemoteSpec(URL)) == specs
