"""The data of the server under one lock, and its storage.

`State` contains the data and methods for simple changes. `writes.py` decides what is stored,
`queries.py` what is read, and `background_jobs.py` what is deleted over time.
"""

from __future__ import annotations

import heapq
import threading
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from cached_session.devserver.auth import ROOT_NAME, Key, Keyring
from cached_session.devserver.clock import Clock
from cached_session.devserver.emulation import Modes, Version
from cached_session.devserver.events import EventBroker
from cached_session.devserver.faults import FaultPlan
from cached_session.devserver.memories import AgentMemories, Record
from cached_session.devserver.policy import DEFAULT_DECAY, DEFAULT_POLICY
from cached_session.devserver.responses import missing
from cached_session.devserver.storage import NoStorage, Storage
from cached_session.devserver.validation import AGENT_PREFIX

DEFAULT_AUTOPILOT: dict[str, Any] = {
    "enabled": True,
    "dedup_threshold": 0.93,
    "dedup_interval_hours": 6,
    "consolidation_interval_hours": 12,
    "dedup_mode": "off",
    "dedup_cross_session": False,
    "consolidate_cross_session": False,
    "trash_retention_hours": 168,
}


def namespace_of(agent_id: str) -> str:
    """Return the namespace of an agent's memories."""
    return AGENT_PREFIX + agent_id


