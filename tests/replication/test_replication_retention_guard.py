from __future__ import annotations

import asyncio

import pytest

from cached_session.devserver import DevServer
from cached_session.devserver.policy import checked_policy
from tests.replication.devices import (
    AGENT,
    MANUAL,
    PATIENCE,
    POLICY,
    Devices,
    assert_one_history,
    items_on_server,
    sync_all,
    text_message,
)

NAMESPACE = f"_dakera_agent_{AGENT}"
DAY = 86_400
GUARDED = "*/memory_policy"


def policy(server: DevServer) -> dict[str, object]:
    return dict(server.state.policies[NAMESPACE])


async def test_the_policy_is_set_on_first_contact_and_once(
    device: Devices, server: DevServer
) -> None:
    """The first push sets the policy of the namespace, and later pushes and a second device do not
    set it again."""
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one")])
    await a.sync()
    assert server.requests.count(POLICY) == 1
    found = policy(server)
    assert found["consolidation_enabled"] is found["dedup_on_store"] is False
    for kind in ("working", "episodic", "semantic", "procedural"):
        assert found[f"{kind}_decay"] == "flat"
        assert found[f"{kind}_ttl_seconds"] == 50 * 365 * DAY
    await a.add_items([text_message("two")])
    await b.add_items([text_message("three")])
    await sync_all(a, b)
    assert server.requests.count(POLICY) == 1
    assert a.status().unguarded is None


async def test_an_interrupted_guard_continues(device: Devices, server: DevServer) -> None:
    """The four requests of the guard need not succeed in a row: a server that fails every third
    request is guarded and gets the items."""
    server.faults.status(503, every=3, skip=2)
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync(timeout=PATIENCE)
    assert policy(server)["episodic_decay"] == "flat"
    assert a.status().pending == 0
    assert a.status().unguarded is None


async def test_other_fields_of_the_policy_are_kept(device: Devices, server: DevServer) -> None:
    """Fields that the guard does not use stay as the operator set them."""
    with server.state.lock:
        server.state.get_or_create_agent(AGENT)
        own = {
            "rate_limit_enabled": True,
            "rate_limit_stores_per_minute": 1000,
            "spaced_repetition_factor": 2.5,
            "dedup_threshold": 0.5,
            "dedup_on_store": True,
            "episodic_ttl_seconds": 60,
        }
        server.state.set_policy(NAMESPACE, checked_policy(own))
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync()
    found = policy(server)
    assert found["rate_limit_enabled"] is True
    assert found["rate_limit_stores_per_minute"] == 1000
    assert found["spaced_repetition_factor"] == 2.5
    assert found["dedup_threshold"] == 0.5
    assert found["dedup_on_store"] is False
    assert found["episodic_ttl_seconds"] == 50 * 365 * DAY


@pytest.mark.parametrize("status", [403, 404, 405, 501])
async def test_a_key_that_may_not_set_the_policy_is_reported(
    device: Devices, server: DevServer, status: int
) -> None:
    """Where the policy cannot be set the status has the reason, everything is stored, and each
    memory has its own protection."""
    server.faults.status(status, route=POLICY)
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync()
    assert str(status) in str(a.status().unguarded)
    assert a.status().state == "online"
    (memory,) = server.memories(AGENT)
    assert memory["memory_type"] == "procedural"
    assert memory["importance"] == 1.0
    server.clock.advance(60 * DAY)
    assert items_on_server(server) == ["one"]


@pytest.mark.parametrize("version", ["0.12.0", "0.11.108"])
async def test_an_older_server_is_guarded_or_reported(
    device: Devices, server: DevServer, version: str
) -> None:
    """A server without agent creation or capabilities is not an error: it accepts everything, and
    the status reports if its policy could not be set."""
    server.state.version = type(server.state.version)(version)
    a, b = await device("a"), await device("b")
    await a.add_items([text_message("one")])
    await a.sync()
    assert a.status().unguarded or policy(server)["procedural_decay"] == "flat"
    assert await assert_one_history(a, b) == ["one"]


async def test_an_older_server_is_guarded_once_the_namespace_exists(
    device: Devices, server: DevServer
) -> None:
    """Where a namespace cannot be created before the first memory, the policy is set soon after
    it."""
    server.state.version = type(server.state.version)("0.11.108")
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync()
    await a.add_items([text_message("two")])
    await a.sync()
    assert policy(server)["dedup_on_store"] is False
    assert a.status().unguarded is None


