"""A session repository for Strands Agents, stored in a `SessionCache`.

Each Strands session is a `CachedSession` with the same id.

    repository = CachedSessionRepository(cache)
    manager = RepositorySessionManager("user-1", session_repository=repository)
    agent = Agent(session_manager=manager, agent_id="helper")

Strands updates what it has stored: an agent's state after each turn, and a message that a guardrail
redacts. A history has no update operation. Instead, one transaction appends a new item and removes
the old one (`CachedSession.replace_items`):

- If two devices wrote different states, the state that is later in the history is used.
- A redacted message keeps the position of the original, whose text is removed.

Strands stores the messages of an invocation one at a time. They are one turn of the history, also
if other agents and devices write meanwhile: a tool result joins the turn of its call, and the other
messages join the open turn of their agent.

The ``message_id`` of a message is its rank among its agent's messages on this device. The rank can
change when messages of another device arrive. So an update finds its message by the
``created_at``, which does not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cached_session.adapters.bridge import Bridge, shared_bridge
from cached_session.adapters.item_format import (
    ItemFormat,
    explain_missing,
    format_call,
    join_texts,
    to_text,
)
from cached_session.cache import KeptTurns, SessionCache
from cached_session.models import Entry

try:
    from strands.session.session_repository import SessionRepository
    from strands.types.exceptions import SessionException
    from strands.types.session import Session, SessionAgent, SessionMessage
except ModuleNotFoundError as error:
    raise explain_missing(error, "strands", "strands") from error

if TYPE_CHECKING:
    from strands.multiagent import MultiAgentBase

__all__ = ["CachedSessionRepository"]

MESSAGE = ItemFormat("strands.message")
SESSION = ItemFormat("strands.session")
AGENT = ItemFormat("strands.agent")
MULTI_AGENT = ItemFormat("strands.multi_agent")
FORMATS = {each.type: each for each in (MESSAGE, SESSION, AGENT, MULTI_AGENT)}

Position = tuple[int, str, int, int, str, int, int]
"""The sort key of an item in the history, identical on every device: stamp, writer and counter of
the turn, then stamp, writer, counter and index of the item."""


@dataclass(frozen=True)
class _StoredItem:
    """A decoded item of a Strands session."""

    entry: Entry
    item_format: ItemFormat
    owner: str | None
    """Id of the agent, or the group of agents, of the item; None for the item of the session."""
    value: Any

    @property
    def position(self) -> Position:
        """The position among the messages; a redacted message has the position of its original."""
        *turn, stamp, writer, counter, index = self.place
        # Positions that an older version stored have no turn. In that version each append was its
        # own turn.
        key = turn[0].split("-") if turn else (stamp, writer, counter)
        return (int(key[0], 16), key[1], int(key[2]), int(stamp, 16), writer, counter, index)

    @property
    def place(self) -> list[Any]:
        """The position as a replacement of this item stores it."""
        original: list[Any] | None = self.entry.item.get("place")
        if original is not None:
            return original
        entry = self.entry
        # Hexadecimal, because not every JSON parser keeps integers of more than 53 bits exact.
        return [entry.turn, f"{entry.stamp:016x}", entry.writer, entry.counter, entry.index]


class CachedSessionRepository(SessionRepository):
    """The Strands sessions of one cache. Each message and each state is an item.

    Strands calls a repository synchronously, even on its agent's event loop. Such a call blocks the
    loop for one transaction of the journal, and for the first read of a session that is not in this
    journal yet. The work runs on the bridge's thread. When a method returns, its change is durable
    in the journal; it is never stored in part. The caller closes the cache.

    Every method may raise `UnreadableItem` (Strands did not write an item of the session; nothing
    is changed), `InvalidArgument` (JSON cannot represent the value), `SessionClosed`,
    `JournalError`, and on the bridge's own thread `WouldBlock`.
    """

    def __init__(self, cache: SessionCache, *, bridge: Bridge | None = None) -> None:
        """Create a repository, without I/O.

        Args:
            cache: stores the sessions.
            bridge: runs the calls. Default: the shared bridge of this process.
        """
        self._cache = cache
        self._kept = KeptTurns(cache)
        self._bridge = bridge
        self._hydrated: set[str] = set()

    # -- sessions --------------------------------------------------------------------------------

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Store a new session.

        Raises:
            SessionException: the session exists on this device.
        """
        if self.read_session(session.session_id) is not None:
            raise SessionException(f"Session {session.session_id} already exists")
        stored = session.to_dict()
        self._add(session.session_id, SESSION.encode(None, "(a Strands session)", stored), None)
        return session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """Return the session; None if this device does not have it.

        If two devices created it independently, return the one that is earlier in the history.
        """
        items = self._read_items(session_id)
        created = next((item.value for item in items if item.item_format is SESSION), None)
        return None if created is None else Session.from_dict(created)

    # -- agents ----------------------------------------------------------------------------------

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Store an agent and its state."""
        self._set_state(session_id, AGENT, session_agent.agent_id, session_agent.to_dict())

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """Return an agent with its latest state; None if this device does not have the agent."""
        state = self._get_state(session_id, AGENT, agent_id)
        return None if state is None else SessionAgent.from_dict(state)

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Replace the state of an agent.

        If two devices write different states, the state that is later in the history is used.
        States are not merged.

        Raises:
            SessionException: the agent does not exist on this device.
        """
        previous = self._get_state(session_id, AGENT, session_agent.agent_id)
        if previous is None:
            raise SessionException(
                f"Agent {session_agent.agent_id} in session {session_id} does not exist"
            )
        session_agent.created_at = previous["created_at"]
        self._set_state(session_id, AGENT, session_agent.agent_id, session_agent.to_dict())

    # -- messages --------------------------------------------------------------------------------

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Append a message to the turn that the agent has open, or to that of the tool's call.

        Otherwise the message opens a turn at the end of this device's history. Its ``message_id``
        is ignored.
        """
        self._add(session_id, _encode(agent_id, session_message), agent_id)

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """Return the message with this rank among the agent's messages.

        Return None if the agent has no such message on this device.
        """
        if not isinstance(message_id, int):
            raise ValueError(f"message_id={message_id!r} must be an integer")
        found = self.list_messages(session_id, agent_id, limit=1, offset=max(message_id, 0))
        return found[0] if found and message_id >= 0 else None

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Replace the message with the same ``created_at``, and keep its position.

        The text of the old message is removed here, and on other devices with the next sync.

        Raises:
            SessionException: the message does not exist on this device.
        """
        originals = [
            item
            for item in self._read_messages(session_id, agent_id)
            if item.value["created_at"] == session_message.created_at
        ]
        if not originals:
            raise SessionException(f"Message {session_message.message_id} does not exist")
        original = originals[-1]
        replacement = _encode(agent_id, session_message)
        replacement["place"] = original.place
        self._replace(session_id, [original.entry], [replacement], agent_id)

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """Return the agent's messages in the order of the history; ``message_id`` is the rank."""
        messages = []
        for rank, item in enumerate(self._read_messages(session_id, agent_id)):
            message = SessionMessage.from_dict(item.value)
            message.message_id = rank
            messages.append(message)
        return messages[offset:] if limit is None else messages[offset : offset + limit]

    # -- groups of agents ------------------------------------------------------------------------

    def create_multi_agent(
        self, session_id: str, multi_agent: MultiAgentBase, **kwargs: Any
    ) -> None:
        """Store the state of a group of agents."""
        self._set_state(session_id, MULTI_AGENT, multi_agent.id, multi_agent.serialize_state())

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> dict[str, Any] | None:
        """Return the latest state of a group of agents; None if this device has no such state."""
        state: dict[str, Any] | None = self._get_state(session_id, MULTI_AGENT, multi_agent_id)
        return state

    def update_multi_agent(
        self, session_id: str, multi_agent: MultiAgentBase, **kwargs: Any
    ) -> None:
        """Replace the state of a group of agents, as `update_agent`.

        Raises:
            SessionException: the group does not exist on this device.
        """
        if self._get_state(session_id, MULTI_AGENT, multi_agent.id) is None:
            raise SessionException(
                f"MultiAgent state {multi_agent.id} in session {session_id} does not exist"
            )
        self._set_state(session_id, MULTI_AGENT, multi_agent.id, multi_agent.serialize_state())

    # -- reading and writing items ---------------------------------------------------------------

    def _read_items(self, session_id: str) -> list[_StoredItem]:
        """Return all items of a session in order.

        Raises:
            UnreadableItem: Strands did not write one of the items.
        """
        session = self._cache.session(session_id)

        async def entries() -> list[Entry]:
            if session_id not in self._hydrated:
                await session.get_items()  # waits for the first hydration, which `entries` does not
                self._hydrated.add(session_id)
            return await session.entries()

        items = []
        for entry in (self._bridge or shared_bridge()).run_blocking(entries):
            item = entry.item
            name = item.get("type") if isinstance(item, dict) else None
            item_format = FORMATS.get(name, MESSAGE) if isinstance(name, str) else MESSAGE
            value = item_format.decode(item, session_id)
            items.append(_StoredItem(entry, item_format, item.get("owner"), value))
        return items

    def _read_messages(self, session_id: str, agent_id: str) -> list[_StoredItem]:
        # If two devices have redacted the same message, use the later item in the history.
        by_position: dict[Position, _StoredItem] = {}
        for item in self._read_items(session_id):
            if item.item_format is MESSAGE and item.owner == agent_id:
                by_position[item.position] = item
        return [by_position[position] for position in sorted(by_position)]

    def _read_states(
        self, session_id: str, item_format: ItemFormat, owner: str
    ) -> list[_StoredItem]:
        return [
            item
            for item in self._read_items(session_id)
            if item.item_format is item_format and item.owner == owner
        ]

    def _get_state(self, session_id: str, item_format: ItemFormat, owner: str) -> Any:
        states = self._read_states(session_id, item_format, owner)
        return states[-1].value if states else None

    def _set_state(
        self, session_id: str, item_format: ItemFormat, owner: str, state: dict[str, Any]
    ) -> None:
        old = [item.entry for item in self._read_states(session_id, item_format, owner)]
        noun = "agent" if item_format is AGENT else "agents"
        item = item_format.encode(None, f"(state of the {noun} {owner})", state, owner=owner)
        self._replace(session_id, old, [item], owner)

    def _add(self, session_id: str, item: Any, owner: str | None) -> None:
        session = self._kept.session(session_id, owner)
        (self._bridge or shared_bridge()).run_blocking(session.add_items, [item])

    def _replace(self, session_id: str, entries: list[Entry], items: list[Any], owner: str) -> None:
        session = self._kept.session(session_id, owner)
        (self._bridge or shared_bridge()).run_blocking(session.replace_items, entries, items)


def _encode(agent_id: str, message: SessionMessage) -> Any:
    stored = message.to_dict()
    if message.redact_message is not None:
        # Store the redacted text only: the original text must not remain in the journal.
        stored |= {"message": stored["redact_message"], "redact_message": None}
    content = stored["message"]
    role = content.get("role")
    blocks = content.get("content") or []
    if role == "user" and any("toolResult" in block for block in blocks):
        role = "tool"
    return MESSAGE.encode(role, join_texts(_texts(blocks)), stored, owner=agent_id)


def _texts(blocks: list[dict[str, Any]]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block.get("text"), str):
            yield block["text"]
        elif "toolUse" in block:
            yield format_call(block["toolUse"].get("name"), block["toolUse"].get("input"))
        elif "toolResult" in block:
            yield from _texts(block["toolResult"].get("content") or [])
        elif "json" in block:
            yield to_text(block["json"])
        else:
            yield from (f"[{kind}]" for kind in block)
