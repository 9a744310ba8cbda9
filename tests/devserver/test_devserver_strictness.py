from __future__ import annotations

from typing import Any

import httpx
import pytest

from cached_session.devserver import DevServer

CENTURY = 100 * 365 * 86_400


async def post_item(http: httpx.AsyncClient, **item: Any) -> httpx.Response:
    body = {"agent_id": "ada", "memories": [{"content": "x", **item}]}
    return await http.post("/v1/memories/store/batch", json=body)


@pytest.mark.parametrize(
    "item",
    [
        {"content": ""},
        {"content": "x" * 100_001},
        {"content": "é" * 50_001},
        {"content": 1},
        {"importance": 1.1},
        {"importance": -0.1},
        {"importance": "high"},
        {"memory_type": "eternal"},
        {"tags": ["dakera-curated"]},
        {"tags": "t"},
        {"metadata": {"_dakera_event_time": 1}},
        {"metadata": {str(number): 0 for number in range(101)}},
        {"metadata": []},
        {"id": "mem_s" + "0" * 24},
        {"id": "has space"},
        {"id": ""},
        {"id": "x" * 257},
        {"ttl_seconds": CENTURY + 1},
        {"ttl_seconds": 0},
        {"ttl_seconds": 1.5},
        {"session_id": "-starts-badly"},
        {"session_id": "x" * 257},
        {"event_time": -1},
        {"event_time": "yesterday"},
        {"lang": "not a language"},
    ],
    ids=lambda item: next(f"{k}={str(v)[:20]}" for k, v in item.items()),
)
async def test_bad_item_is_refused(
    http: httpx.AsyncClient, server: DevServer, item: dict[str, Any]
) -> None:
    """An item that breaks a rule is a 400 with a code, and nothing of it is stored."""
    answer = await post_item(http, **item)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")
    assert server.memories("ada") == []


@pytest.mark.parametrize(
    "item",
    [
        {"content": "x" * 100_000},
        {"content": "é" * 50_000},
        {"metadata": {str(number): 0 for number in range(100)}},
        {"metadata": {"_dakera_lang": "en"}},
        {"ttl_seconds": CENTURY},
        {"id": "A-z_0.9:" + "x" * 248},
        {"session_id": "urn:chat:42"},
        {"importance": 1},
    ],
    ids=lambda item: next(f"{k}={str(v)[:20]}" for k, v in item.items()),
)
async def test_item_at_the_limit_is_stored(http: httpx.AsyncClient, item: dict[str, Any]) -> None:
    """An item exactly at a limit is stored."""
    assert (await post_item(http, **item)).status_code == 200


@pytest.mark.parametrize(
    "memories",
    [[], [{"content": "x"}] * 1001, [{"content": "x", "id": "a"}] * 2, None, [1]],
    ids=["empty", "too many", "same id twice", "absent", "not objects"],
)
async def test_bad_batch_is_refused_whole(
    http: httpx.AsyncClient, server: DevServer, memories: Any
) -> None:
    """A batch that breaks a rule is a 400 and stores nothing."""
    body = {"agent_id": "ada", "memories": memories}
    assert (await http.post("/v1/memories/store/batch", json=body)).status_code == 400
    assert server.memories("ada") == []


async def test_one_bad_item_spoils_the_batch(http: httpx.AsyncClient, server: DevServer) -> None:
    """A batch is stored whole or not at all."""
    body = {"agent_id": "ada", "memories": [{"content": "good"}, {"content": ""}]}
    assert (await http.post("/v1/memories/store/batch", json=body)).status_code == 400
    assert server.memories("ada") == []


@pytest.mark.parametrize(
    "agent_id", ["", "a b", "a:b", "ä", "-a", "_a", "x" * 242, None, 7], ids=repr
)
async def test_bad_agent_id_is_refused(http: httpx.AsyncClient, agent_id: Any) -> None:
    """An agent id outside the pattern is a 400 wherever it appears."""
    for path, rest in [("/v1/memory/store", {"content": "x"}), ("/v1/agents", {})]:
        answer = await http.post(path, json={"agent_id": agent_id, **rest})
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b'{"content": "\\ud800"}', b"\xff"], ids=repr
)
async def test_body_that_is_not_an_object_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    """Broken JSON, lone surrogates and anything but an object are a 400."""
    answer = await http.post("/v1/memory/store", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")


async def test_text_is_kept_byte_for_byte(http: httpx.AsyncClient, server: DevServer) -> None:
    """Content and metadata keep control characters, composed forms, spaces and key order."""
    content = " \u0000\u0001 e\u0301 é \U0001f600 \r\n\t\u2028 "
    metadata = {"z": content, "a": 1.0, "big": 2**63, "nested": {"n": None}}
    assert (await post_item(http, content=content, metadata=metadata)).status_code == 200
    (memory,) = server.memories("ada")
    assert memory["content"] == content
    assert list(memory["metadata"].items()) == list(metadata.items())


async def test_bad_filters_and_pages_are_refused(http: httpx.AsyncClient) -> None:
    """Wrong types in filters and page parameters are a 400."""
    for rule in ({"tags": "t"}, {"min_importance": 2}, {"created_after": "x"}, []):
        body = {"agent_id": "ada", "filter": rule}
        assert (await http.post("/v1/memories/recall/batch", json=body)).status_code == 400
    for query in ("limit=0", "limit=x", "offset=-1", "include_derived=1"):
        assert (await http.get(f"/v1/agents/ada/memories?{query}")).status_code == 400


async def test_oversize_memory_may_only_shrink(http: httpx.AsyncClient) -> None:
    """An update may not take content over the limit."""
    await post_item(http, id="m")
    path = "/v1/memory/update/m?agent_id=ada"
    assert (await http.put(path, json={"content": "x" * 100_001})).status_code == 400
    assert (await http.put(path, json={"content": "x" * 100_000})).status_code == 200
    assert (await http.put("/v1/memory/update/m", json={"content": "y"})).status_code == 400


async def test_foreign_host_is_refused_without_keys(
    http: httpx.AsyncClient, server: DevServer
) -> None:
    """An open server answers 421 to a Host that is neither local nor private."""
    foreign = {"Host": "evil.example"}
    answer = await http.get("/health", headers=foreign)
    assert (answer.status_code, answer.json()["code"]) == (421, "HOST_NOT_ALLOWED")
    for host in ("localhost:1", "192.168.1.7", "[::1]:80"):
        assert (await http.get("/health", headers={"Host": host})).status_code == 200
    server.add_key("secret", "read")
    assert (await http.get("/health", headers=foreign)).status_code == 200
