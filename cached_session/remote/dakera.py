"""Dakera over HTTP, through its official SDK: which request each question is.

The SDK's own retries are off (`RetryConfig(max_retries=1)`): the replicator decides when to send
again, and a claim must never be sent twice. The SDK's typed models are not used, because they drop
fields that a reader needs and fail on ones it does not. How a request goes and what its failure
means is in `exchange.py`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from cached_session.errors import InvalidArgument
from cached_session.options import SyncOptions
from cached_session.remote import probe, retention, wire
from cached_session.remote.address import check_url
from cached_session.remote.errors import RemoteError, Verdict, judge
from cached_session.remote.http import Exchange
from cached_session.remote.probe import ServerFacts
from cached_session.remote.protocol import GuardReport
from cached_session.remote.sse import Events
from cached_session.remote.wire import EncodedMemory

if TYPE_CHECKING:
    from dakera import AsyncDakeraClient

__all__ = ["DakeraRemote", "check_client", "connect"]

MOST_LISTED = 1000
"""Rows of one page; the server gives at most 1000, whatever it is asked for."""
SILENCE = 90.0
"""Seconds without a byte, not even a keep-alive, after which an event stream counts as dead."""


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

    from cached_session.remote.dns import look_up_aside

    client = AsyncDakeraClient(
        url,
        api_key=api_key,
        timeout=options.request_timeout,
        connect_timeout=options.connect_timeout,
        max_retries=1,
    )
    look_up_aside(client._client)
    return DakeraRemote(client, options, owned=True)


class DakeraRemote:
    """A Dakera server behind one SDK client."""

    def __init__(self, client: AsyncDakeraClient, options: SyncOptions, *, owned: bool) -> None:
        self._owner = client if owned else None
        self._client = client
        self._http = Exchange(client, options.request_timeout)
        self._made: set[str] = set()

    def __repr__(self) -> str:
        return f"DakeraRemote({self.server!r})"

    @property
    def server(self) -> str:
        """The base URL."""
        return self._http.server

    @property
    def answered(self) -> int:
        """See `Remote.answered`."""
        return self._http.answered

    async def aclose(self) -> None:
        """Close the client if it is our own; an injected one is its caller's."""
        if self._owner is not None:
            await self._owner.close()

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        """See `Remote.store`."""
        entries = b",".join([memory.data for memory in memories])
        body = b'{"agent_id":%b,"memories":[%b]}' % (orjson.dumps(agent), entries)
        answer = await self._http.json(
            "POST", "/v1/memories/store/batch", body, memories=len(memories)
        )
        stored = answer.get("stored") if isinstance(answer, dict) else None
        if not isinstance(stored, list):
            raise self._http.nonsense("store/batch", answer)
        return {
            entry["id"]
            for entry in stored
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        }

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """See `Remote.fetch`."""
        path = f"/v1/memory/get/{quote(memory, safe='')}"
        try:
            answer = await self._http.json("GET", path, params={"agent_id": agent}, memories=1)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return None
            raise
        if not isinstance(answer, dict):
            raise self._http.nonsense("memory/get", answer)
        return answer

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """See `Remote.list_memories`."""
        params = {"limit": limit, "offset": offset, "include_derived": "false"}
        try:
            path = f"/v1/agents/{quote(agent, safe=':')}/memories"
            answer = await self._http.json("GET", path, params=params, memories=limit)
        except RemoteError as error:
            # An agent that never stored: some servers say 404, some an empty list.
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        if not isinstance(answer, list) or len(answer) > MOST_LISTED:
            raise self._http.nonsense("agent listing", answer)
        return [memory for memory in answer if isinstance(memory, dict)]

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        """See `Remote.forget`."""
        body = orjson.dumps({"agent_id": agent, "memory_ids": list(memories)})
        try:
            answer = await self._http.json("POST", "/v1/memory/forget", body)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return 0
            raise
        count = answer.get("deleted_count") if isinstance(answer, dict) else None
        if type(count) is not int:
            raise self._http.nonsense("memory/forget", answer)
        return count

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        """See `Remote.find_by_tag`."""
        body = orjson.dumps({"agent_id": agent, "filter": {"tags": [tag]}, "limit": 100})
        try:
            answer = await self._http.json("POST", "/v1/memories/recall/batch", body, memories=100)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        found = answer.get("memories") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise self._http.nonsense("recall/batch", answer)
        return [memory for memory in found if isinstance(memory, dict)]

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """See `Remote.recall`."""
        # Any of the tags is enough here. Neighbours of what was found are not what was asked for.
        asked = {"agent_id": agent, "query": query, "top_k": min(limit, MOST_LISTED)}
        body = orjson.dumps({**asked, "tags": wire.ITEM_TAGS, "neighborhood": False})
        try:
            answer = await self._http.json("POST", "/v1/memory/recall", body, memories=limit)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return []
            raise
        # In an envelope each, flat, or a bare list of them: as old as the server is.
        found = answer.get("memories") if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            raise self._http.nonsense("memory/recall", answer)
        memories = [
            entry.get("memory", entry) if isinstance(entry, dict) else None for entry in found
        ]
        return [memory for memory in memories if isinstance(memory, dict)]

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        """See `EventSource.events`. The key travels in the header, never in the URL."""
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
            raise self._http.mapped(error) from error

    async def guard(self, agent: str) -> GuardReport:
        """See `Remote.guard`."""
        return await retention.guard(self._http.json, agent, self._made)

    async def probe(self) -> ServerFacts:
        """Who answers, and what it says of itself and of the key; nothing is changed there.

        Raises:
            RemoteError: nobody answers, or the key is refused.
        """
        return await probe.probe(self._http.full)

    async def policy_problem(self, agent: str) -> str | None:
        """Why an agent's namespace may not keep what it is given; empty if its policy protects it,
        None if nothing is in that namespace yet. Nothing is changed there.

        Raises:
            RemoteError: the server could not be asked.
        """
        # Asked for the policy of a namespace that is not there, a server answers with its defaults.
        if not await self.list_memories(agent, offset=0, limit=1):
            return None
        return await retention.policy_problem(self._http.json, agent)
