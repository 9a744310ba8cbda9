"""The `Remote` of a Dakera server: the HTTP request of each call, and decoding of the answers.

This module does not use the SDK's typed answers: they drop fields that a reader needs, and fail on
an answer of another form. `wire.py` reads the fields of a memory; `http.py` sends requests.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from cached_session.options import SyncOptions
from cached_session.remote import probe, retention
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.http import DakeraHttp
from cached_session.remote.probe import ServerFacts
from cached_session.remote.protocol import GuardReport
from cached_session.remote.sdk import make_client
from cached_session.remote.sse import EventParser
from cached_session.remote.wire import ITEM_TAGS, EncodedMemory

if TYPE_CHECKING:
    from dakera import AsyncDakeraClient

__all__ = ["DakeraRemote", "connect"]

MOST_LISTED = 1000
"""Maximum number of memories in one answer. The server never returns more than 1000 memories."""
MOST_TAGGED = 100
"""Maximum number of memories with one tag to request: the claim notes on one item."""
SILENCE = 90.0
"""Seconds without a byte, not even a keep-alive, after which an event stream counts as broken."""
STORE = "/v1/memories/store/batch"
FORGET = "/v1/memory/forget"
RECALL = "/v1/memory/recall"
RECALL_BATCH = "/v1/memories/recall/batch"
EVENTS = "/v1/events/stream"

_ABSENT = object()


def connect(url: str, api_key: str | None, options: SyncOptions) -> DakeraRemote:
    """Make a remote that owns its client, for use on the running event loop."""
    return DakeraRemote(make_client(url, api_key, options), options, owned=True)


class DakeraRemote:
    """A Dakera server that is accessed through one SDK client."""

    def __init__(self, client: AsyncDakeraClient, options: SyncOptions, *, owned: bool) -> None:
        """Use ``client``, and close it in `aclose` if it is ``owned``."""
        self._owned_client = client if owned else None
        self._http = DakeraHttp(client, options.request_timeout)
        self._created_agents: set[str] = set()

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

    @property
    def server_second(self) -> int:
        """See `Remote.server_second`."""
        return self._http.server_second

    async def aclose(self) -> None:
        """Close the client if it is owned. The caller closes an injected client."""
        if self._owned_client is not None:
            await self._owned_client.close()

    async def store(self, agent: str, memories: Sequence[EncodedMemory]) -> set[str]:
        """See `Remote.store`."""
        # Join the encoded memories: encoding them again for each request would cost time.
        entries = b",".join([memory.data for memory in memories])
        body = b'{"agent_id":%b,"memories":[%b]}' % (orjson.dumps(agent), entries)
        answer = await self._http.json("POST", STORE, body, memories=len(memories))
        stored = answer.get("stored") if isinstance(answer, dict) else None
        if not isinstance(stored, list):
            raise self._http.unexpected(STORE, answer)
        return {
            entry["id"]
            for entry in stored
            if isinstance(entry, dict) and isinstance(entry.get("id"), str)
        }

    async def fetch(self, agent: str, memory: str) -> dict[str, Any] | None:
        """See `Remote.fetch`."""
        path = f"/v1/memory/get/{quote(memory, safe='')}"
        answer = await self._ask("GET", path, params={"agent_id": agent}, memories=1)
        if answer is _ABSENT:
            return None
        if not isinstance(answer, dict):
            raise self._http.unexpected("/v1/memory/get", answer)
        return answer

    async def list_memories(self, agent: str, *, offset: int, limit: int) -> list[dict[str, Any]]:
        """See `Remote.list_memories`."""
        path = f"/v1/agents/{quote(agent, safe=':')}/memories"
        params = {"limit": limit, "offset": offset, "include_derived": "false"}
        answer = await self._ask("GET", path, params=params, memories=limit)
        # For an agent without memories, some servers answer 404 and some an empty list.
        if answer is _ABSENT:
            return []
        if not isinstance(answer, list) or len(answer) > MOST_LISTED:
            raise self._http.unexpected(path, answer)
        return [memory for memory in answer if isinstance(memory, dict)]

    async def forget(self, agent: str, memories: Sequence[str]) -> int:
        """See `Remote.forget`."""
        body = orjson.dumps({"agent_id": agent, "memory_ids": list(memories)})
        answer = await self._ask("POST", FORGET, body)
        if answer is _ABSENT:
            return 0
        count = answer.get("deleted_count") if isinstance(answer, dict) else None
        if type(count) is not int:
            raise self._http.unexpected(FORGET, answer)
        return count

    async def find_by_tag(self, agent: str, tag: str) -> list[dict[str, Any]]:
        """See `Remote.find_by_tag`."""
        from dakera import BatchMemoryFilter, BatchRecallRequest

        asked = BatchRecallRequest(agent, BatchMemoryFilter(tags=[tag]), limit=MOST_TAGGED)
        body = orjson.dumps(asked.to_dict())
        answer = await self._ask("POST", RECALL_BATCH, body, memories=MOST_TAGGED)
        if answer is _ABSENT:
            return []
        found = answer.get("memories") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise self._http.unexpected(RECALL_BATCH, answer)
        return [memory for memory in found if isinstance(memory, dict)]

    async def recall(self, agent: str, query: str, limit: int) -> list[dict[str, Any]]:
        """See `Remote.recall`."""
        # This route returns memories with any of the tags. ``neighborhood`` would add memories that
        # were stored next to a match.
        asked = {"agent_id": agent, "query": query, "top_k": min(limit, MOST_LISTED)}
        body = orjson.dumps({**asked, "tags": ITEM_TAGS, "neighborhood": False})
        answer = await self._ask("POST", RECALL, body, memories=limit)
        if answer is _ABSENT:
            return []
        # The form depends on the server's version: an object with a list, or only the list. Each
        # element is a memory, or an object with a memory.
        found = answer.get("memories") if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            raise self._http.unexpected(RECALL, answer)
        memories = [
            entry.get("memory", entry) if isinstance(entry, dict) else None for entry in found
        ]
        return [memory for memory in memories if isinstance(memory, dict)]

    async def events(self) -> AsyncGenerator[tuple[str, str] | None]:
        """See `EventSource.events`. The key is sent in the header, never in the URL."""
        parser = EventParser()
        async with aclosing(self._http.stream(EVENTS, SILENCE)) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk):
                    yield event

    async def guard(self, agent: str) -> GuardReport:
        """See `Remote.guard`."""
        return await retention.guard(self._http.json, agent, self._created_agents)

    async def probe(self) -> ServerFacts:
        """Return the server's version, capabilities, key scope and clock; change nothing.

        Raises:
            RemoteError: the server does not answer, or refuses the key.
        """
        return await probe.probe(self._http.request)

    async def policy_problem(self, agent: str) -> str | None:
        """Return why the server may delete an agent's memories, without changing anything.

        Returns:
            An empty string if the policy of the namespace protects the memories; None if the
            namespace is empty.

        Raises:
            RemoteError: the request failed.
        """
        # For a namespace that does not exist, a server answers with its default policy.
        if not await self.list_memories(agent, offset=0, limit=1):
            return None
        return await retention.policy_problem(self._http.json, agent)

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> Any:
        """Return the decoded answer; `_ABSENT` if the requested agent or memory does not exist."""
        try:
            return await self._http.json(method, path, body, params, memories=memories)
        except RemoteError as error:
            if error.verdict is Verdict.ABSENT:
                return _ABSENT
            raise
