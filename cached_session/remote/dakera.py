"""Dakera over HTTP, through its official SDK: every foreign error is mapped here.

The SDK's own retries are off (`RetryConfig(max_retries=1)`): the replicator decides when to send
again, and a claim must never be sent twice. Bodies are encoded and decoded by the fast JSON
library, large ones off the event loop; the SDK's typed models are not used, because they drop
fields that a reader needs and fail on ones it does not. Answers are bounded by what was asked for
(`answers.py`), and no text that leaves this module has the key in it.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import ipaddress
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import anyio
import orjson

from cached_session.errors import InvalidArgument
from cached_session.options import SyncOptions
from cached_session.remote import lifecycle, probe
from cached_session.remote.answers import Bounded, TooLarge, retry_after
from cached_session.remote.base import GuardReport
from cached_session.remote.events import Events
from cached_session.remote.probe import ServerFacts
from cached_session.remote.verdicts import RemoteError, Verdict, judge

if TYPE_CHECKING:
    from dakera import AsyncDakeraClient

__all__ = ["DakeraRemote", "check_client", "check_url", "connect", "is_private"]

OFF_LOOP_BYTES = 64 * 1024
"""A body larger than this is decoded in a thread: a few hundred microseconds of work."""
MOST_BYTES = 1024 * 1024
"""Of an answer to a request that names no memories: a policy, an error."""
MEMORY_BYTES = 128 * 1024
"""More for each memory that was asked for: 100,000 bytes of content are the server's own limit, and
our metadata takes less than 28 KiB."""
MOST_LISTED = 1000
"""Rows of one page; the server gives at most 1000, whatever it is asked for."""
SILENCE = 90.0
"""Seconds without a byte, not even a keep-alive, after which an event stream counts as dead."""
SECRET_LENGTH = 4
"""A shorter key is no secret, and would be found in any text."""
SAID_CHARACTERS = 300
"""Of a server's words in a reason."""


def check_url(url: object) -> str:
    """The base URL in one spelling: acknowledgements refer to it.

    Raises:
        InvalidArgument: it is no http or https URL of a host with at most a path.
    """
    text = url.strip() if isinstance(url, str) else ""
    # The parser drops some of these, and no host or path holds any.
    if text and all(sign.isprintable() and not sign.isspace() for sign in text):
        try:
            parts = urlsplit(text)
            port = parts.port  # one that is no number raises
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.username is not None or parts.password is not None:
            raise InvalidArgument(
                "url has a user name or password in it, which would be shown wherever the server "
                "is named; pass the key as api_key"
            )
        host = parts.hostname
        plain = bool(host) and port != 0 and not parts.query and not parts.fragment
        if parts.scheme in ("http", "https") and host and plain:
            shown = f"[{host}]" if ":" in host else host
            usual = port is None or port == {"http": 80, "https": 443}[parts.scheme]
            return f"{parts.scheme}://{shown}{'' if usual else f':{port}'}{parts.path.rstrip('/')}"
    # A key is sometimes put into the query: that part is not shown.
    told = url.partition("?")[0] if isinstance(url, str) else url
    raise InvalidArgument(
        f"url={told!r} is not the address of a server; use the form http://host:port or "
        "https://host, without a query"
    )


def is_private(server: str) -> bool:
    """Whether nobody between here and the server can read along: https, or this very machine."""
    parts = urlsplit(server)
    host = parts.hostname or ""
    if parts.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_client(client: Any) -> str:
    """The base URL of an injected client.

    Raises:
        InvalidArgument: it is not an ``AsyncDakeraClient``.
    """
    request = getattr(client, "_request", None)
    if not inspect.iscoroutinefunction(request) or not hasattr(client, "base_url"):
        raise InvalidArgument(
            f"client={client!r} is not an AsyncDakeraClient; pass dakera.AsyncDakeraClient(url), "
            "or use from_url"
        )
    return check_url(client.base_url)


def connect(url: str, api_key: str | None, options: SyncOptions) -> DakeraRemote:
    """A remote with a client of its own, for use on the running event loop."""
    # Imported here: the SDK takes longer to import than all the rest, and offline use needs none.
    from dakera import AsyncDakeraClient

    client = AsyncDakeraClient(
        url,
        api_key=api_key,
        timeout=options.request_timeout,
        connect_timeout=options.connect_timeout,
        max_retries=1,
    )
    return DakeraRemote(client, options, owned=True)


