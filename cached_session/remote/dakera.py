"""Dakera over HTTP, through its official SDK: every foreign error is mapped here.

The SDK's own retries are off (`RetryConfig(max_retries=1)`): the replicator decides when to send
again, and a claim must never be sent twice. Bodies are encoded and decoded by the fast JSON
library, large ones off the event loop; the SDK's typed models are not used, because they drop
fields that a reader needs and fail on ones it does not.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import anyio
import orjson

from cached_session.errors import InvalidArgument
from cached_session.options import SyncOptions
from cached_session.remote import lifecycle, probe
from cached_session.remote.base import GuardReport
from cached_session.remote.probe import ServerFacts
from cached_session.remote.verdicts import RemoteError, Scope, Verdict, judge

if TYPE_CHECKING:
    from dakera import AsyncDakeraClient

__all__ = ["DakeraRemote", "check_client", "check_url", "connect"]

OFF_LOOP_BYTES = 64 * 1024
"""A body larger than this is decoded in a thread: a few hundred microseconds of work."""


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
    raise InvalidArgument(
        f"url={url!r} is not the address of a server; use the form http://host:port or https://host"
    )


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
        self._client = _without_retries(client)
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
        answer = await self._json("POST", "/v1/memories/store/batch", body)
        stored = answer.get("stored") if isinstance(answer, dict) else None
        if not isinstance(stored, list):
            raise _nonsense("store/batch", answer)
        return {
            entry["id"]
            for entry in stored
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        }

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """See `Remote.fetch`."""
        path = f"/v1/memory/get/{quote(memory, safe='')}"
        try:
            answer = await self._json("GET", path, params={"agent_id": agent})
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return None
            raise
        if not isinstance(answer, dict):
            raise _nonsense("memory/get", answer)
        return answer

    async def page(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """See `Remote.page`."""
        params = {"limit": limit, "offset": offset, "include_derived": "false"}
        try:
            path = f"/v1/agents/{quote(agent, safe=':')}/memories"
            answer = await self._json("GET", path, params=params)
        except RemoteError as error:
            # An agent that never stored: some servers say 404, some an empty list.
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        if not isinstance(answer, list):
            raise _nonsense("agent listing", answer)
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
            raise _nonsense("memory/forget", answer)
        return count

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """See `Remote.recall`."""
        body = orjson.dumps({"agent_id": agent, "query": query, "top_k": limit})
        try:
            answer = await self._json("POST", "/v1/memory/recall", body)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        found = answer.get("memories") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise _nonsense("memory/recall", answer)
        # Enveloped by newer servers, bare on older ones.
        memories = [
            entry.get("memory", entry) if isinstance(entry, dict) else None for entry in found
        ]
        return [memory for memory in memories if isinstance(memory, dict)]

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
        None if there is no such namespace yet. Nothing is changed there.

        Raises:
            RemoteError: the server could not be asked.
        """
        return await lifecycle.kept(self._json, agent)

    async def _json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """One attempt; the decoded body of a 2xx answer.

        Raises:
            RemoteError: anything else.
        """
        answer, _ = await self._exchange(method, path, body, params)
        return answer

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
    ) -> tuple[Any, Mapping[str, str]]:
        """The decoded body of a 2xx answer, and its headers; see `_json`."""
        try:
            # A deadline for the whole exchange: the client's own timeouts run between bytes.
            with anyio.fail_after(self._deadline):
                response = await self._client._request(
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
        except Exception as error:
            raise self._mapped(error) from error
        data: bytes = response.content
        try:
            large = len(data) > OFF_LOOP_BYTES
            answer = await asyncio.to_thread(_decode, data) if large else _decode(data)
            self._answered += 1
            return answer, response.headers
        except (ValueError, RecursionError) as error:
            raise RemoteError(
                Verdict.UNREACHABLE,
                f"{self.server} answered {path} with something that is not JSON "
                f"({data[:60]!r}); is this a Dakera server?",
                status=response.status_code,
            ) from error

    def _mapped(self, error: Exception) -> RemoteError:
        """The verdict on an exception of the SDK, or of what lies under it."""
        status = getattr(error, "status_code", None)
        status = status if isinstance(status, int) else None
        code = getattr(getattr(error, "code", None), "value", None)
        body = getattr(error, "response_body", None)
        if status == 404 and not (isinstance(body, dict) and "error" in body):
            # Not how Dakera speaks: something in front of it, or in its place. Taken for an answer
            # it would say that everything is gone.
            code = "ROUTE_NOT_FOUND"
        verdict, scope = judge(status, code)
        after = getattr(error, "retry_after", None)
        said = str(error) or type(error).__name__
        return RemoteError(
            verdict,
            f"{self.server}: {said[:300]}",
            scope=scope,
            retry_after=float(after) if isinstance(after, (int, float)) else None,
            status=status,
        )


def _decode(data: bytes) -> Any:
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Lone surrogates in somebody else's memory must not hide ours.
        return json.loads(data)


def _nonsense(what: str, answer: object) -> RemoteError:
    return RemoteError(
        Verdict.UNREACHABLE,
        f"the server's answer to {what} makes no sense: {answer!r:.120}",
        scope=Scope.SERVER,
    )


def _without_retries(client: AsyncDakeraClient) -> AsyncDakeraClient:
    """The same client and connections, one attempt a request."""
    from dakera.models import RetryConfig

    single = copy.copy(client)
    single._retry_config = RetryConfig(max_retries=1)
    return single
