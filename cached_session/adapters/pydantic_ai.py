"""Pydantic AI's message history over a `CachedSession`.

history = CachedMessageHistory(session)
result = await agent.run("Hello", message_history=await history.messages())
await history.add(result.new_messages())
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cached_session.adapters.envelope import Kind, as_text, called, missing, spoken
from cached_session.session import CachedSession

try:
    from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
except ModuleNotFoundError as error:
    raise missing(error, "pydantic_ai", "pydantic-ai") from error

__all__ = ["CachedMessageHistory"]

MESSAGE = Kind("pydantic_ai.message")


class CachedMessageHistory:
    """The messages of one session, one message an item; what is added in one call is one batch.

    Pydantic AI keeps no history of its own and asks for none: a run takes the messages before it
    and gives back its own. What a method promises on return and leaves when cancelled is as of the
    session's method that it names. The session stays the caller's to close. For
    ``agent.run_sync``, pass the methods to a `Bridge`: ``bridge.run(history.messages)``.
    """

    def __init__(self, session: CachedSession) -> None:
        """Make a history; no I/O.

        Args:
            session: where the messages are kept; its ``session_settings.limit`` caps what is read.
        """
        self.session = session

    async def messages(self) -> list[ModelMessage]:
        """The messages in order, as `CachedSession.get_items`.

        Raises:
            UnreadableItem: the session holds what Pydantic AI did not write.
            SessionClosed, JournalError: as `CachedSession.get_items`.
        """
        session_id = self.session.session_id
        found = [MESSAGE.unwrap(item, session_id) for item in await self.session.get_items()]
        try:
            # As JSON, the form that it was written in: bytes are base64 there.
            messages: list[ModelMessage] = ModelMessagesTypeAdapter.validate_json(json.dumps(found))
        except ValueError as error:
            raise MESSAGE.unreadable(session_id, error) from error
        return messages

    async def add(self, messages: Sequence[ModelMessage]) -> None:
        """Append the messages of a run (``result.new_messages()``) as one batch, as
        `CachedSession.add_items`: another device sees the whole run or nothing of it.

        Raises:
            InvalidArgument: JSON cannot carry a message; nothing is stored.
            SessionClosed, JournalError: as `CachedSession.add_items`.
        """
        stored = json.loads(ModelMessagesTypeAdapter.dump_json(list(messages)))
        await self.session.add_items([_wrapped(message) for message in stored])

    async def clear(self) -> None:
        """Remove all messages, as `CachedSession.clear_session`: what another device added
        meanwhile survives.

        Raises:
            SessionClosed, JournalError: as `CachedSession.clear_session`; nothing is removed.
        """
        await self.session.clear_session()


def _wrapped(message: dict[str, Any]) -> Any:
    parts = message.get("parts", [])
    role: Any = "assistant"
    if message.get("kind") == "request":
        kinds = {part.get("part_kind") for part in parts}
        if "user-prompt" in kinds:
            role = "user"
        else:
            role = "tool" if kinds & {"tool-return", "retry-prompt"} else "system"
    return MESSAGE.wrap(role, spoken(text for part in parts for text in _said(part)), message)


def _said(part: dict[str, Any]) -> Iterator[str]:
    content = part.get("content")
    if part.get("part_kind") in ("tool-call", "builtin-tool-call", "native-tool-call"):
        yield called(part.get("tool_name"), part.get("args") or {})
    elif isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for piece in content:
            if isinstance(piece, str):
                yield piece
            elif isinstance(piece, dict):
                yield f"[{piece.get('kind', 'part')}]"
    elif content is not None:
        yield as_text(content)