class DakeraRemote:
    """A Dakera server behind one SDK client."""

    def __init__(self, client: AsyncDakeraClient, options: SyncOptions, *, owned: bool) -> None:
        self._owner = client if owned else None
        self._client = client
        self._deadline = options.request_timeout
        self._answered = 0

    def __repr__(self) -> str:
        return f"DakeraRemote({self.server!r})"

    @property
    def server(self) -> str:
        """The base URL."""
        return check_url(self._client.base_url)

    @property
    def answered(self) -> int:
        """See `Remote.answered`."""
        return self._answered

    async def aclose(self) -> None:
        """Close the client if it is our own; an injected one is its caller's."""
        if self._owner is not None:
            await self._owner.close()

    async def store(self, agent: str, memories: Sequence[Mapping[str, Any]]) -> set[str]:
        """See `Remote.store`."""
        body = orjson.dumps({"agent_id": agent, "memories": list(memories)})
        answer = await self._json("POST", "/v1/memories/store/batch", body, memories=len(memories))
        stored = answer.get("stored") if isinstance(answer, dict) else None
        if not isinstance(stored, list):
            raise self._nonsense("store/batch", answer)
        return {
            entry["id"]
            for entry in stored
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        }

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """See `Remote.fetch`."""
        path = f"/v1/memory/get/{quote(memory, safe='')}"
        try:
            answer = await self._json("GET", path, params={"agent_id": agent}, memories=1)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return None
            raise
        if not isinstance(answer, dict):
            raise self._nonsense("memory/get", answer)
        return answer

    async def page(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """See `Remote.page`."""
        params = {"limit": limit, "offset": offset, "include_derived": "false"}
        try:
            path = f"/v1/agents/{quote(agent, safe=':')}/memories"
            answer = await self._json("GET", path, params=params, memories=limit)
        except RemoteError as error:
            # An agent that never stored: some servers say 404, some an empty list.
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        if not isinstance(answer, list) or len(answer) > MOST_LISTED:
            raise self._nonsense("agent listing", answer)
        return [memory for memory in answer if isinstance(memory, dict)]

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        """See `Remote.forget`."""
        body = orjson.dumps({"agent_id": agent, "memory_ids": list(memories)})
        try:
            answer = await self._json("POST", "/v1/memory/forget", body)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return 0
            raise
        count = answer.get("deleted_count") if isinstance(answer, dict) else None
        if type(count) is not int:
            raise self._nonsense("memory/forget", answer)
        return count

    async def tagged(self, agent: str, tag: str) -> list[dict[str, Any]]:
        """See `Remote.tagged`."""
        body = orjson.dumps({"agent_id": agent, "filter": {"tags": [tag]}, "limit": 100})
        try:
            answer = await self._json("POST", "/v1/memories/recall/batch", body, memories=100)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        found = answer.get("memories") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise self._nonsense("recall/batch", answer)
        return [memory for memory in found if isinstance(memory, dict)]

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """See `Remote.recall`."""
        body = orjson.dumps({"agent_id": agent, "query": query, "top_k": limit})
        try:
            answer = await self._json("POST", "/v1/memory/recall", body, memories=limit)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        found = answer.get("memories") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise self._nonsense("memory/recall", answer)
        # Enveloped by newer servers, bare on older ones.
        memories = [
            entry.get("memory", entry) if isinstance(entry, dict) else None for entry in found
        ]
        return [memory for memory in memories if isinstance(memory, dict)]

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        """See `Listenable.events`. The key travels in the header, never in the URL."""
        import httpx

        client = getattr(self._client, "_client", None)
        if not isinstance(client, httpx.AsyncClient):
            raise RemoteError(Verdict.DENIED, "this client cannot hold a stream open", status=501)
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(SILENCE, connect=self._client.connect_timeout)
        url = f"{self.server}/v1/events/stream"
        try:
            async with client.stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=False
            ) as response:
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    status = response.status_code if response.status_code != 200 else 501
                    verdict, scope = judge(status)
                    reason = f"{self.server} has no event stream for us (status {status})"
                    raise RemoteError(verdict, reason, scope=scope, status=status)
                events = Events()
                async for chunk in response.aiter_bytes():
                    for event in events.feed(chunk):
                        yield event
        except (RemoteError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            raise self._mapped(error) from error

    async def guard(self, agent: str) -> GuardReport:
        """See `Remote.guard`."""
        return await lifecycle.guard(self._json, agent)

    async def probe(self) -> ServerFacts:
        """Who answers, and what it says of itself and of the key; nothing is changed there.

        Raises:
            RemoteError: nobody answers, or the key is refused.
        """
        return await probe.probe(self._exchange)

    async def kept(self, agent: str) -> str | None:
        """Why an agent's namespace may not keep what it is given; empty if its policy protects it,
        None if nothing is in that namespace yet. Nothing is changed there.

        Raises:
            RemoteError: the server could not be asked.
        """
        # Asked for the policy of a namespace that is not there, a server answers with its defaults.
        if not await self.page(agent, offset=0, limit=1):
            return None
        return await lifecycle.kept(self._json, agent)

    async def _json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> Any:
        """One attempt; the decoded body of a 2xx answer. ``memories``: how many it may be about.

        Raises:
            RemoteError: anything else.
        """
        answer, _ = await self._exchange(method, path, body, params, memories=memories)
        return answer

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> tuple[Any, Mapping[str, str]]:
        """The decoded body of a 2xx answer, and its headers; see `_json`."""
        try:
            # A deadline for the whole exchange: the client's own timeouts run between bytes.
            with anyio.fail_after(self._deadline):
                response = await _once(self._client, MOST_BYTES + memories * MEMORY_BYTES)._request(
                    method,
                    path,
                    params=params,
                    content=body,
                    headers={"Content-Type": "application/json"},
                    raw=True,
                )
        except TimeoutError as error:
            raise RemoteError(
                Verdict.UNREACHABLE, f"no answer from {self.server} in {self._deadline:g} s"
            ) from error
        except asyncio.CancelledError:
            raise
        except TooLarge as error:
            raise RemoteError(
                Verdict.UNREACHABLE, f"the answer of {self.server} to {path} is too long: {error}"
            ) from error
        except Exception as error:  # noqa: BLE001 - raised as ours; the cause goes if it tells the key
            raise self._mapped(error) from self._tellable(error)
        data: bytes = response.content
        if not 200 <= response.status_code < 300:
            try:
                told = _decode(data)
            except (ValueError, RecursionError):
                told = data[:SAID_CHARACTERS].decode(errors="replace")
            asked = retry_after(response.headers, time.time())
            raise self._refused(response.status_code, told, asked)
        try:
            large = len(data) > OFF_LOOP_BYTES
            answer = await asyncio.to_thread(_decode, data) if large else _decode(data)
            self._answered += 1
            return answer, response.headers
        except (ValueError, RecursionError) as error:
            said = self._shown(f"{data[:60]!r}")
            raise RemoteError(
                Verdict.UNREACHABLE,
                f"{self.server} answered {path} with something that is not JSON "
                f"({said}); is this a Dakera server?",
                status=response.status_code,
            ) from error

    def _refused(self, status: int, told: object, asked: float | None) -> RemoteError:
        """The verdict on an answer that is no yes."""
        said, code = told, None
        if isinstance(told, dict):
            code = told.get("code")
            details = told.get("details")
            said = f"{told.get('error')}{f' ({details})' if details else ''}"
        if status == 404 and not (isinstance(told, dict) and "error" in told):
            # Not how Dakera speaks: something in front of it, or in its place. Taken for an answer
            # it would say that everything is gone.
            code = "ROUTE_NOT_FOUND"
        code = code if isinstance(code, str) else None
        verdict, scope = judge(status, code)
        head = f"[{status}] {code[:60]}" if code else f"[{status}]"
        words = self._shown(f"{head}: {said or 'no reason given'}")
        return RemoteError(
            verdict,
            f"{self.server}: {words}",
            scope=scope,
            retry_after=asked,
            status=status,
        )

    def _mapped(self, error: Exception) -> RemoteError:
        """The verdict on an exception of the SDK, or of what lies under it."""
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            # A client that judges answers itself.
            after = getattr(error, "retry_after", None)
            asked = float(after) if isinstance(after, (int, float)) else None
            return self._refused(status, getattr(error, "response_body", None), asked)
        verdict, scope = judge(None)
        said = self._shown(str(error) or type(error).__name__)
        return RemoteError(verdict, f"{self.server}: {said}", scope=scope)

    def _nonsense(self, what: str, answer: object) -> RemoteError:
        said = self._shown(f"{answer!r:.120}")
        return RemoteError(
            Verdict.UNREACHABLE, f"the server's answer to {what} makes no sense: {said}"
        )

    def _shown(self, text: str) -> str:
        """A foreign text as it may be told: short, and without the key, should it be in there."""
        for secret in _secrets(self._client):
            text = text.replace(secret, "(the key)")
        return text[:SAID_CHARACTERS]

    def _tellable(self, error: BaseException) -> BaseException | None:
        """An exception as the cause of ours: not if its own text, or its causes', has the key."""
        link: BaseException | None = error
        while link is not None:
            told = f"{link} {link.args!r}"
            if any(secret in told for secret in _secrets(self._client)):
                return None
            link = link.__cause__ or link.__context__
        return error


def _decode(data: bytes) -> Any:
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Lone surrogates in somebody else's memory must not hide ours.
        return json.loads(data)


def _once(client: AsyncDakeraClient, most: int) -> AsyncDakeraClient:
    """The same client and connections for one attempt whose answer has at most so many bytes, and
    is handed over as it is: status, headers and body."""
    import httpx
    from dakera.models import RetryConfig

    single = copy.copy(client)
    single._retry_config = RetryConfig(max_retries=1)
    if isinstance(getattr(client, "_client", None), httpx.AsyncClient):
        single._client = Bounded(client._client, most)  # type: ignore[assignment]
        single._handle_response = _as_it_is  # type: ignore[method-assign]
    return single


def _as_it_is(response: Any, raw: bool = False) -> Any:  # noqa: ARG001 - the SDK's signature
    return response


def _secrets(client: AsyncDakeraClient) -> list[str]:
    """What must not be told: the key, as the client knows it and as it sends it."""
    found = [getattr(client, "api_key", None)]
    headers = getattr(getattr(client, "_client", None), "headers", {})
    sent = headers.get("authorization", "")
    found += [sent, sent.removeprefix("Bearer ")]
    return [secret for secret in found if isinstance(secret, str) and len(secret) >= SECRET_LENGTH]
