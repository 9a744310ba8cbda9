from __future__ import annotations

import dakera
import pytest
from dakera import AsyncDakeraClient

from cached_session.devserver import DevServer


@pytest.fixture
def guarded(server: DevServer) -> DevServer:
    """A server with a key of each scope, and one that is good for some agents only."""
    for scope in ("read", "write", "admin", "super_admin"):
        server.add_key(f"{scope}-key", scope, name=scope)
    server.add_key("narrow-key", "write", ["_dakera_agent_ada", "_dakera_agent_b*"], name="narrow")
    return server


def connect(server: DevServer, key: str | None) -> AsyncDakeraClient:
    return AsyncDakeraClient(server.url, api_key=key, max_retries=1)


async def test_root_key_switches_authentication_on() -> None:
    """A server with a root key refuses callers without it, and says why."""
    with DevServer(api_key="root-key") as server:
        for key, code in [(None, "AUTHENTICATION_REQUIRED"), ("wrong", "INVALID_API_KEY")]:
            async with connect(server, key) as client:
                with pytest.raises(dakera.AuthenticationError) as failure:
                    await client.list_namespaces()
                assert failure.value.code.value == code
        async with connect(server, "root-key") as client:
            assert (await client.whoami()).scope == "super_admin"
        async with connect(server, None) as client:
            assert (await client.health())["status"] == "healthy"


async def test_open_server_takes_everybody_for_the_root(client: AsyncDakeraClient) -> None:
    """Without keys every caller is an unrestricted super admin."""
    me = await client.whoami()
    assert (me.key_id, me.scope, me.unrestricted) == ("auth-disabled", "super_admin", True)
    assert me.auth_enabled is False


async def test_scopes_contain_each_other(guarded: DevServer) -> None:
    """A read key stores nothing, a write key administers nothing, an admin key does both."""
    async with connect(guarded, "read-key") as client:
        assert await client.agent_memories("ada") == []
        with pytest.raises(dakera.AuthorizationError) as failure:
            await client.store_memory("ada", "x")
        assert failure.value.code.value == "INSUFFICIENT_SCOPE"
    async with connect(guarded, "write-key") as client:
        await client.store_memory("ada", "x")
        with pytest.raises(dakera.AuthorizationError):
            await client.autopilot_status()
        with pytest.raises(dakera.AuthorizationError):
            await client.delete_namespace("_dakera_agent_ada")
    async with connect(guarded, "admin-key") as client:
        await client.autopilot_status()
        await client.delete_namespace("_dakera_agent_ada")


async def test_grants_limit_the_namespaces(guarded: DevServer) -> None:
    """A key reaches its exact namespaces and its prefixes, and sees no others."""
    async with connect(guarded, "write-key") as client:
        await client.store_memory("carol", "x")
    async with connect(guarded, "narrow-key") as client:
        await client.store_memory("ada", "x")
        await client.store_memory("bob", "x")
        for attempt in (client.store_memory("carol", "x"), client.agent_memories("ada2")):
            with pytest.raises(dakera.AuthorizationError) as failure:
                await attempt
            assert failure.value.code.value == "NAMESPACE_ACCESS_DENIED"
        assert [agent["agent_id"] for agent in await client.list_agents()] == ["ada", "bob"]
        me = await client.whoami()
        assert (me.unrestricted, me.namespaces) == (
            False,
            ["_dakera_agent_ada", "_dakera_agent_b*"],
        )


async def test_key_expires_on_the_clock(server: DevServer) -> None:
    """A key is refused from the second of its expiry on."""
    server.add_key("short", "read", expires_at=int(server.clock.now()) + 60)
    async with connect(server, "short") as client:
        await client.list_agents()
        server.clock.advance(61)
        with pytest.raises(dakera.AuthenticationError) as failure:
            await client.list_agents()
        assert failure.value.code.value == "API_KEY_EXPIRED"


async def test_removed_key_is_refused(guarded: DevServer) -> None:
    """A key that was revoked is refused while the others go on."""
    guarded.remove_key("read-key")
    async with connect(guarded, "read-key") as client:
        with pytest.raises(dakera.AuthenticationError):
            await client.list_agents()
    async with connect(guarded, "write-key") as client:
        assert await client.list_agents() == []
