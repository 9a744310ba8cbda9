"""LangChain's chat message history over a `CachedSession`.

history = CachedChatMessageHistory(cache.session("user-1"))
chain = RunnableWithMessageHistory(model, lambda session_id: history)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

from cached_session.adapters.bridge import Bridge, shared
from cached_session.adapters.envelope import Kind, Role, called, missing, spoken
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
    raise missing(error, "langchain_core", "langchain") from error

__all__ = ["CachedChatMessageHistory"]

T = TypeVar("T")

MESSAGE = Kind("langchain.message")

ROLES: tuple[tuple[type[BaseMessage], Role], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
    (FunctionMessage, "tool"),
)


class CachedChatMessageHistory(BaseChatMessageHistory):
    """The messages of one session, one message an item; what is added in one call is one batch.

    The asynchronous methods run on the caller's loop; what they promise on return and leave when
    cancelled is as of the session's method that each names. The synchronous ones run on the
    bridge's thread and raise `WouldBlock` where an event loop runs. The session stays the caller's
    to close.
    """

    def __init__(self, session: CachedSession, *, bridge: Bridge | None = None) -> None:
        """Make a history; no I/O.

        Args:
            session: where the messages are kept; its ``session_settings.limit`` caps what is read.
            bridge: the thread for the synchronous methods; None: the process's shared one.
        """
        super().__init__()
        self.session = session
        self._bridge = bridge

    async def aget_messages(self) -> list[BaseMessage]:
        """The messages in order, as `CachedSession.get_items`.

        Raises:
            UnreadableItem: the session holds what LangChain did not write.
            SessionClosed, JournalError: as `CachedSession.get_items`.
        """
        session_id = self.session.session_id
        found = [MESSAGE.unwrap(item, session_id) for item in await self.session.get_items()]
        try:
            messages: list[BaseMessage] = messages_from_dict(found)
        except (ValueError, KeyError, TypeError) as error:
            raise MESSAGE.unreadable(session_id, error) from error
        return messages

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages as one batch, as `CachedSession.add_items`.

        Raises:
            InvalidArgument: LangChain could not read a message back, or JSON cannot carry it;
                nothing is stored.
            SessionClosed, JournalError: as `CachedSession.add_items`.
        """
        await self.session.add_items([_wrapped(message) for message in messages])

    async def aclear(self) -> None:
        """Remove all messages, as `CachedSession.clear_session`: what another device added
        meanwhile survives.

        Raises:
            SessionClosed, JournalError: as `CachedSession.clear_session`; nothing is removed.
        """
        await self.session.clear_session()

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """`aget_messages`, for synchronous code."""
        return self._run(self.aget_messages)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """`aadd_messages`, for synchronous code."""
        self._run(self.aadd_messages, messages)

    def clear(self) -> None:
        """`aclear`, for synchronous code."""
        self._run(self.aclear)

    def _run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        return (self._bridge or shared()).run(call, *args)


def _wrapped(message: BaseMessage) -> Any:
    stored = message_to_dict(message)
    try:
        messages_from_dict([stored])
    except (ValueError, KeyError, TypeError) as error:
        # Stored, it would make the whole history unreadable.
        raise InvalidArgument(f"LangChain cannot read back {message!r:.200}: {error}") from error
    role = next((role for kind, role in ROLES if isinstance(message, kind)), None)
    return MESSAGE.wrap(role, spoken(_said(message)), stored)


def _said(message: BaseMessage) -> Iterator[str]:
    content = message.content
    for block in [content] if isinstance(content, str) else content:
        if isinstance(block, str):
            yield block
        elif isinstance(block.get("text"), str):
            yield block["text"]
        elif block.get("type") not in ("tool_call", "tool_use"):  # they are among the calls
            yield f"[{block.get('type', 'block')}]"
    for call in getattr(message, "tool_calls", ()):
        yield called(call["name"], call["args"])
