"""A message history for Pydantic AI, stored in a `CachedSession`.

history = CachedMessageHistory(session)
result = await agent.run("Hello", message_history=await history.messages())
await history.add(result.new_messages())
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from cached_session.adapters.item_format import (
    ItemFormat,
    explain_missing,
    format_call,
    join_texts,
    to_text,
)
from cached_session.session import CachedSession

try:
    from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter
except ModuleNotFoundError as error:
    raise explain_missing(error, "pydantic_ai", "pydantic-ai") from error

__all__ = ["CachedMessageHistory"]

MESSAGE = ItemFormat("pydantic_ai.message")


class CachedMessageHistory:
    """The messages of one session. Each message is an item; a call of `add` adds one batch.

    Pydantic AI has no interface for histories: a run takes the earlier messages and returns the new
    ones. Each docstring names the session method that is called; the guarantees of this method on
    return and on cancellation apply. The caller closes the session. For ``agent.run_sync``, pass
    the methods to a `Bridge`: ``bridge.run(history.messages)``.
    """

    def __init__(self, session: CachedSession) -> None:
        """Create a history, without I/O.

        Args:
            session: stores the messages. Its ``session_settings.limit`` limits the messages read.
        """
        self.session = session

    async def messages(self) -> list[ModelMessage]:
        """Return the messages in order, as `CachedSession.get_items`.

        Raises:
            UnreadableItem: the session contains an item that Pydantic AI did not write.
            SessionClosed, JournalError: as `CachedSession.get_items`.
        """
        session_id = self.session.session_id
        found = [MESSAGE.decode(item, session_id) for item in await self.session.get_items()]
        try:
            # Validate the messages as JSON, as they were written: JSON stores bytes as base64.
            messages: list[ModelMessage] = ModelMessagesTypeAdapter.validate_json(json.dumps(found))
        except ValueError as error:
            raise MESSAGE.refused(session_id, error) from error
        return messages

    async def add(self, messages: Sequence[ModelMessage]) -> None:
        """Append the messages of a run (``result.new_messages()``), as `CachedSession.add_items`.

        The messages are one batch: another device reads all of them or none.

        Raises:
            InvalidArgument: JSON cannot represent a message. Nothing is stored.
            SessionClosed, JournalError: as `CachedSession.add_items`.
        """
        stored = json.loads(ModelMessagesTypeAdapter.dump_json(list(messages)))
        await self.session.add_items([_encode(message) for message in stored])

    async def clear(self) -> None:
        """Remove all messages, as `CachedSession.clear_session`.

        Messages of another device that have not arrived here yet are not removed.

        Raises:
            SessionClosed, JournalError: as `CachedSession.clear_session`; nothing is removed.
        """
        await self.session.clear_session()


def _encode(message: dict[str, Any]) -> Any:
    parts = message.get("parts", [])
    role: Any = "assistant"
    if message.get("kind") == "request":
        kinds = {part.get("part_kind") for part in parts}
        if "user-prompt" in kinds:
            role = "user"
        else:
            role = "tool" if kinds & {"tool-return", "retry-prompt"} else "system"
    return MESSAGE.encode(
        role, join_texts(text for part in parts for text in _texts(part)), message
    )


def _texts(part: dict[str, Any]) -> Iterator[str]:
    content = part.get("content")
    if part.get("part_kind") in ("tool-call", "builtin-tool-call", "native-tool-call"):
        yield format_call(part.get("tool_name"), part.get("args") or {})
    elif isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for piece in content:
            if isinstance(piece, str):
                yield piece
            elif isinstance(piece, dict):
                yield f"[{piece.get('kind', 'part')}]"
    elif content is not None:
        yield to_text(content)
