from __future__ import annotations

import email.utils
import gzip
import json
import logging
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from dakera import AsyncDakeraClient

from cached_session.options import SyncOptions
from cached_session.remote.address import is_private
from cached_session.remote.answers import retry_after
from cached_session.remote.connect import RemoteSpec
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.http import MEMORY_BYTES, MOST_BYTES

CANARY = "canary-5e884898da28047151d0"
NOW = 1_700_000_000.0


def remote_that(
    answer: Callable[[httpx.Request], httpx.Response], key: str | None = CANARY
) -> DakeraRemote:
    """A remote over the real SDK, whose connections are replaced by a function."""
    client = AsyncDakeraClient("http://127.0.0.1:3000", api_key=key)
    client._client = httpx.AsyncClient(
        headers=client._client.headers, transport=httpx.MockTransport(answer)
    )
    return DakeraRemote(client, SyncOptions(), owned=True)


async def failure_of(
    answer: Callable[[httpx.Request], httpx.Response], *, storing: bool = False
) -> RemoteError:
    remote = remote_that(answer)
    try:
        with pytest.raises(RemoteError) as caught:
            # To a listing an absence is an empty page, to a store it is none.
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
    """Through the real client, each status and code of the wire reference gets its verdict, with
    the server's words and the pause that it asks for, whatever the status."""
    body = {"error": "no", "code": code, "details": "why"}
    found = await failure_of(
        lambda _: httpx.Response(status, json=body, headers={"Retry-After": "7"}), storing=True
    )
    assert (found.verdict, found.scope, found.status) == (verdict, scope, status)
    assert found.retry_after == 7.0
    assert f"[{status}] {code}: no (why)" in found.reason


async def test_an_answer_of_a_proxy_is_no_answer_of_the_server() -> None:
    """A 404 in HTML says that the address is wrong, not that everything is gone."""
    found = await failure_of(lambda _: httpx.Response(404, html="<h1>Not found</h1>"))
    assert (found.verdict, found.scope) == (Verdict.DENIED, Scope.SERVER)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("Wed, 99 Foo 2999 25:61:61 GMT", None),
    ],
)
def test_a_pause_is_read_in_seconds_or_as_a_date(said: str, seconds: float | None) -> None:
    """``Retry-After`` is understood in both of its forms, and nonsense asks for nothing."""
    assert retry_after({"retry-after": said}, NOW) == seconds


@pytest.mark.parametrize("skew", [-86_400, 0, 86_400])
def test_a_date_is_compared_with_the_server_s_clock(skew: int) -> None:
    """A device whose clock is a day off waits as long as was meant."""
    headers = {
        "retry-after": email.utils.formatdate(NOW + 30, usegmt=True),
        "date": email.utils.formatdate(NOW, usegmt=True),
    }
    assert retry_after(headers, NOW + skew) == 30.0


class Endless(httpx.AsyncByteStream):
    """A body without end, of pieces; it counts what was taken."""

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
    """Of an answer, also of an error, not more is read than what was asked for can take."""
    body = Endless(b"x" * 65_536)
    found = await failure_of(lambda _: httpx.Response(status, stream=body))
    assert found.verdict is Verdict.UNREACHABLE
    assert "too long" in found.reason
    assert body.taken <= LIMIT + 65_536


async def test_a_length_that_is_too_much_is_not_even_read() -> None:
    """An answer that announces more than it may have is left where it is."""
    body = Endless(b"x")
    headers = {"Content-Length": str(LIMIT + 1)}
    found = await failure_of(lambda _: httpx.Response(200, headers=headers, stream=body))
    assert "too long" in found.reason
    assert body.taken == 0


@pytest.mark.parametrize("packing", ["gzip", "br", "deflate", "zstd", "gzip, gzip"])
async def test_a_packed_bomb_is_cut_off_while_it_is_unpacked(packing: str) -> None:
    """A gigabyte in a megabyte is unpacked up to the limit; other packings nobody asked for."""
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
    remote = remote_that(
        lambda _: httpx.Response(
            200, headers={"Content-Encoding": "gzip"}, stream=httpx.ByteStream(packed)
        )
    )
    assert await remote.list_memories("cs-x", offset=0, limit=10) == [{"id": "a"}]
    await remote.aclose()


async def test_a_page_of_more_rows_than_any_server_gives_is_nonsense() -> None:
    """A listing that ignores its limit by more than the server's own maximum is not taken."""
    found = await failure_of(lambda _: httpx.Response(200, json=[{}] * 1001))
    assert "makes no sense" in found.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    """The key goes to no other host than the one it was given for, also with a client that
    follows redirects."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(status, headers={"Location": "http://thief.example/"})

    remote = remote_that(answer)
    remote._client._client.follow_redirects = True
    with pytest.raises(RemoteError) as caught:
        await remote.list_memories("cs-x", offset=0, limit=10)
    await remote.aclose()
    assert caught.value.verdict is Verdict.DENIED
    assert seen == ["127.0.0.1"]


def raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return answer


TELLTALES: dict[str, Callable[[httpx.Request], httpx.Response]] = {
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


@pytest.mark.parametrize("telltale", TELLTALES)
async def test_the_key_is_told_to_nobody(telltale: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a server or a library puts into an answer or an error, the key is in no reason, no
    repr, no traceback with its causes, and no log line down to DEBUG."""
    caplog.set_level(logging.DEBUG)
    found = await failure_of(TELLTALES[telltale])
    told = [str(found), repr(found), repr(found.args), "".join(traceback.format_exception(found))]
    assert all(CANARY not in text for text in told), told
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://memory.example", True),
        ("http://localhost:3000", True),
        ("http://dev.localhost", True),
        ("http://127.0.0.1:3000", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:3000", True),
        ("http://192.168.0.7:3000", False),
        ("http://memory.example", False),
        ("http://localhost.example", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_only_this_machine_is_private_without_tls(url: str, private: bool) -> None:
    """Plain HTTP is private to the loopback device and nowhere else."""
    assert is_private(url) is private


def test_a_key_over_plain_http_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    """The first use of a key over plain HTTP to another host warns; the next ones, other keys and
    keyless uses do not, and no warning tells the key."""
    url = "http://once.memory.example"
    RemoteSpec.make(url, None, None)
    assert not recwarn.list
    for _ in range(2):
        RemoteSpec.make(url, CANARY, None)
    (warning,) = recwarn.list
    assert "unencrypted" in str(warning.message)
    assert CANARY not in str(warning.message)


def test_a_key_in_the_query_of_an_address_is_not_shown() -> None:
    """An address with a query is refused, and the query is not repeated."""
    with pytest.raises(ValueError, match="without a query") as caught:
        RemoteSpec.make(f"http://127.0.0.1/?api_key={CANARY}", None, None)
    assert CANARY not in str(caught.value)


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
    """Enveloped, flat, or a bare list, as old as the server is; what is no memory is left out. It
    asks for items, any of whose tags is enough, and for no neighbours of them."""
    asked: list[Any] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json=answer)

    remote = remote_that(reply)
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
async def test_recall_takes_nonsense_for_no_answer(answer: Any) -> None:
    """What is no list of memories is reported, and never an empty result."""
    remote = remote_that(lambda _: httpx.Response(200, json=answer))
    try:
        with pytest.raises(RemoteError):
            await remote.recall("cs-x", "words", 5)
    finally:
        await remote.aclose()
