from __future__ import annotations

import asyncio
import gzip
import json
import logging
import traceback
from typing import Any

import httpx
import pytest
from dakera.exceptions import ErrorCode

from cached_session.options import SyncOptions
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.http import MEMORY_BYTES, MOST_BYTES, DakeraHttp
from tests.unit.remote.remote_support import (
    CANARY,
    URL,
    Handler,
    client_over,
    raising,
    remote_over,
)


async def failure_of(handler: Handler, *, storing: bool = False) -> RemoteError:
    """Return the error of a listing, or of a store: a listing reads a 404 as an empty page."""
    remote = remote_over(handler)
    try:
        with pytest.raises(RemoteError) as caught:
            await (
                remote.store("cs-x", [])
                if storing
                else remote.list_memories("cs-x", offset=0, limit=10)
            )
    finally:
        await remote.aclose()
    return caught.value


# Each row of the reference's table, as the server words it.
ROWS = [
    (400, "INVALID_REQUEST", Verdict.REFUSED, Scope.SESSION),
    (400, "DIMENSION_MISMATCH", Verdict.REFUSED, Scope.SESSION),
    (400, "EMPTY_VECTOR", Verdict.REFUSED, Scope.SESSION),
    (401, "AUTHENTICATION_REQUIRED", Verdict.DENIED, Scope.SERVER),
    (401, "INVALID_API_KEY", Verdict.DENIED, Scope.SERVER),
    (401, "API_KEY_EXPIRED", Verdict.DENIED, Scope.SERVER),
    (403, "INSUFFICIENT_SCOPE", Verdict.DENIED, Scope.SESSION),
    (403, "NAMESPACE_ACCESS_DENIED", Verdict.DENIED, Scope.SESSION),
    (403, "CROSS_ORIGIN_REQUEST_REFUSED", Verdict.DENIED, Scope.SESSION),
    (404, "NAMESPACE_NOT_FOUND", Verdict.ABSENT, Scope.SESSION),
    (404, "VECTOR_NOT_FOUND", Verdict.ABSENT, Scope.SESSION),
    (404, "JOB_NOT_FOUND", Verdict.ABSENT, Scope.SESSION),
    (404, "API_KEY_NOT_FOUND", Verdict.ABSENT, Scope.SESSION),
    (404, "ROUTE_NOT_FOUND", Verdict.DENIED, Scope.SERVER),
    (405, "METHOD_NOT_ALLOWED", Verdict.DENIED, Scope.SERVER),
    (408, "REQUEST_TIMEOUT", Verdict.UNREACHABLE, Scope.SERVER),
    (409, "CONFLICT", Verdict.CONFLICT, Scope.SESSION),
    (413, "QUOTA_EXCEEDED", Verdict.DENIED, Scope.SESSION),
    (413, "PAYLOAD_TOO_LARGE", Verdict.REFUSED, Scope.SESSION),
    (415, "UNSUPPORTED_MEDIA_TYPE", Verdict.DENIED, Scope.SERVER),
    (421, "HOST_NOT_ALLOWED", Verdict.DENIED, Scope.SERVER),
    (422, "UNPROCESSABLE_CONTENT", Verdict.REFUSED, Scope.SESSION),
    (429, "RATE_LIMIT_EXCEEDED", Verdict.BUSY, Scope.SESSION),
    (500, "STORAGE_ERROR", Verdict.UNREACHABLE, Scope.SERVER),
    (500, "INTERNAL_ERROR", Verdict.UNREACHABLE, Scope.SERVER),
    (501, "FEATURE_DISABLED", Verdict.DENIED, Scope.SERVER),
    (501, "NOT_IMPLEMENTED", Verdict.DENIED, Scope.SERVER),
    (502, "INTERNAL_ERROR", Verdict.UNREACHABLE, Scope.SERVER),
    (503, "SERVICE_UNAVAILABLE", Verdict.BUSY, Scope.SERVER),
    (504, "QUERY_TIMEOUT", Verdict.UNREACHABLE, Scope.SERVER),
    (504, "EXTRACTION_TIMEOUT", Verdict.UNREACHABLE, Scope.SERVER),
    (418, "SOMETHING_NEW", Verdict.UNREACHABLE, Scope.SERVER),
]


@pytest.mark.parametrize(("status", "code", "verdict", "scope"), ROWS)
async def test_each_row_of_the_reference_has_its_verdict(
    status: int, code: str, verdict: Verdict, scope: Scope
) -> None:
    """Each status and code of the wire reference gets its verdict, with the server's text and the
    pause that it asks for."""
    body = {"error": "no", "code": code, "details": "why"}
    found = await failure_of(
        lambda _: httpx.Response(status, json=body, headers={"Retry-After": "7"}), storing=True
    )
    assert (found.verdict, found.scope, found.status) == (verdict, scope, status)
    assert found.retry_after == 7.0
    assert f"[{status}] {code}: no (why)" in found.reason


