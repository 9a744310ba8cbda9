"""How a framework's message is stored: as one item, in the framework's own form, under a cover that
people can read and that no other reader takes for its own.

===========  =====================================================================
``type``     whose it is and what: ``langchain.message``
``v``        version of this cover
``role``     user, assistant, system or tool (a message)
``content``  what it says, as text: for people, search and the server's recall
``message``  the framework's own serialised form, from which alone it is read back
===========  =====================================================================

The Agents SDK has no item of such a type, and its own items have no ``v``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cached_session.errors import UnreadableItem

__all__ = ["Kind", "Role", "as_text", "called", "missing", "spoken"]

VERSION = 1

Role = Literal["user", "assistant", "system", "tool"]

FRAMEWORKS = ("langchain", "llama_index", "pydantic_ai", "strands")


@dataclass(frozen=True)
class Kind:
    """One kind of item that an adapter writes and reads."""

    name: str

    def wrap(self, role: Role | None, text: str, message: Any, **more: Any) -> Any:
        """The item that stands for a message."""
        said = {"content": text} if role is None else {"role": role, "content": text}
        return {"type": self.name, "v": VERSION, **said, **more, "message": message}

    def is_kind_of(self, item: Any) -> bool:
        """Whether an item is of this kind, in whatever version."""
        return isinstance(item, dict) and item.get("type") == self.name and "v" in item

    def unwrap(self, item: Any, session_id: str) -> Any:
        """The framework's own form of an item.

        Raises:
            UnreadableItem: it is of another kind, or of a newer version.
        """
        if not self.is_kind_of(item):
            raise UnreadableItem(
                f"the session {session_id!r} holds {_what(item)}, and {self.name} was expected: "
                "give each framework session ids of its own"
            )
        if item["v"] != VERSION or "message" not in item:
            raise UnreadableItem(
                f"the session {session_id!r} holds {self.name} of version {item['v']!r}, and this "
                f"library reads version {VERSION}: upgrade cached-session on this device"
            )
        return item["message"]

    def unreadable(self, session_id: str, error: Exception) -> UnreadableItem:
        """The framework refuses what it once wrote, or what it is asked to write."""
        return UnreadableItem(
            f"{self.name} in the session {session_id!r} is not understood by the version of the "
            f"framework that is installed: {error}"
        )


def _what(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    if isinstance(kind, str) and "v" in item and kind.partition(".")[0] in FRAMEWORKS:
        return f"an item of another adapter ({kind})"
    if isinstance(item, dict) and ("role" in item or "type" in item):
        return f"an item of the Agents SDK ({kind or item.get('role')!s:.40})"
    return "an item that no adapter wrote"


def spoken(parts: Iterable[object]) -> str:
    """What a message says, from the texts of its parts; never empty."""
    return "\n".join(str(part) for part in parts if part) or "(nothing)"


def called(name: object, arguments: object) -> str:
    """A tool call as a person reads it."""
    return f"{name}({as_text(arguments)})"


def as_text(value: object) -> str:
    """A value in a message as a person reads it, and as search finds it: in its own script."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def missing(error: ModuleNotFoundError, module: str, extra: str) -> ModuleNotFoundError:
    """What to raise where an adapter's framework cannot be imported: which extra to install. What
    is missing for another reason than that stays as it is."""
    if (error.name or "").partition(".")[0] != module:
        return error
    return ModuleNotFoundError(
        f"{error.name} is not installed. It comes with an extra of the package: "
        f"pip install 'cached-session[{extra}]'",
        name=error.name,
    )