class State:
    """The data of the server. Hold `lock` during a sequence of calls that must be atomic."""

    def __init__(
        self,
        *,
        modes: Modes | None = None,
        version: str = "0.12.3",
        storage: Storage | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.clock = Clock()
        self.faults = FaultPlan()
        self.events = EventBroker(self.clock, self.faults)
        self.modes = modes or Modes()
        self.version = Version(version)
        self.keys = Keyring()
        self._storage: Storage = storage or NoStorage()
        self._snapshots: dict[str, bytes] = {}
        self._clear()
        self._load()

    def _clear(self) -> None:
        self.agents: dict[str, AgentMemories] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.namespaces: dict[str, dict[str, Any]] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.trash: dict[tuple[str, str], dict[str, Any]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.decay = dict(DEFAULT_DECAY)
        self.autopilot = dict(DEFAULT_AUTOPILOT)
        self.totals = {"dedup_removed": 0, "consolidated": 0, "decayed": 0, "expired": 0}
        self.last_cycle: dict[str, float] = {}
        self.expiries: list[tuple[float, str, str]] = []
        self.store_times: dict[str, list[float]] = {}

    def _load(self) -> None:
        """Load the data that an earlier process stored."""
        for _, value in self._storage.load("key"):
            self.keys.add(Key(**value))
        for agent_id, _ in self._storage.load("agent"):
            self.agents[agent_id] = AgentMemories(self.modes.seed)
        for key, value in self._storage.load("memory"):
            self._insert(key.partition("\0")[0], Record.from_json(value))
        for name, value in self._storage.load("policy"):
            self.policies[name] = value
        for name, value in self._storage.load("namespace"):
            self.namespaces[name] = value
        for session_id, value in self._storage.load("session"):
            self.sessions[session_id] = value
        for name, value in self._storage.load("config"):
            getattr(self, name).update(value)

    # Agents and memories

    def get_or_create_agent(self, agent_id: str) -> tuple[AgentMemories, bool]:
        """Return the memories of an agent, and whether the agent was created by this call."""
        memories = self.agents.get(agent_id)
        if memories is not None:
            return memories, False
        self.agents[agent_id] = AgentMemories(self.modes.seed)
        self._storage.put("agent", agent_id, True)
        return self.agents[agent_id], True

    def agent_to_read(self, agent_id: str) -> AgentMemories:
        """Return an agent's memories.

        If the agent is unknown, return no memories or raise a 404; `Modes` decides.
        """
        memories = self.agents.get(agent_id)
        if memories is not None:
            return memories
        mode = self.modes.unknown_agent
        if mode == "not_found" or (mode == "by_version" and not self.version.is_v0123):
            raise missing("namespace", f"agent {agent_id} not found", "NAMESPACE_NOT_FOUND")
        return AgentMemories(self.modes.seed)

    def put(self, agent_id: str, record: Record) -> None:
        """Insert or replace a memory, create its agent if needed, and store the change."""
        self.get_or_create_agent(agent_id)
        self._insert(agent_id, record)
        self.save(agent_id, record)

    def _insert(self, agent_id: str, record: Record) -> None:
        """Insert or replace a memory without storing the change."""
        self.agents[agent_id].put(record, self.clock.now())
        self.schedule_expiry(agent_id, record)

    def schedule_expiry(self, agent_id: str, record: Record) -> None:
        """Schedule the deletion of the record at its current expiry."""
        if record.expires is not None:
            heapq.heappush(self.expiries, (record.expires, agent_id, record.id))

    def save(self, agent_id: str, record: Record) -> None:
        """Store the current content of the record."""
        self._storage.put("memory", f"{agent_id}\0{record.id}", record.to_json())

    def remove(self, agent_id: str, memory_id: str) -> Record | None:
        """Delete a memory with its derived sentences and return it; None if it does not exist."""
        memories = self.agents.get(agent_id)
        removed = memories.remove(memory_id, self.clock.now()) if memories is not None else None
        if memories is not None and removed is not None:
            self._storage.delete("memory", f"{agent_id}\0{memory_id}")
            if memories.count(with_children=True) != memories.count(with_children=False):
                for child in [r.id for r in memories.records.values() if r.parent == memory_id]:
                    memories.remove(child, self.clock.now())
                    self._storage.delete("memory", f"{agent_id}\0{child}")
        return removed

    def evict(self, agent_id: str, which: Callable[[dict[str, Any]], bool] | Iterable[str]) -> int:
        """Delete memories by a predicate or by ids, without events; return their number."""
        with self.lock:
            memories = self.agents.get(agent_id)
            if memories is None:
                return 0
            if callable(which):
                ids = [record.id for record in memories.records.values() if which(record.doc)]
            else:
                ids = list(which)
            deleted = sum(self.remove(agent_id, memory_id) is not None for memory_id in ids)
            self.commit()
            return deleted

    # Policies, namespaces, sessions, settings

    def policy(self, namespace: str) -> dict[str, Any]:
        """Return the policy of a namespace, or the defaults if none was stored."""
        default = {**DEFAULT_POLICY, "dedup_on_store": self.modes.dedup_on_store}
        return self.policies.get(namespace, default)

    def set_policy(self, namespace: str, policy: dict[str, Any]) -> None:
        """Store the policy of a namespace."""
        self.policies[namespace] = policy
        self._storage.put("policy", namespace, policy)

    def has_namespace(self, name: str) -> bool:
        """Return whether an agent's namespace or a data namespace has this name."""
        return name in self.namespaces or bool(self.agents_of(name))

    def agents_of(self, name: str) -> set[str]:
        """Return the agent of a namespace, or an empty set for any other name."""
        agent_id = name.removeprefix(AGENT_PREFIX) if name.startswith(AGENT_PREFIX) else None
        return {agent_id} if agent_id is not None and agent_id in self.agents else set()

    def set_namespace(self, name: str, value: dict[str, Any]) -> None:
        """Create or change a data namespace."""
        self.namespaces[name] = value
        self._storage.put("namespace", name, value)

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace with all its data, without an event."""
        for agent_id in self.agents_of(name):
            for memory_id in self.agents.pop(agent_id).records:
                self._storage.delete("memory", f"{agent_id}\0{memory_id}")
            self._storage.delete("agent", agent_id)
            for session in [s for s in self.sessions.values() if s["agent_id"] == agent_id]:
                del self.sessions[session["id"]]
                self._storage.delete("session", session["id"])
        if self.namespaces.pop(name, None) is not None:
            self._storage.delete("namespace", name)
        if self.policies.pop(name, None) is not None:
            self._storage.delete("policy", name)

    def save_session(self, session: dict[str, Any]) -> None:
        """Insert or update a session."""
        self.sessions[session["id"]] = session
        self._storage.put("session", session["id"], session)

    def configure(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Apply changes to the `decay` or `autopilot` settings and return the settings."""
        settings: dict[str, Any] = getattr(self, name)
        settings.update(changes)
        self._storage.put("config", name, settings)
        return settings

    def add_key(self, key: Key) -> Key:
        """Add an API key; the first key switches authentication on."""
        with self.lock:
            self.keys.add(key)
            self._save_key(key)
            self.commit()
            return key

    def _save_key(self, key: Key) -> None:
        if key.name != ROOT_NAME:
            self._storage.put("key", key.secret, key.as_dict())

    def remove_key(self, secret: str) -> None:
        """Remove an API key."""
        with self.lock:
            self.keys.remove(secret)
            self._storage.delete("key", secret)
            self.commit()

    # All data

    def commit(self) -> None:
        """Write all changes to the storage; called before a response is sent."""
        self._storage.commit()

    def close(self) -> None:
        """Close the data file; later changes are not stored."""
        with self.lock:
            self._storage.close()
            self._storage = NoStorage()

    def reset(self) -> None:
        """Delete all data, as a crash of a server without a data file does; keep keys and modes."""
        with self.lock:
            self._clear()
            self._storage.clear()
            for key in self.keys.all():
                self._save_key(key)
            self.commit()

    def snapshot(self) -> str:
        """Take a backup of all data and return its name."""
        with self.lock:
            name = f"backup-{uuid.uuid4().hex[:12]}"
            self._snapshots[name] = orjson.dumps(
                {
                    "agents": {
                        agent_id: [record.to_json() for record in memories.records.values()]
                        for agent_id, memories in self.agents.items()
                    },
                    "policies": self.policies,
                    "namespaces": self.namespaces,
                    "sessions": self.sessions,
                    "decay": self.decay,
                    "autopilot": self.autopilot,
                }
            )
            return name

    def restore(self, name: str) -> None:
        """Replace all data with a backup.

        Raises:
            KeyError: the backup is unknown; no data was changed.
        """
        with self.lock:
            backup = orjson.loads(self._snapshots[name])
            self.reset()
            for agent_id, records in backup["agents"].items():
                self.get_or_create_agent(agent_id)
                for value in records:
                    self.put(agent_id, Record.from_json(value))
            for namespace, policy in backup["policies"].items():
                self.set_policy(namespace, policy)
            for namespace, value in backup["namespaces"].items():
                self.set_namespace(namespace, value)
            for session in backup["sessions"].values():
                self.save_session(session)
            self.configure("decay", backup["decay"])
            self.configure("autopilot", backup["autopilot"])
            self.commit()