def test_the_rows_cover_every_code_of_the_sdk() -> None:
    """An error code that a new SDK version knows needs a row here, and perhaps a verdict."""
    assert {code.value for code in ErrorCode} - {row[1] for row in ROWS} == {"UNKNOWN"}


async def test_a_404_from_a_proxy_does_not_mean_that_memories_are_gone() -> None:
    """A 404 in HTML is reported as a wrong address."""
    found = await failure_of(lambda _: httpx.Response(404, html="<h1>Not found</h1>"))
    assert (found.verdict, found.scope) == (Verdict.DENIED, Scope.SERVER)


class Endless(httpx.AsyncByteStream):
    """A body without end; it counts the bytes that were read."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.taken = 0

    async def __aiter__(self) -> Any:
        while True:
            self.taken += len(self.piece)
            yield self.piece


LIMIT = MOST_BYTES + 10 * MEMORY_BYTES


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_body_without_end_is_cut_off(status: int) -> None:
    """Of an answer, also of an error, no more is read than the limit."""
    body = Endless(b"x" * 65_536)
    found = await failure_of(lambda _: httpx.Response(status, stream=body))
    assert found.verdict is Verdict.UNREACHABLE
    assert "too long" in found.reason
    assert body.taken <= LIMIT + 65_536


async def test_a_body_that_announces_too_many_bytes_is_not_read() -> None:
    """The announced length is compared with the limit before a byte is read."""
    body = Endless(b"x")
    headers = {"Content-Length": str(LIMIT + 1)}
    found = await failure_of(lambda _: httpx.Response(200, headers=headers, stream=body))
    assert "too long" in found.reason
    assert body.taken == 0


@pytest.mark.parametrize("packing", ["gzip", "br", "deflate", "zstd", "gzip, gzip"])
async def test_a_packed_bomb_is_cut_off_while_it_is_unpacked(packing: str) -> None:
    """A gzip bomb is unpacked up to the limit; a packing that was not asked for is an error."""
    bomb = gzip.compress(bytes(64 * LIMIT), 1)
    found = await failure_of(
        lambda _: (
            httpx.Response(200, headers={"Content-Encoding": packing}, content=bomb)
            if packing != "gzip"
            else httpx.Response(
                200, headers={"Content-Encoding": packing}, stream=httpx.ByteStream(bomb)
            )
        )
    )
    assert found.verdict is Verdict.UNREACHABLE


async def test_a_packed_answer_is_read() -> None:
    """A server or proxy may pack answers with gzip."""
    packed = gzip.compress(json.dumps([{"id": "a"}]).encode())
    remote = remote_over(
        lambda _: httpx.Response(
            200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(packed)
        )
    )
    assert await remote.list_memories("cs-x", offset=0, limit=10) == [{"id": "a"}]
    await remote.aclose()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """The key is sent to no other host than its own, also with a client that follows redirects."""
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(status, headers={"Location": "http://thief.example/"})

    remote = remote_over(handler)
    remote._http._http.follow_redirects = True
    with pytest.raises(RemoteError) as caught:
        await remote.list_memories("cs-x", offset=0, limit=10)
    await remote.aclose()
    assert caught.value.verdict is Verdict.DENIED
    assert "not followed" in caught.value.reason
    assert seen == ["127.0.0.1"]


ANSWERS_WITH_THE_KEY: dict[str, Handler] = {
    "error": lambda r: httpx.Response(400, json={"error": r.headers["authorization"]}),
    "code": lambda r: httpx.Response(400, json={"error": "x", "code": CANARY}),
    "details": lambda r: httpx.Response(429, json={"error": "x", "details": CANARY}),
    "text": lambda r: httpx.Response(500, text=f"x {r.headers['authorization']}"),
    "not JSON": lambda r: httpx.Response(200, text=f"<{CANARY}>"),
    "nonsense": lambda r: httpx.Response(200, json={"you sent": CANARY}),
    "header": lambda r: httpx.Response(302, headers={"Location": f"http://x/?{CANARY}"}),
    "connect": raising(httpx.ConnectError(f"no way: {CANARY}")),
    "protocol": raising(httpx.LocalProtocolError(f"Illegal header value b'Bearer {CANARY}'")),
    "read": raising(httpx.ReadTimeout(CANARY)),
    "unforeseen": raising(RuntimeError(f"headers: {CANARY}")),
}


@pytest.mark.parametrize("answer_name", ANSWERS_WITH_THE_KEY)
async def test_the_key_is_in_no_text(answer_name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A server or library may repeat the key: it is in no reason, no repr, no traceback with its
    causes, and no log line down to DEBUG."""
    caplog.set_level(logging.DEBUG)
    found = await failure_of(ANSWERS_WITH_THE_KEY[answer_name])
    shown = [str(found), repr(found), repr(found.args), "".join(traceback.format_exception(found))]
    assert all(CANARY not in text for text in shown), shown
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("error", "says", "outcome"),
    [
        (httpx.ConnectError("All connection attempts failed"), "cannot connect to", "nothing was"),
        (httpx.ConnectTimeout(""), "no answer from", "nothing was sent"),
        (httpx.PoolTimeout(""), "no answer from", "nothing was sent"),
        (httpx.ReadTimeout(""), "no answer from", "may have acted"),
        (httpx.ReadError(""), "broke: ReadError", "may have acted"),
        (httpx.RemoteProtocolError("Server disconnected"), "broke: Server", "may have acted"),
    ],
)
async def test_an_everyday_failure_has_no_library_traceback(
    error: Exception, says: str, outcome: str
) -> None:
    """A server that cannot be reached is reported in one sentence, with its address, the reason and
    the outcome, and without the traceback of the HTTP library."""
    found = await failure_of(raising(error))
    assert (found.verdict, found.scope, found.status) == (Verdict.UNREACHABLE, Scope.SERVER, None)
    assert says in found.reason
    assert outcome in found.reason
    assert URL in found.reason
    assert "httpx" not in "".join(traceback.format_exception(found)).replace(__file__, "")


