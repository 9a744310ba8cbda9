"""A chat message history for LangChain, stored in a `CachedSession`.

history = CachedChatMessageHistory(cache.session("user-1"))
chain = RunnableWithMessageHistory(model, lambda session_id: history)
"""

from __future__ import annotations

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
from cached_session.errors import InvalidArgument
from cached_session.session import CachedSession

try:
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import (
        AIMessage,
        BaseMessage,
        FunctionMessage,
        HumanMessage,
        SystemMessage,
        ToolMessage,
        message_to_dict,
        messages_from_dict,
    )
except ModuleNotFoundError as error:
    raise explain_missing(error, "langchain_core", "langchain") from error

__all__ = ["CachedChatMessageHistory"]

T = TypeVar("T")

MESSAGE = ItemFormat("langchain.message")

ROLES: tuple[tuple[type[BaseMessage], Role], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)


class CachedChatMessageHistory(BaseChatMessageHistory):
    """The messages of one session.

    Each message is an item, and each call of `aadd_messages` adds one batch.

    The asynchronous methods run on the caller's loop. Each docstring names the session method
    that is called; the guarantees of this method on return and on cancellation apply. The
    synchronous methods run on the bridge's thread and raise `WouldBlock` if an event loop runs in
    the caller's thread. The caller closes the session.
    """

    def __init__(self, session: CachedSession, *, bridge: Bridge | None = None) -> None:
        """Create a history, without I/O.

        Args:
            session: stores the messages. Its ``session_settings.limit`` limits the messages read.
            bridge: runs the synchronous methods. Default: the shared bridge of this process.
        """
        super().__init__()
        self.session = session
        self._bridge = bridge

    async def aget_messages(self) -> list[BaseMessage]:
        """Return the messages in order, as `CachedSession.get_items`.

        Raises:
            UnreadableItem: the session contains an item that LangChain did not write.
            SessionClosed, JournalError: as `CachedSession.get_items`.
        """
        session_id = self.session.session_id
        found = [MESSAGE.decode(item, session_id) for item in await self.session.get_items()]
        try:
            messages: list[BaseMessage] = messages_from_dict(found)
        except (ValueError, KeyError, TypeError) as error:
            raise MESSAGE.refused(session_id, error) from error
        return messages

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages as one batch, as `CachedSession.add_items`.

        Raises:
            InvalidArgument: LangChain cannot read a message back, or JSON cannot represent it.
                Nothing is stored.
            SessionClosed, JournalError: as `CachedSession.add_items`.
        """
        await self.session.add_items([_encode(message) for message in messages])

    async def aclear(self) -> None:
        """Remove all messages, as `CachedSession.clear_session`.

        Messages of another device that have not arrived here yet are not removed.

        Raises:
            SessionClosed, JournalError: as `CachedSession.clear_session`; nothing is removed.
        """
        await self.session.clear_session()

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """Return the messages in order, like `aget_messages`, for synchronous code."""
        return self._run(self.aget_messages)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages: `aadd_messages` for synchronous code."""
        self._run(self.aadd_messages, messages)

    def clear(self) -> None:
        """Remove all messages: `aclear` for synchronous code."""
        self._run(self.aclear)

    def _run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        return (self._bridge or shared_bridge()).run(call, *args)


def _encode(message: BaseMessage) -> Any:
    stored = message_to_dict(message)
    try:
        messages_from_dict([stored])
    except (ValueError, KeyError, TypeError) as error:
        # If this message were stored, the whole history could not be read any more.
        raise InvalidArgument(f"LangChain cannot read back {message!r:.200}: {error}") from error
    role = next((role for kind, role in ROLES if isinstance(message, kind)), None)
    return MESSAGE.encode(role, join_texts(_texts(message)), stored)


def _texts(message: BaseMessage) -> Iterator[str]:
    content = message.content
    for block in [content] if isinstance(content, str) else content:
        if isinstance(block, str):
            yield block
        elif isinstance(block.get("text"), str):
            yield block["text"]
        elif block.get("type") not in ("tool_call", "tool_use"):  # the loop below yields the calls
            yield f"[{block.get('type', 'block')}]"
    for call in getattr(message, "tool_calls", ()):
        yield format_call(call["name"], call["args"])
