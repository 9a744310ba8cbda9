"""Validation of the arguments of a session object and of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cached_session.errors import InvalidArgument
from cached_session.history.ops import Dot
from cached_session.history.session_name import session_name
from cached_session.models import Entry, Progress
from cached_session.options import SyncOptions
from cached_session.remote.connect import RemoteSpec

__all__ = [
    "SessionConfig",
    "check_key_prefix",
    "check_options_type",
    "checked_items",
    "dots_of",
    "items_limit",
    "position_of",
    "sdk_settings",
    "settings_limit",
]

EXAMPLE = "[{'role': 'user', 'content': 'hello'}]"
"""A list of items, for error messages."""
MOST_ITEMS = 1 << 40
"""Largest limit that a query gets: more items than any journal has, and less than SQLite's largest
integer."""
PREFIX_MOST = 200
"""Maximum number of characters of a key prefix."""


@dataclass(frozen=True)
class SessionConfig:
    """The arguments of one session object. See `CachedSession` for their meaning.

    Raises:
        InvalidArgument: an argument is wrong.
    """

    session_id: str
    remote: RemoteSpec | None = None
    """Connection settings of the server; None for local-only use."""
    settings: Any = None
    """Session settings of the Agents SDK, as `sdk_settings` returns them."""
    pop: str = "local"
    content: str = "text"
    hydrate: bool = True
    on_progress: Callable[[Progress], None] | None = None
    key_prefix: str = ""

    def __post_init__(self) -> None:
        session_id: object = self.session_id
        if not isinstance(session_id, str) or not session_id:
            raise InvalidArgument(
                f"session_id={self.session_id!r} must be a string that is not empty"
            )
        check_key_prefix(self.key_prefix)
        if self.pop not in ("local", "confirmed"):
            raise InvalidArgument(f"pop={self.pop!r} is not known; use 'local' or 'confirmed'")
        if self.content not in ("text", "none"):
            raise InvalidArgument(f"content={self.content!r} is not known; use 'text' or 'none'")
        if not isinstance(self.hydrate, bool):
            raise InvalidArgument(f"hydrate={self.hydrate!r} must be True or False")
        if self.pop == "confirmed" and self.remote is None:
            raise InvalidArgument(
                "pop='confirmed' needs a server, and this session has none; "
                "use from_url, pass client, or use pop='local'"
            )

    @property
    def name(self) -> str:
        """Name of the session, made of its key prefix and its id."""
        return session_name(self.key_prefix, self.session_id)


def check_key_prefix(prefix: object) -> None:
    """Check a key prefix.

    Raises:
        InvalidArgument: ``prefix`` is not a string of at most `PREFIX_MOST` characters, or contains
            a lone surrogate.
    """
    if not isinstance(prefix, str):
        raise InvalidArgument(f"key_prefix={prefix!r:.80} must be a string")
    if len(prefix) > PREFIX_MOST:
        raise InvalidArgument(
            f"key_prefix={prefix[:20]!r}... has {len(prefix)} characters; use at most {PREFIX_MOST}"
        )
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"key_prefix={prefix!r:.80} contains a lone surrogate, which is no character"
        ) from error


def check_options_type(options: object) -> None:
    """Check the type of the options.

    Raises:
        InvalidArgument: ``options`` is not a `SyncOptions`.
    """
    if not isinstance(options, SyncOptions):
        raise InvalidArgument(f"options={options!r} must be a SyncOptions")


def sdk_settings(settings: Any) -> Any:
    """Return settings as the SDK's ``Runner`` expects them.

    The runner accepts a dict as its own argument, but expects an object on a session. If the SDK is
    not installed, a dict is returned unchanged.
    """
    if not isinstance(settings, dict):
        return settings
    try:
        from agents import SessionSettings  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return settings
    try:
        return SessionSettings(**settings)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"session_settings={settings!r} cannot be used as SessionSettings: {error}; "
            "use agents.SessionSettings, or a dict such as {'limit': 20}"
        ) from error


def settings_limit(settings: Any) -> int | None:
    """Return the maximum number of items that SDK settings (an object, a dict or None) set; None
    if they set no maximum."""
    limit = (
        settings.get("limit") if isinstance(settings, dict) else getattr(settings, "limit", None)
    )
    return limit if isinstance(limit, int) else None


def items_limit(limit: object) -> int | None:
    """Return ``limit`` as a number that the journal accepts, or None.

    Raises:
        InvalidArgument: ``limit`` is not an integer.
    """
    if limit is None:
        return None
    if not isinstance(limit, int):
        raise InvalidArgument(f"limit={limit!r} must be a whole number or None")
    return min(int(limit), MOST_ITEMS)


def checked_items(items: object) -> list[Any]:
    """Return a batch of items as a list. The error message does not quote an item.

    Raises:
        InvalidArgument: ``items`` is no sequence of JSON objects, but one item or a text.
    """
    if isinstance(items, (str, bytes, Mapping)) or not isinstance(items, Iterable):
        raise InvalidArgument(
            f"pass a list of items, such as {EXAMPLE}, not {type(items).__name__}; "
            "nothing was stored"
        )
    batch = list(items)
    for index, item in enumerate(batch):
        if not isinstance(item, dict):
            raise InvalidArgument(
                f"item {index} must be a dict, as in {EXAMPLE}, not {type(item).__name__}; "
                "no item of the batch was stored"
            )
    return batch


def position_of(entry: object) -> tuple[Dot, int]:
    """Return the operation of an entry, and the item's index in it.

    Raises:
        InvalidArgument: ``entry`` is not an `Entry`.
    """
    if not isinstance(entry, Entry):
        raise InvalidArgument(f"{entry!r:.80} is not an Entry; pass one from entries() or search()")
    return Dot(entry.writer, entry.counter), entry.index


def dots_of(dots: Iterable[Any]) -> list[Dot]:
    """Convert the pairs that a caller has passed to dots.

    Raises:
        InvalidArgument: an element is not a dot.
    """
    found = []
    for dot in dots:
        match dot:
            case (str() as writer, int() as counter):
                found.append(Dot(writer, counter))
            case _:
                raise InvalidArgument(
                    f"{dot!r} is not a dot; pass the dot of a parked operation: (writer, counter)"
                )
    return found
