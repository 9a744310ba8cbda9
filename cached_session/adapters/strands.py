"""A session repository for Strands Agents over a `SessionCache`: each Strands session is a session.

    repository = CachedSessionRepository(cache)
    manager = RepositorySessionManager("user-1", session_repository=repository)
    agent = Agent(session_manager=manager, agent_id="helper")

Strands changes what it has stored: an agent's state after each turn, a message that a guardrail
redacts. A history of operations has no place for a change, so a new item takes the place of the old
one, which is removed in the same transaction (`CachedSession.replace_items`):

- of states written apart, the one that is later in the one history holds;
- a redacted message keeps the place of the original, and the original's words are gone.

What a message is called (``message_id``) is its rank among its agent's messages on this device. The
original is found by when it was made (``created_at``), which does not change when devices meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cached_session.adapters.bridge import Bridge, shared
from cached_session.adapters.envelope import Kind, as_text, called, missing, spoken
from cached_session.cache import SessionCache
from cached_session.models import Entry

try:
    from strands.session.session_repository import SessionRepository
    from strands.types.exceptions import SessionException
    from strands.types.session import Session, SessionAgent, SessionMessage
except ModuleNotFoundError as error:
    raise missing(error, "strands", "strands") from error

if TYPE_CHECKING:
    from strands.multiagent import MultiAgentBase

__all__ = ["CachedSessionRepository"]

MESSAGE = Kind("strands.message")
SESSION = Kind("strands.session")
AGENT = Kind("strands.agent")
MULTI_AGENT = Kind("strands.multi_agent")
KINDS = {kind.name: kind for kind in (MESSAGE, SESSION, AGENT, MULTI_AGENT)}

Place = tuple[int, str, int, int]
"""Where an item stands in the one history: the same on every device."""


@dataclass(frozen=True)
class _Stored:
    """One item of a Strands session, as it was found."""

    entry: Entry
    kind: Kind
    owner: str | None
    """The agent, or group of agents, that it belongs to."""
    value: Any

    @property
    def place(self) -> Place:
        kept = self.entry.item.get("place")
        if kept is not None:
            stamp, writer, counter, index = kept
            return int(stamp, 16), writer, counter, index
        return self.entry.stamp, self.entry.writer, self.entry.counter, self.entry.index


class CachedSessionRepository(SessionRepository):
    """The Strands sessions of one cache, one message an item.

    Strands calls a repository synchronously, also from its agent's event loop: that loop stands
    still for one transaction of the journal (and, once, for the first read of a session that this
    journal has never met). What is done runs on the bridge's thread. When a method returns, its
    change is in the journal, durable and whole. The cache stays the caller's to close.

    Every method may raise `UnreadableItem` (Strands did not write something in the session; nothing
    is changed), `InvalidArgument` (JSON cannot carry what is to be stored), `SessionClosed`,
    `JournalError`, and `WouldBlock` on the bridge's own thread.
    """

    def __init__(self, cache: SessionCache, *, bridge: Bridge | None = None) -> None:
        """Make a repository; no I/O.

        Args:
            cache: where the sessions are kept.
            bridge: the thread that the calls run on; None: the process's shared one.
        """
        self._cache = cache
        self._bridge = bridge
        self._met: set[str] = set()

    # -- sessions --------------------------------------------------------------------------------

    def create_session(self, session: Session, **kwargs: Any) -> Session:
        """Record that a session began.

        Raises:
            SessionException: this device knows the session.
        """
        if self.read_session(session.session_id) is not None:
            raise SessionException(f"Session {session.session_id} already exists")
        stored = session.to_dict()
        self._add(session.session_id, SESSION.wrap(None, "(a Strands session)", stored))
        return session

    def read_session(self, session_id: str, **kwargs: Any) -> Session | None:
        """The session, if this device has anything of it. Two devices that began it apart have
        begun one session; the earlier beginning is told."""
        found = self._find(session_id)
        begun = next((one.value for one in found if one.kind is SESSION), None)
        if begun is None:
            return None
        return Session.from_dict(begun)

    # -- agents ----------------------------------------------------------------------------------

    def create_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Record an agent and its state."""
        self._set(session_id, AGENT, session_agent.agent_id, session_agent.to_dict())

    def read_agent(self, session_id: str, agent_id: str, **kwargs: Any) -> SessionAgent | None:
        """An agent with its latest state."""
        state = self._get(session_id, AGENT, agent_id)
        return None if state is None else SessionAgent.from_dict(state)

    def update_agent(self, session_id: str, session_agent: SessionAgent, **kwargs: Any) -> None:
        """Put a new state in the place of the ones that this device has. Of states that devices
        write apart, the later one holds as a whole: they are not merged.

        Raises:
            SessionException: this device does not know the agent.
        """
        previous = self._get(session_id, AGENT, session_agent.agent_id)
        if previous is None:
            raise SessionException(
                f"Agent {session_agent.agent_id} in session {session_id} does not exist"
            )
        session_agent.created_at = previous["created_at"]
        self._set(session_id, AGENT, session_agent.agent_id, session_agent.to_dict())

    # -- messages --------------------------------------------------------------------------------

    def create_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Append a message. It stands at the end of what this device has, whatever its
        ``message_id``."""
        self._add(session_id, _wrapped(agent_id, session_message))

    def read_message(
        self, session_id: str, agent_id: str, message_id: int, **kwargs: Any
    ) -> SessionMessage | None:
        """The message of this rank among the agent's."""
        if not isinstance(message_id, int):
            raise ValueError(f"message_id={message_id!r} must be an integer")
        found = self.list_messages(session_id, agent_id, limit=1, offset=max(message_id, 0))
        return found[0] if found and message_id >= 0 else None

    def update_message(
        self, session_id: str, agent_id: str, session_message: SessionMessage, **kwargs: Any
    ) -> None:
        """Put a message in the place of the one made at the same moment, whose words are gone then
        here, and elsewhere once synced.

        Raises:
            SessionException: this device has no such message.
        """
        same = [
            one
            for one in self._messages(session_id, agent_id)
            if one.value["created_at"] == session_message.created_at
        ]
        if not same:
            raise SessionException(f"Message {session_message.message_id} does not exist")
        stamp, writer, counter, index = same[-1].place
        item = _wrapped(agent_id, session_message)
        # A stamp needs more than the 53 bits that JSON numbers are good for everywhere.
        item["place"] = [f"{stamp:016x}", writer, counter, index]
        self._replace(session_id, [same[-1].entry], [item])

    def list_messages(
        self,
        session_id: str,
        agent_id: str,
        limit: int | None = None,
        offset: int = 0,
        **kwargs: Any,
    ) -> list[SessionMessage]:
        """The agent's messages in the order of the one history, numbered by it."""
        messages = []
        for rank, one in enumerate(self._messages(session_id, agent_id)):
            message = SessionMessage.from_dict(one.value)
            message.message_id = rank
            messages.append(message)
        return messages[offset:] if limit is None else messages[offset : offset + limit]

    # -- many agents -----------------------------------------------------------------------------

    def create_multi_agent(
        self, session_id: str, multi_agent: MultiAgentBase, **kwargs: Any
    ) -> None:
        """Record the state of a group of agents."""
        self._set(session_id, MULTI_AGENT, multi_agent.id, multi_agent.serialize_state())

    def read_multi_agent(
        self, session_id: str, multi_agent_id: str, **kwargs: Any
    ) -> dict[str, Any] | None:
        """The latest state of a group of agents."""
        state: dict[str, Any] | None = self._get(session_id, MULTI_AGENT, multi_agent_id)
        return state

    def update_multi_agent(
        self, session_id: str, multi_agent: MultiAgentBase, **kwargs: Any
    ) -> None:
        """As `update_agent`, for a group of agents.

        Raises:
            SessionException: this device does not know the group.
        """
        if self._get(session_id, MULTI_AGENT, multi_agent.id) is None:
            raise SessionException(
                f"MultiAgent state {multi_agent.id} in session {session_id} does not exist"
            )
        self._set(session_id, MULTI_AGENT, multi_agent.id, multi_agent.serialize_state())

    # -- the session underneath ------------------------------------------------------------------

    def _find(self, session_id: str) -> list[_Stored]:
        """All items of a session.

        Raises:
            UnreadableItem: Strands did not write one of them.
        """
        session = self._cache.session(session_id)

        async def entries() -> list[Entry]:
            if session_id not in self._met:
                await session.get_items()  # waits for one that this journal has never met
                self._met.add(session_id)
            return await session.entries()

        found = []
        for entry in (self._bridge or shared()).run_blocking(entries):
            item = entry.item
            name = item.get("type") if isinstance(item, dict) else None
            kind = KINDS.get(name, MESSAGE) if isinstance(name, str) else MESSAGE
            value = kind.unwrap(item, session_id)
            found.append(_Stored(entry, kind, item.get("owner"), value))
        return found

    def _messages(self, session_id: str, agent_id: str) -> list[_Stored]:
        # Two devices may have redacted one message: the later of the two has its place.
        at: dict[Place, _Stored] = {}
        for one in self._find(session_id):
            if one.kind is MESSAGE and one.owner == agent_id:
                at[one.place] = one
        return [at[place] for place in sorted(at)]

    def _get(self, session_id: str, kind: Kind, owner: str) -> Any:
        found = [
            one.value for one in self._find(session_id) if one.kind is kind and one.owner == owner
        ]
        return found[-1] if found else None

    def _set(self, session_id: str, kind: Kind, owner: str, state: dict[str, Any]) -> None:
        old = [
            one.entry for one in self._find(session_id) if one.kind is kind and one.owner == owner
        ]
        what = "agent" if kind is AGENT else "agents"
        item = kind.wrap(None, f"(state of the {what} {owner})", state, owner=owner)
        self._replace(session_id, old, [item])

    def _add(self, session_id: str, item: Any) -> None:
        session = self._cache.session(session_id)
        (self._bridge or shared()).run_blocking(session.add_items, [item])

    def _replace(self, session_id: str, entries: list[Entry], items: list[Any]) -> None:
        session = self._cache.session(session_id)
        (self._bridge or shared()).run_blocking(session.replace_items, entries, items)


def _wrapped(agent_id: str, message: SessionMessage) -> Any:
    stored = message.to_dict()
    if message.redact_message is not None:
        # Redacted means that the words are gone, not that they are kept beside.
        stored |= {"message": stored["redact_message"], "redact_message": None}
    said = stored["message"]
    role = said.get("role")
    blocks = said.get("content") or []
    if role == "user" and any("toolResult" in block for block in blocks):
        role = "tool"
    return MESSAGE.wrap(role, spoken(_said(blocks)), stored, owner=agent_id)


def _said(blocks: list[dict[str, Any]]) -> Iterator[str]:
    for block in blocks:
        if isinstance(block.get("text"), str):
            yield block["text"]
        elif "toolUse" in block:
            yield called(block["toolUse"].get("name"), block["toolUse"].get("input"))
        elif "toolResult" in block:
            yield from _said(block["toolResult"].get("content") or [])
        elif "json" in block:
            yield as_text(block["json"])
        else:
            yield from (f"[{kind}]" for kind in block)
