"""The format of an adapter's items: a framework's message, and fields for people and search.

===========  =======================================================================
``type``     framework and kind of message, such as ``langchain.message``
``v``        version of this format
``role``     user, assistant, system or tool (messages only)
``content``  the text of the message: for people, search and the server's recall
``message``  the framework's own serialised form; only this is read back
===========  =======================================================================

The Agents SDK has no items with such a type, and its items have no ``v``. So no reader mistakes
the items of another framework for its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cached_session.errors import UnreadableItem

__all__ = ["ItemFormat", "Role", "explain_missing", "format_call", "join_texts", "to_text"]

VERSION = 1

Role = Literal["user", "assistant", "system", "tool"]

FRAMEWORKS = ("langchain", "llama_index", "pydantic_ai", "strands")


@dataclass(frozen=True)
class ItemFormat:
    """The encoder and decoder of the items of one ``type``."""

    type: str

    def encode(self, role: Role | None, text: str, message: Any, **fields: Any) -> Any:
        """Return the item that stores a message, with additional ``fields``."""
        readable = {"content": text} if role is None else {"role": role, "content": text}
        return {"type": self.type, "v": VERSION, **readable, **fields, "message": message}

    def matches(self, item: Any) -> bool:
        """Return whether an item has this type, in any version."""
        return isinstance(item, dict) and item.get("type") == self.type and "v" in item

    def decode(self, item: Any, session_id: str) -> Any:
        """Return the framework's own form of the message in an item.

        Raises:
            UnreadableItem: the item has another type or a newer version.
        """
        if not self.matches(item):
            raise UnreadableItem(
                f"the session {session_id!r} contains {_describe(item)}, but {self.type} was "
                "expected: give each framework its own session ids"
            )
        if item["v"] != VERSION or "message" not in item:
            raise UnreadableItem(
                f"the session {session_id!r} contains {self.type} of version {item['v']!r}, and "
                f"this library reads version {VERSION}: upgrade cached-session on this device"
            )
        return item["message"]

    def refused(self, session_id: str, error: Exception) -> UnreadableItem:
        """Return the error for a message that the installed framework cannot read."""
        return UnreadableItem(
            f"the installed version of the framework cannot read {self.type} in the session "
            f"{session_id!r}: {error}"
        )


def _describe(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    if isinstance(kind, str) and "v" in item and kind.partition(".")[0] in FRAMEWORKS:
        return f"an item of another adapter ({kind})"
    if isinstance(item, dict) and ("role" in item or "type" in item):
        return f"an item of the Agents SDK ({kind or item.get('role')!s:.40})"
    return "an item that no adapter wrote"


def join_texts(texts: Iterable[object]) -> str:
    """Join the texts of a message's parts; the result is never empty."""
    return "\n".join(str(text) for text in texts if text) or "(nothing)"


def format_call(name: object, arguments: object) -> str:
    """Format a tool call for people."""
    return f"{name}({to_text(arguments)})"


def to_text(value: object) -> str:
    """Return a string unchanged, and any other value as JSON.

    The JSON has no escapes for non-ASCII characters, so that a search can find the text.
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def explain_missing(error: ModuleNotFoundError, module: str, extra: str) -> ModuleNotFoundError:
    """Return an error that says which extra installs a missing framework.

    If the failed import is not of ``module`` or a part of it, return ``error`` unchanged.
    """
    if (error.name or "").partition(".")[0] != module:
        return error
    return ModuleNotFoundError(
        f"{error.name} is not installed. It comes with an extra of the package: "
        f"pip install 'cached-session[{extra}]'",
        name=error.name,
    )