async def test_an_unforeseen_failure_keeps_its_cause() -> None:
    """An error that is not one of the network's keeps its traceback, so that it can be fixed."""
    bug = RuntimeError("a bug in a caller's transport")
    found = await failure_of(raising(bug))
    assert found.__cause__ is bug


async def test_a_request_ends_at_the_deadline() -> None:
    """The deadline holds for the whole exchange, also where the client's own timeouts do not."""

    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

    client = client_over(lambda _: httpx.Response(200))
    client._client._transport = Hanging()
    with pytest.raises(RemoteError, match=r"no answer from http://127.0.0.1:3000 in 0.01 s"):
        await DakeraHttp(client, 0.01).request("GET", "/health")
    await client.close()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("error", [None, httpx.ConnectError("x"), httpx.ReadTimeout("x")])
async def test_a_caller_s_client_does_not_retry(status: int, error: Exception | None) -> None:
    """A request is one attempt, although the SDK's own methods would retry over this client."""
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.method)
        if error is not None:
            raise error
        return httpx.Response(status, json={"error": "no"}, headers={"Retry-After": "0"})

    client = client_over(handler, max_retries=5)
    remote = DakeraRemote(client, SyncOptions(), owned=False)
    with pytest.raises(RemoteError):
        await remote.forget("cs-x", ["m"])
    await client.close()
    assert seen == ["POST"]


async def test_only_2xx_answers_are_counted() -> None:
    """`answered` counts answers with JSON, so that a step without one does not count as success."""
    answers = [httpx.Response(200, json=[]), httpx.Response(500), httpx.Response(200, text="<")]
    remote = remote_over(lambda _: answers.pop(0))
    for _ in range(3):
        try:
            await remote.list_memories("cs-x", offset=0, limit=10)
        except RemoteError:
            continue
    await remote.aclose()
    assert remote.answered == 1


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (httpx.Response(200, json={}), "no event stream"),
        (httpx.Response(404, json={"error": "x"}), "no event stream"),
        (httpx.Response(302, headers={"Location": "http://thief.example/"}), "no event stream"),
    ],
)
async def test_an_answer_without_an_event_stream_is_an_error(
    response: httpx.Response, says: str
) -> None:
    """A server without a stream, or a redirect to one, is reported and not followed."""
    remote = remote_over(lambda _: response)
    with pytest.raises(RemoteError, match=says):
        await anext(remote.events())
    await remote.aclose()


async def test_a_stream_sends_the_key_in_the_header() -> None:
    """The key is in no URL, where proxies would log it."""
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        stream = b'data: {"type": "connected"}\n\n'
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=stream)

    remote = remote_over(handler)
    assert [event async for event in remote.events()] == [None]
    await remote.aclose()
    assert seen[0].headers["authorization"] == f"Bearer {CANARY}"
    assert CANARY not in str(seen[0].url)


@pytest.mark.parametrize(
    ("date", "second"),
    [("Thu, 01 Jan 1970 00:16:40 GMT", 1000), ("yesterday", 0), (None, 0)],
)
async def test_the_time_of_the_server_is_that_of_its_last_answer(
    date: str | None, second: int
) -> None:
    """It is unknown before the first answer, and after one without a readable date."""
    headers = {} if date is None else {"Date": date}
    remote = remote_over(lambda _: httpx.Response(200, json=[], headers=headers))
    assert remote.server_second == 0
    await remote.list_memories("agent", offset=0, limit=1)
    assert remote.server_second == second
    await remote.aclose()
