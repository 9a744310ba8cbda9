"""LlamaIndex's chat store over a `SessionCache`: each key is a session.

store = CachedChatStore(cache)
memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="user-1")
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from cached_session.adapters.bridge import Bridge, shared
from cached_session.adapters.envelope import Kind, Role, called, missing, spoken
from cached_session.cache import SessionCache
from cached_session.models import Entry
from cached_session.session import CachedSession

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.llms import ChatMessage
    from llama_index.core.storage.chat_store.base import BaseChatStore
except ModuleNotFoundError as error:
    raise missing(error, "llama_index", "llama-index") from error

__all__ = ["CachedChatStore"]

T = TypeVar("T")

MESSAGE = Kind("llama_index.message")

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
    """The chats of one cache, one message an item.

    The asynchronous methods run on the caller's loop; what they promise on return and leave when
    cancelled is as of the session's method that each names. The synchronous ones run on the
    bridge's thread and raise `WouldBlock` where an event loop runs. The cache stays the caller's to
    close.

    The store is where the messages are, not a copy of them: dumping a memory that uses it
    (``memory.to_string()``) dumps no messages.
    """

    _cache: SessionCache = PrivateAttr()
    _bridge: Bridge | None = PrivateAttr()

    def __init__(self, cache: SessionCache, *, bridge: Bridge | None = None) -> None:
        """Make a store; no I/O.

        Args:
            cache: where the sessions are kept.
            bridge: the thread for the synchronous methods; None: the process's shared one.
        """
        super().__init__()
        self._cache = cache
        self._bridge = bridge

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls this store."""
        return "CachedChatStore"

    async def aget_messages(self, key: str) -> list[ChatMessage]:
        """The messages of a chat in order; none if there is no such chat.

        Raises:
            UnreadableItem: the session holds what LlamaIndex did not write.
            SessionClosed, JournalError: as `CachedSession.get_items`.
        """
        return [_read(item, key) for item in await self._session(key).get_items()]

    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        """Append a message, as `CachedSession.add_items`.

        Raises:
            InvalidArgument: JSON cannot carry it; nothing is stored.
            SessionClosed, JournalError: as `CachedSession.add_items`.
        """
        await self._session(key).add_items([_wrapped(message)])

    async def aset_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Make these the messages of a chat, in one transaction.

        What the chat and the list begin with alike stays as it is; what the chat has beyond that is
        removed item by item, and the rest of the list is appended as one batch. So two devices that
        set lists with a common beginning have it once, and a message that another device added
        meanwhile survives.

        Raises:
            UnreadableItem: the session holds what LlamaIndex did not write; nothing changes.
            InvalidArgument, SessionClosed, JournalError: as `CachedSession.replace_items`.
        """
        session = self._session(key)
        entries = await _entries(session)
        wanted = [_wrapped(message) for message in messages]
        kept = 0
        for entry, item in zip(entries, wanted, strict=False):
            if entry.item != item:
                break
            kept += 1
        await session.replace_items(entries[kept:], wanted[kept:])

    async def adelete_messages(self, key: str) -> list[ChatMessage] | None:
        """Remove all messages of a chat, as `CachedSession.clear_session`, and return them; None if
        there are none.

        Raises:
            UnreadableItem: the session holds what LlamaIndex did not write; nothing is removed.
            SessionClosed, JournalError: as `CachedSession.clear_session`; nothing is removed.
        """
        session = self._session(key)
        found = [_read(item, key) for item in await session.get_items()]
        await session.clear_session()
        return found or None

    async def adelete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove the message at an index of this device's history, and return it; None if there is
        none. The message is removed, not the index: on a device where it stands elsewhere, that
        very message goes.

        Raises:
            UnreadableItem: the session holds what LlamaIndex did not write; nothing is removed.
            SessionClosed, JournalError: as `CachedSession.replace_items`; nothing is removed.
        """
        session = self._session(key)
        entries = await _entries(session)
        if not -len(entries) <= idx < len(entries):
            return None
        found = _read(entries[idx].item, key)
        await session.replace_items([entries[idx]])
        return found

    async def adelete_last_message(self, key: str) -> ChatMessage | None:
        """Remove the last message and return it, as `CachedSession.pop_item`; None if there is
        none.

        Raises:
            UnreadableItem: the last item is none of LlamaIndex's; nothing is removed.
            SessionClosed, JournalError: as `CachedSession.pop_item`; nothing is removed.
        """
        session = self._session(key)
        for item in await session.get_items(1):
            _read(item, key)  # what is not ours is refused before it is popped
        popped = await session.pop_item()
        return None if popped is None else _read(popped, key)

    async def aget_keys(self) -> list[str]:
        """The keys of all chats that this device has messages of, in the order in which it met
        them; sessions of other frameworks in the same journal are passed over.

        Raises:
            SessionClosed, JournalError: as `SessionCache.sessions`.
        """
        keys = []
        for key in await self._cache.sessions():
            # A listing waits for no history.
            last = await self._cache.session(key, hydrate=False).get_items(1)
            if last and MESSAGE.is_kind_of(last[0]):
                keys.append(key)
        return keys

    def get_messages(self, key: str) -> list[ChatMessage]:
        """`aget_messages`, for synchronous code."""
        return self._run(self.aget_messages, key)

    def add_message(self, key: str, message: ChatMessage) -> None:
        """`async_add_message`, for synchronous code."""
        self._run(self.async_add_message, key, message)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """`aset_messages`, for synchronous code."""
        self._run(self.aset_messages, key, messages)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """`adelete_messages`, for synchronous code."""
        return self._run(self.adelete_messages, key)

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """`adelete_message`, for synchronous code."""
        return self._run(self.adelete_message, key, idx)

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """`adelete_last_message`, for synchronous code."""
        return self._run(self.adelete_last_message, key)

    def get_keys(self) -> list[str]:
        """`aget_keys`, for synchronous code."""
        return self._run(self.aget_keys)

    def _session(self, key: str) -> CachedSession:
        return self._cache.session(key)

    def _run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        return (self._bridge or shared()).run(call, *args)


async def _entries(session: CachedSession) -> Sequence[Entry]:
    await session.get_items()  # a session that this journal has never met is waited for
    entries = await session.entries()
    for entry in entries:
        MESSAGE.unwrap(entry.item, session.session_id)
    return entries


def _read(item: Any, key: str) -> ChatMessage:
    stored = MESSAGE.unwrap(item, key)
    try:
        return ChatMessage.model_validate(stored)
    except ValueError as error:
        raise MESSAGE.unreadable(key, error) from error


def _wrapped(message: ChatMessage) -> Any:
    stored = json.loads(message.model_dump_json())
    return MESSAGE.wrap(ROLES.get(message.role.value), spoken(_said(stored)), stored)


def _said(stored: dict[str, Any]) -> Iterator[str]:
    for block in stored.get("blocks", []):
        kind = block.get("block_type")
        if kind == "tool_call":
            yield called(block.get("tool_name"), block.get("tool_kwargs"))
        elif isinstance(block.get("text"), str):
            yield block["text"]
        else:
            yield f"[{kind}]"
    # Before there were blocks of this kind, calls were kept as the provider's own values.
    for call in stored.get("additional_kwargs", {}).get("tool_calls") or []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield called(function.get("name"), function.get("arguments"))
