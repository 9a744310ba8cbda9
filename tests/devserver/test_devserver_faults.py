from __future__ import annotations

import asyncio
import time
from email.utils import parsedate_to_datetime

import dakera
import httpx
import pytest
from dakera import AsyncDakeraClient
from dakera.models import BatchStoreMemoryItem, BatchStoreMemoryRequest

from cached_session.devserver import DevServer, Fault
from cached_session.devserver.app import build_app
from cached_session.devserver.request_log import RequestLog
from cached_session.devserver.state import State

BATCH = "POST /v1/memories/store/batch"


def batch(*ids: str) -> BatchStoreMemoryRequest:
    return BatchStoreMemoryRequest("ada", [BatchStoreMemoryItem("text", id=i) for i in ids])


def ids(server: DevServer) -> set[str]:
    return {memory["id"] for memory in server.memories("ada")}


async def test_stopped_server_refuses_connections(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A stopped server refuses connections, and a restart serves its data on the same port."""
    await client.store_memories_batch(batch("a"))
    url = server.url
    server.stop()
    with pytest.raises(dakera.exceptions.ConnectionError, match="Failed to connect"):
        await client.health()
    server.start()
    assert server.url == url
    assert [memory["id"] for memory in await client.agent_memories("ada")] == ["a"]


async def test_down_closes_connections_unread(client: AsyncDakeraClient, server: DevServer) -> None:
    """While the server is down each request loses its connection and changes nothing."""
    with server.faults.down():
        with pytest.raises(dakera.exceptions.ConnectionError):
            await client.store_memories_batch(batch("a"))
    await client.health()
    assert ids(server) == set()


async def test_lost_request_is_not_stored(client: AsyncDakeraClient, server: DevServer) -> None:
    """A connection dropped before the commit leaves nothing behind."""
    server.faults.lose_request(route=BATCH, count=1)
    with pytest.raises(dakera.exceptions.ConnectionError):
        await client.store_memories_batch(batch("a"))
    assert ids(server) == set()
    (entry,) = server.requests
    assert (entry.status, entry.committed) == (None, False)


async def test_lost_response_is_stored(client: AsyncDakeraClient, server: DevServer) -> None:
    """A connection dropped after the commit leaves the memory, and the next call works."""
    server.faults.lose_response(route=BATCH, count=1)
    with pytest.raises(dakera.exceptions.ConnectionError):
        await client.store_memories_batch(batch("a"))
    assert ids(server) == {"a"}
    assert next(iter(server.requests)).committed
    await client.store_memories_batch(batch("b"))


async def test_latency_delays_the_answer(client: AsyncDakeraClient, server: DevServer) -> None:
    """Latency holds a request back for at least as long as it says."""
    server.faults.latency(0.1, count=1)
    began = time.monotonic()
    await client.health()
    assert time.monotonic() - began >= 0.1


async def test_slow_answer_is_stored_though_the_client_left(server: DevServer) -> None:
    """A client that gives up waiting leaves a stored memory behind."""
    server.faults.latency(3600, after_commit=True, route=BATCH)
    async with AsyncDakeraClient(server.url, max_retries=1, timeout=0.05) as hasty:
        for _ in range(100):
            with pytest.raises(dakera.exceptions.TimeoutError):
                await hasty.store_memories_batch(batch("a"))
            if ids(server):  # else it gave up before its request was there
                break
    assert ids(server) == {"a"}


async def test_too_many_carries_retry_after(client: AsyncDakeraClient, server: DevServer) -> None:
    """A 429 says how long to wait, and stores nothing."""
    server.faults.too_many(7, route=BATCH)
    with pytest.raises(dakera.RateLimitError) as failure:
        await client.store_memories_batch(batch("a"))
    assert failure.value.retry_after == 7
    assert ids(server) == set()


async def test_retry_after_can_be_a_date(http: httpx.AsyncClient, server: DevServer) -> None:
    """Retry-After may be an HTTP date instead of seconds."""
    server.faults.status(503, retry_after=60, retry_after_date=True)
    answer = await http.get("/v1/agents")
    assert answer.json()["code"] == "SERVICE_UNAVAILABLE"
    wait = parsedate_to_datetime(answer.headers["Retry-After"]).timestamp() - time.time()
    assert 50 < wait <= 60


async def test_official_client_retries_a_refusal(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """The official client repeats a store after a 503, and the log counts both tries."""
    server.faults.unavailable(0, route=BATCH, count=1)
    async with AsyncDakeraClient(server.url) as patient:
        await patient.store_memories_batch(batch("a"))
    assert server.requests.count(BATCH) == 2
    assert server.requests.count(BATCH, status=503) == 1


@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault("status", status=503),
        Fault("status", status=503, after_commit=True),
        Fault("garbled", body="html"),
        Fault("truncated"),
        Fault("drop"),
        Fault("drop", after_commit=True),
    ],
)
async def test_the_log_has_a_request_before_its_client_has_the_answer(fault: Fault | None) -> None:
    """Whoever has an answer, or sees the line cut, finds the request in the log: what a test
    counts does not depend on which thread was faster."""
    state, log, logged = State(), RequestLog(), []

    async def send(_message: object) -> None:
        logged.append(len(log))

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    app = build_app(state, log, abort=lambda _: logged.append(len(log)), break_soon=lambda *_: None)
    if fault is not None:
        state.faults.add(fault)
    scope = {"type": "http", "method": "GET", "path": "/v1/agents", "query_string": b""}
    await app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)
    assert set(logged) == {1}


@pytest.mark.parametrize(("after_commit", "stored"), [(False, set()), (True, {"a"})])
async def test_status_before_or_after_the_commit(
    client: AsyncDakeraClient, server: DevServer, after_commit: bool, stored: set[str]
) -> None:
    """A 500 stores the memory exactly when it comes after the commit."""
    server.faults.status(500, after_commit=after_commit, route=BATCH)
    with pytest.raises(dakera.ServerError):
        await client.store_memories_batch(batch("a"))
    assert ids(server) == stored


async def test_timeout_after_commit(client: AsyncDakeraClient, server: DevServer) -> None:
    """A 408 after the commit is a plain error of the client, and the memory is stored."""
    server.faults.timeout_after_commit(route=BATCH)
    with pytest.raises(dakera.DakeraError) as failure:
        await client.store_memories_batch(batch("a"))
    assert failure.value.status_code == 408
    assert ids(server) == {"a"}


async def test_truncated_answer_breaks_off(http: httpx.AsyncClient, server: DevServer) -> None:
    """A truncated answer announces its whole length and ends early; the store happened."""
    server.faults.truncate(route=BATCH)
    body = {"agent_id": "ada", "memories": [{"content": "x", "id": "a"}]}
    with pytest.raises(httpx.TransportError):
        await http.post("/v1/memories/store/batch", json=body)
    assert ids(server) == {"a"}


@pytest.mark.parametrize(
    "body", ["html", "text", "empty", "list", "object", "null", "cut", "binary"]
)
async def test_garbled_answer_is_a_200(
    http: httpx.AsyncClient, server: DevServer, body: str
) -> None:
    """A garbled answer is a 200 whose body is not the documented object."""
    server.faults.garble(body)
    answer = await http.get("/health")
    assert answer.status_code == 200
    assert b"healthy" not in answer.content


async def test_duplicated_request_is_carried_out_twice(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A duplicated store without a caller's id leaves two memories, with one only one."""
    server.faults.duplicate()
    await client.store_memory("ada", "hello")
    assert len(server.memories("ada")) == 2
    await client.store_memories_batch(batch("a"))
    assert len(server.memories("ada")) == 3


async def test_stale_reads_answer_from_the_past(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """A stale read misses what is new, still has what was deleted, and the old version."""
    await client.store_memories_batch(batch("changed", "deleted"))
    server.clock.advance(60)
    await client.update_memory("ada", "changed", content="new")
    await client.forget("ada", "deleted")
    await client.store_memories_batch(batch("added"))
    with server.faults.stale(30):
        stale = {m["id"]: m["content"] for m in await client.agent_memories("ada")}
        with pytest.raises(dakera.NotFoundError):
            await client.get_memory("ada", "added")
    assert stale == {"changed": "text", "deleted": "text"}
    fresh = {m["id"]: m["content"] for m in await client.agent_memories("ada")}
    assert fresh == {"changed": "new", "added": "text"}


async def test_stale_and_fresh_reads_alternate(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Behind a balancer with one slow replica every second read is stale."""
    await client.store_memories_batch(batch("a"))
    server.faults.stale(30, every=2)
    lengths = [len(await client.agent_memories("ada")) for _ in range(4)]
    assert lengths == [0, 1, 0, 1]
    server.clock.advance(30)
    assert len(await client.agent_memories("ada")) == 1


async def test_starting_server_is_alive_but_not_ready(
    client: AsyncDakeraClient, http: httpx.AsyncClient, server: DevServer
) -> None:
    """A starting server answers 503 with Retry-After everywhere but on its liveness."""
    fault = server.faults.starting(30)
    assert not await client.is_ready()
    assert (await client.health_live())["starting"] is True
    health = await http.get("/health")
    assert (health.status_code, health.json()["starting"]) == (503, True)
    assert 1 <= int(health.headers["Retry-After"]) <= 30
    with pytest.raises(dakera.ServiceUnavailableError):
        await client.list_agents()
    fault.remove()
    assert await client.is_ready()


async def test_partial_batch_keeps_a_prefix(client: AsyncDakeraClient, server: DevServer) -> None:
    """A batch that is not atomic stores its first items and fails with 500."""
    server.faults.partial_batch(2, count=1)
    with pytest.raises(dakera.ServerError):
        await client.store_memories_batch(batch("a", "b", "c"))
    assert ids(server) == {"a", "b"}
    await client.store_memories_batch(batch("a", "b", "c"))
    assert ids(server) == {"a", "b", "c"}


async def test_fault_hits_only_its_route_and_turns(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """Route, skip, every and count select which requests a fault hits."""
    fault = server.faults.status(500, route="GET /v1/agents", skip=1, every=2, count=2)
    outcomes = []
    for _ in range(7):
        await client.health()
        try:
            await client.list_agents()
            outcomes.append("ok")
        except dakera.ServerError:
            outcomes.append("failed")
    assert outcomes == ["ok", "failed", "ok", "failed", "ok", "ok", "ok"]
    assert fault.fired == 2
    assert server.faults.active() == []


def test_probability_repeats_with_its_seed() -> None:
    """The same seed hits the same requests, and about as many as the probability says."""
    draws = []
    for _ in range(2):
        fault = Fault("drop", probability=0.3, seed=7)
        draws.append([fault.hits("GET /x") for _ in range(1000)])
    assert draws[0] == draws[1]
    assert 200 < sum(draws[0]) < 400


def test_lasting_fault_ends_by_itself() -> None:
    """A fault with a duration stops hitting when its time is over."""
    assert Fault("down", lasting=60).hits("GET /x")
    assert not Fault("down", lasting=0).hits("GET /x")


def test_misspelt_fault_is_refused(server: DevServer) -> None:
    """An unknown kind, body or setting raises instead of never firing."""
    with pytest.raises(ValueError, match="unknown fault kind"):
        Fault("explode")
    with pytest.raises(ValueError, match="unknown body"):
        server.faults.garble("klingon")
    with pytest.raises(ValueError, match="unknown fault setting"):
        server.faults.add_all([{"kind": "down", "rout": "*"}])
    assert server.faults.active() == []


async def test_faults_combine(client: AsyncDakeraClient, server: DevServer) -> None:
    """A slow, duplicated store whose answer is lost is all three at once."""
    server.faults.latency(0.05)
    server.faults.duplicate()
    server.faults.lose_response()
    began = time.monotonic()
    with pytest.raises(dakera.exceptions.ConnectionError):
        await client.store_memory("ada", "x")
    assert time.monotonic() - began >= 0.05
    assert len(server.memories("ada")) == 2
    assert next(iter(server.requests)).faults == ("latency", "duplicate", "drop")


async def test_refusing_for_a_while_then_serving(
    client: AsyncDakeraClient, server: DevServer
) -> None:
    """`refuse` blocks for its time and returns with the server accepting again."""
    refusing = asyncio.get_running_loop().run_in_executor(None, server.refuse, 0.1)
    await refusing
    assert (await client.health())["status"] == "healthy"