async def test_a_policy_that_the_server_does_not_keep_is_reported(
    device: Devices, server: DevServer
) -> None:
    """A server that accepts the policy and does not keep it is detected."""
    server.faults.garble("object", route=POLICY, count=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.state, "set_policy", lambda *_: None)
        a = await device("a")
        await a.add_items([text_message("one")])
        await a.sync()
    assert "did not keep" in str(a.status().unguarded)


async def test_an_interrupted_guard_is_repeated(device: Devices, server: DevServer) -> None:
    """A guard without an answer is repeated before anything is stored."""
    server.faults.lose_response(route=POLICY, count=1)
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync(timeout=PATIENCE)
    assert a.status().unguarded is None
    assert policy(server)["procedural_decay"] == "flat"


@pytest.mark.promise(number=8)
@pytest.mark.parametrize("guarded", [True, False])
async def test_no_memory_expires_in_sixty_days(
    device: Devices, server: DevServer, guarded: bool
) -> None:
    """After 60 days on the server's clock every memory is there, with and without a policy."""
    if not guarded:
        server.faults.status(403, route=GUARDED)
    a = await device("a")
    for number in range(10):
        await a.add_items([text_message(f"{number % 2}")])
    await a.pop_item()
    await a.sync()
    before = len(server.memories(AGENT))
    for _ in range(60):
        server.clock.advance(DAY)
        assert len(server.memories(AGENT)) == before
    assert len(await assert_one_history(device.new("b"), a)) == 9


async def test_no_dakera_session_is_started(device: Devices, server: DevServer) -> None:
    """Dakera sessions, whose end consolidates memories, are never used."""
    a = await device("a", options=MANUAL)
    await a.add_items([text_message("one")])
    await a.sync()
    await a.close()
    assert server.requests.count("* /v1/sessions*") == 0
    assert all("session_id" not in memory for memory in server.memories(AGENT))


async def put_policy(server: DevServer, **fields: object) -> None:
    """Set the policy as an operator, over the policy of the guard."""
    with server.state.lock:
        server.state.set_policy(NAMESPACE, checked_policy({**policy(server), **fields}))


WAYS = {
    "expiry": (51 * 365, {}),
    "decay": (365, {"procedural_decay": "exponential"}),
    "consolidation": (2, {"consolidation_enabled": True}),
    "autopilot": (2, {}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_an_audit_restores_what_a_server_expires(
    device: Devices, server: DevServer, way: str
) -> None:
    """Where the guard was undone, memories expire, decay or are merged as the server's clock
    advances. An audit stores each again, near-duplicates included, and removed items stay
    removed."""
    a, b = await device("a"), await device("b")
    words = ["ok", "Ok.", "ok", "yes", "ok"]
    for word in words:
        await a.add_items([text_message(word)])
    await a.add_items([text_message("removed")])
    await a.pop_item()
    await sync_all(a, b)
    days, fields = WAYS[way]
    await put_policy(server, **fields)
    if way == "autopilot":
        server.state.autopilot.update(enabled=True, dedup_mode="merge")
    for _ in range(2):
        server.memories(AGENT)  # the server does its housekeeping on the next request
        server.clock.advance(days / 2 * DAY)
    lost = len(words) - len(items_on_server(server))
    assert lost >= (3 if way in ("consolidation", "autopilot") else 5)
    server.state.autopilot.update(enabled=False)
    await put_policy(server, procedural_decay="flat", consolidation_enabled=False)
    assert (await b.audit()).healed >= lost
    assert items_on_server(server) == words
    assert await assert_one_history(device.new("late"), a, b) == words


async def test_an_audit_sets_the_policy_before_it_stores(
    device: Devices, server: DevServer
) -> None:
    """A server that restarts empty has lost its policies too. An audit sets the policy of the
    session before it stores any memory."""
    a = await device("a")
    await a.add_items([text_message("one")])
    await a.sync(timeout=PATIENCE)
    await asyncio.to_thread(server.stop)
    server.reset()
    await asyncio.to_thread(server.start)
    assert (await a.audit()).healed == 1
    assert policy(server)["procedural_decay"] == "flat"
    assert server.requests.count(POLICY) == 1


async def test_an_audit_sets_a_policy_that_an_earlier_key_could_not(
    device: Devices, server: DevServer
) -> None:
    """An audit with an administrator's key sets the policy, although there is nothing to send."""
    a = await device("a", options=MANUAL)
    with server.faults.status(403, route=POLICY):
        await a.add_items([text_message("one")])
        await a.sync()
        assert "403" in str(a.status().unguarded)
    await a.audit()
    assert a.status().unguarded is None
    assert policy(server)["procedural_decay"] == "flat"
