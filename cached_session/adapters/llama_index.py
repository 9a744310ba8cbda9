"""A chat store for LlamaIndex, stored in a `SessionCache`: each key is a session id.

store = CachedChatStore(cache)
memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="user-1")
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from cached_session.adapters.bridge import Bridge, shared_bridge
from cached_session.adapters.item_format import (
    ItemFormat,
    Role,
    explain_missing,
    format_call,
    join_texts,
)
from cached_session.cache import KeptTurns, SessionCache
from cached_session.models import Entry
from cached_session.session import CachedSession

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.llms import ChatMessage
    from llama_index.core.storage.chat_store.base import BaseChatStore
except ModuleNotFoundError as error:
    raise explain_missing(error, "llama_index", "llama-index") from error

__all__ = ["CachedChatStore"]

T = TypeVar("T")

MESSAGE = ItemFormat("llama_index.message")

ROLES: dict[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


class CachedChatStore(BaseChatStore):
    """The chats of one cache. Each message is an item.

    The asynchronous methods run on the caller's loop. Each docstring names the session method
    that is called; the guarantees of this method on return and on cancellation apply. The
    synchronous methods run on the bridge's thread and raise `WouldBlock` if an event loop runs in
    the caller's thread. The caller closes the cache.

    Serialising a memory that uses the store (``memory.to_string()``) includes no messages: they are
    in the journal only.
    """

    _cache: SessionCache = PrivateAttr()
    _bridge: Bridge | None = PrivateAttr()
    _kept: KeptTurns = PrivateAttr()

    def __init__(self, cache: SessionCache, *, bridge: Bridge | None = None) -> None:
        """Create a store, without I/O.

        Args:
            cache: stores the sessions.
            bridge: runs the synchronous methods. Default: the shared bridge of this process.
        """
        super().__init__()
        self._cache = cache
        self._kept = KeptTurns(cache)
        self._bridge = bridge

    @classmethod
    def class_name(cls) -> str:
        """Return the name of this class for LlamaIndex's serialisation."""
        return "CachedChatStore"

    async def aget_messages(self, key: str) -> list[ChatMessage]:
        """Return the messages of a chat in order; an empty list if the chat does not exist.

        Raises:
            UnreadableItem: the session contains an item that LlamaIndex did not write.
            SessionClosed, JournalError: as `CachedSession.get_items`.
        """
        return [_decode(item, key) for item in await self._session(key).get_items()]

    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        """Append a message, as `CachedSession.add_items`.

        Raises:
            InvalidArgument: JSON cannot represent the message. Nothing is stored.
            SessionClosed, JournalError: as `CachedSession.add_items`.
        """
        await self._session(key).add_items([_encode(message)])

    async def aset_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Replace the messages of a chat, in one transaction.

        The messages that the chat and the list have in common at the beginning are not touched. The
        other messages of the chat are removed one by one, and the rest of the list is appended as
        one batch. So if two devices set lists with a common beginning, the chat contains this
        beginning once.
        Messages of another device that have not arrived here yet are not removed.

        Raises:
            UnreadableItem: the session contains an item that LlamaIndex did not write. Nothing
                changes.
            InvalidArgument, SessionClosed, JournalError: as `CachedSession.replace_items`.
        """
        session = self._session(key)
        entries = await _entries(session)
        items = [_encode(message) for message in messages]
        common = 0
        for entry, item in zip(entries, items, strict=False):
            if entry.item != item:
                break
            common += 1
        await session.replace_items(entries[common:], items[common:])

    async def adelete_messages(self, key: str) -> list[ChatMessage] | None:
        """Remove all messages of a chat, as `CachedSession.clear_session`.

        Returns:
            The removed messages; None if the chat had no messages.

        Raises:
            UnreadableItem: the session contains an item that LlamaIndex did not write. Nothing is
                removed.
            SessionClosed, JournalError: as `CachedSession.clear_session`. Nothing is removed.
        """
        session = self._session(key)
        found = [_decode(item, key) for item in await session.get_items()]
        await session.clear_session()
        return found or None

    async def adelete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove the message at an index of this device's history.

        On other devices the same message is removed, even if its index is different there.

        Returns:
            The removed message; None if the index is out of range.

        Raises:
            UnreadableItem: the session contains an item that LlamaIndex did not write. Nothing is
                removed.
            SessionClosed, JournalError: as `CachedSession.replace_items`. Nothing is removed.
        """
        session = self._session(key)
        entries = await _entries(session)
        if not -len(entries) <= idx < len(entries):
            return None
        found = _decode(entries[idx].item, key)
        await session.replace_items([entries[idx]])
        return found

    async def adelete_last_message(self, key: str) -> ChatMessage | None:
        """Remove the last message, as `CachedSession.pop_item`.

        Returns:
            The removed message; None if the chat has no messages.

        Raises:
            UnreadableItem: LlamaIndex did not write the last item. Nothing is removed.
            SessionClosed, JournalError: as `CachedSession.pop_item`. Nothing is removed.
        """
        session = self._session(key)
        for item in await session.get_items(1):
            _decode(item, key)  # raise before the pop if the item is of another framework
        popped = await session.pop_item()
        return None if popped is None else _decode(popped, key)

    async def aget_keys(self) -> list[str]:
        """Return the keys of all chats of which this device has messages.

        The keys are in the order in which the chats were first used on this device. Sessions of
        other frameworks in the same journal are omitted.

        Raises:
            SessionClosed, JournalError: as `SessionCache.sessions`.
        """
        keys = []
        created = sorted(await self._cache.sessions(), key=lambda info: info.created_at or 0.0)
        for key in [info.session_id for info in created]:
            # Read without hydration, because the list must not wait for the server.
            last = await self._cache.session(key, hydrate=False).get_items(1)
            if last and MESSAGE.matches(last[0]):
                keys.append(key)
        return keys

    def get_messages(self, key: str) -> list[ChatMessage]:
        """Return the messages of a chat: `aget_messages` for synchronous code."""
        return self._run(self.aget_messages, key)

    def add_message(self, key: str, message: ChatMessage) -> None:
        """Append a message: `async_add_message` for synchronous code."""
        self._run(self.async_add_message, key, message)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Replace the messages of a chat: `aset_messages` for synchronous code."""
        self._run(self.aset_messages, key, messages)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Remove all messages of a chat: `adelete_messages` for synchronous code."""
        return self._run(self.adelete_messages, key)

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove the message at an index: `adelete_message` for synchronous code."""
        return self._run(self.adelete_message, key, idx)

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Remove the last message: `adelete_last_message` for synchronous code."""
        return self._run(self.adelete_last_message, key)

    def get_keys(self) -> list[str]:
        """Return the keys of all chats: `aget_keys` for synchronous code."""
        return self._run(self.aget_keys)

    def _session(self, key: str) -> CachedSession:
        return self._kept.session(key)

    def _run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        return (self._bridge or shared_bridge()).run(call, *args)


async def _entries(session: CachedSession) -> Sequence[Entry]:
    await session.get_items()  # waits for the first hydration, unlike `entries`
    entries = await session.entries()
    for entry in entries:
        MESSAGE.decode(entry.item, session.session_id)
    return entries


def _decode(item: Any, key: str) -> ChatMessage:
    stored = MESSAGE.decode(item, key)
    try:
        return ChatMessage.model_validate(stored)
    except ValueError as error:
        raise MESSAGE.refused(key, error) from error


def _encode(message: ChatMessage) -> Any:
    stored = json.loads(message.model_dump_json())
    return MESSAGE.encode(ROLES.get(message.role.value), join_texts(_texts(stored)), stored)


def _texts(stored: dict[str, Any]) -> Iterator[str]:
    for block in stored.get("blocks", []):
        kind = block.get("block_type")
        if kind == "tool_call":
            yield format_call(block.get("tool_name"), block.get("tool_kwargs"))
        elif isinstance(block.get("text"), str):
            yield block["text"]
        else:
            yield f"[{kind}]"
    # Older versions of LlamaIndex store tool calls in this field, in the provider's format.
    for call in stored.get("additional_kwargs", {}).get("tool_calls") or []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield format_call(function.get("name"), function.get("arguments"))
