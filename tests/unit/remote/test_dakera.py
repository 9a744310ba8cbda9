from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from cached_session.remote import wire
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.protocol import EventSource
from tests.unit.remote.remote_support import remote_over

ABSENT = httpx.Response(404, json={"error": "no such agent", "code": "NAMESPACE_NOT_FOUND"})


async def answer_to(
    response: httpx.Response, call: Callable[[DakeraRemote], Awaitable[Any]]
) -> tuple[Any, httpx.Request]:
    """Return the result of a call whose request gets this response, and the request."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return response

    remote = remote_over(handler)
    try:
        result = await call(remote)
    finally:
        await remote.aclose()
    return result, seen[0]


CALLS: dict[str, tuple[Callable[[DakeraRemote], Awaitable[Any]], Any]] = {
    "fetch": (lambda remote: remote.fetch("cs-x", "m"), None),
    "list_memories": (lambda remote: remote.list_memories("cs-x", offset=0, limit=10), []),
    "forget": (lambda remote: remote.forget("cs-x", ["m"]), 0),
    "find_by_tag": (lambda remote: remote.find_by_tag("cs-x", "t"), []),
    "recall": (lambda remote: remote.recall("cs-x", "words", 5), []),
}


@pytest.mark.parametrize("name", CALLS)
async def test_an_unknown_agent_has_nothing(name: str) -> None:
    """A 404 about an agent or memory is an empty result, and not a failure."""
    call, empty = CALLS[name]
    found, _ = await answer_to(ABSENT, call)
    assert found == empty


async def test_a_store_to_an_unknown_agent_fails() -> None:
    """A 404 for a store means that nothing was stored."""
    with pytest.raises(RemoteError) as caught:
        await answer_to(ABSENT, lambda remote: remote.store("cs-x", []))
    assert caught.value.verdict is Verdict.ABSENT


UNEXPECTED = [
    (name, body)
    for name in [*CALLS, "store"]
    for body in ("words", 7, {"unexpected": 1}, [[]] * 1001)
    # One memory is any object, and an old server answers a recall with a bare list.
    if not (name == "fetch" and isinstance(body, dict))
    if not (name == "recall" and isinstance(body, list))
]


@pytest.mark.parametrize(("name", "body"), UNEXPECTED)
async def test_an_answer_of_another_form_is_an_error(name: str, body: Any) -> None:
    """Each route has its form; another one may come from something that is not Dakera."""
    calls = {**CALLS, "store": (lambda remote: remote.store("cs-x", []), None)}
    with pytest.raises(RemoteError, match="unexpected form") as caught:
        await answer_to(httpx.Response(200, json=body), calls[name][0])
    assert caught.value.verdict is Verdict.UNREACHABLE


async def test_a_store_sends_the_encoded_bytes_and_returns_the_ids() -> None:
    """Memories are not encoded again; ids that are not text are left out."""
    memory = {"id": "m", "content": "a", "metadata": {"cs_w": "w", "cs_c": 1}}
    answer = {"stored": [{"id": "m"}, {"id": 7}, {}, None]}
    found, request = await answer_to(
        httpx.Response(200, json=answer),
        lambda remote: remote.store("cs-x", [wire.EncodedMemory.of(memory)] * 2),
    )
    assert found == {"m"}
    assert request.url.path == "/v1/memories/store/batch"
    assert json.loads(request.content) == {"agent_id": "cs-x", "memories": [memory, memory]}


async def test_an_id_is_one_segment_of_the_path() -> None:
    """A slash or a question mark in an id does not lead to another route."""
    found, request = await answer_to(
        httpx.Response(200, json={"id": "a/b?c"}), lambda remote: remote.fetch("cs-x", "a/b?c")
    )
    assert found == {"id": "a/b?c"}
    assert request.url.raw_path == b"/v1/memory/get/a%2Fb%3Fc?agent_id=cs-x"


async def test_a_page_asks_for_no_derived_memories() -> None:
    """Sentences that the server derives from a memory are not part of the history."""
    found, request = await answer_to(
        httpx.Response(200, json=[{"id": "m"}, None, 7]),
        lambda remote: remote.list_memories("cs-x", offset=20, limit=10),
    )
    assert found == [{"id": "m"}]
    assert dict(request.url.params) == {"limit": "10", "offset": "20", "include_derived": "false"}


async def test_a_search_by_tag_sends_the_request_model_of_the_sdk() -> None:
    """The filter requires the tag, and at most a hundred memories are asked for."""
    found, request = await answer_to(
        httpx.Response(200, json={"memories": [{"id": "m"}, 7]}),
        lambda remote: remote.find_by_tag("cs-x", "t"),
    )
    assert found == [{"id": "m"}]
    assert json.loads(request.content) == {
        "agent_id": "cs-x",
        "filter": {"tags": ["t"]},
        "limit": 100,
    }


async def test_a_forget_names_memories_only() -> None:
    """Exactly one selector is sent: two may be combined either way."""
    found, request = await answer_to(
        httpx.Response(200, json={"deleted_count": 2}),
        lambda remote: remote.forget("cs-x", ["a", "b"]),
    )
    assert found == 2
    assert json.loads(request.content) == {"agent_id": "cs-x", "memory_ids": ["a", "b"]}


async def test_a_dakera_server_has_events() -> None:
    """The replicator finds out by the protocol whether there is a stream to listen to."""
    remote = remote_over(lambda _: httpx.Response(200))
    assert isinstance(remote, EventSource)
    await remote.aclose()


async def test_an_empty_namespace_has_no_policy_to_judge() -> None:
    """For a namespace that does not exist, the server answers with its default policy."""
    found, _ = await answer_to(
        httpx.Response(200, json=[]), lambda remote: remote.policy_problem("cs-x")
    )
    assert found is None


MEMORY = {"id": "m", "content": "a"}


@pytest.mark.parametrize(
    "answer",
    [
        {"memories": [{"memory": MEMORY, "score": 0.5}, {"memory": None}, 7]},
        {"memories": [{**MEMORY}, None]},
        [{"memory": MEMORY}],
        [MEMORY],
    ],
)
async def test_recall_reads_every_shape_of_answer(answer: Any) -> None:
    """Enveloped, flat, or a bare list, depending on the server's version. Entries without a memory
    are left out. The request names the tags of items, and asks for no neighborhood."""
    asked: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json=answer)

    remote = remote_over(handler)
    try:
        found = await remote.recall("cs-x", "words", 5000)
    finally:
        await remote.aclose()
    assert [memory["id"] for memory in found] == ["m"]
    assert asked[0]["top_k"] == 1000
    assert {"cs-user", "cs-assistant", "cs-tool", "cs-item"} <= set(asked[0]["tags"])
    assert not {"cs-op", "cs-part", "cached-session"} & set(asked[0]["tags"])
    assert asked[0]["neighborhood"] is False


@pytest.mark.parametrize("answer", [{"memories": 7}, {}, "words", None])
async def test_recall_reports_an_unexpected_answer(answer: Any) -> None:
    """An answer without a list of memories is an error, and not an empty result."""
    remote = remote_over(lambda _: httpx.Response(200, json=answer))
    try:
        with pytest.raises(RemoteError):
            await remote.recall("cs-x", "words", 5)
    finally:
        await remote.aclose()
