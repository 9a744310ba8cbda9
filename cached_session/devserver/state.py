"""Everything the server knows, under one lock, and its way into and out of the journal.

State holds data and primitive changes only. What may be stored is `writes.py`, what is answered is
`queries.py`, what is lost over time is `background_jobs.py`.
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
from cached_session.devserver.events import Broker
from cached_session.devserver.faults import FaultPlan
from cached_session.devserver.memories import AgentMemories, Record
from cached_session.devserver.policy import DEFAULT_DECAY, DEFAULT_POLICY
from cached_session.devserver.responses import missing
from cached_session.devserver.storage import Journal, NoJournal
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
    """Return the namespace that holds an agent's memories."""
    return AGENT_PREFIX + agent_id


class State:
    """The server's data. Hold `lock` around any sequence of calls that must be one."""

    def __init__(
        self,
        *,
        modes: Modes | None = None,
        version: str = "0.12.3",
        journal: Journal | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.clock = Clock()
        self.faults = FaultPlan()
        self.events = Broker(self.clock, self.faults)
        self.modes = modes or Modes()
        self.version = Version(version)
        self.keys = Keyring()
        self._journal: Journal = journal or NoJournal()
        self._snapshots: dict[str, bytes] = {}
        self._empty()
        self._load()

    def _empty(self) -> None:
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
        """Take over what the journal holds from an earlier process."""
        for _, value in self._journal.load("key"):
            self.keys.add(Key(**value))
        for agent_id, _ in self._journal.load("agent"):
            self.agents[agent_id] = AgentMemories(self.modes.seed)
        for key, value in self._journal.load("memory"):
            self._place(key.partition("\0")[0], Record.load(value))
        for name, value in self._journal.load("policy"):
            self.policies[name] = value
        for name, value in self._journal.load("namespace"):
            self.namespaces[name] = value
        for session_id, value in self._journal.load("session"):
            self.sessions[session_id] = value
        for name, value in self._journal.load("config"):
            getattr(self, name).update(value)

    # Agents and memories

    def agent(self, agent_id: str) -> tuple[AgentMemories, bool]:
        """Return an agent's memories, creating it when new, and whether it was created."""
        known = self.agents.get(agent_id)
        if known is not None:
            return known, False
        self.agents[agent_id] = AgentMemories(self.modes.seed)
        self._journal.put("agent", agent_id, True)
        return self.agents[agent_id], True

    def known_agent(self, agent_id: str) -> AgentMemories:
        """Return an agent's memories for reading; unknown agents answer as the modes say."""
        known = self.agents.get(agent_id)
        if known is not None:
            return known
        mode = self.modes.unknown_agent
        if mode == "not_found" or (mode == "by_version" and not self.version.is_v0123):
            raise missing("namespace", f"agent {agent_id} not found", "NAMESPACE_NOT_FOUND")
        return AgentMemories(self.modes.seed)

    def put(self, agent_id: str, record: Record) -> None:
        """Insert or replace a memory."""
        self.agent(agent_id)
        self._place(agent_id, record)
        self.save(agent_id, record)

    def _place(self, agent_id: str, record: Record) -> None:
        self.agents[agent_id].put(record, self.clock.now())
        self.watch_expiry(agent_id, record)

    def watch_expiry(self, agent_id: str, record: Record) -> None:
        """Make sure that the record is deleted when its present expiry comes."""
        if record.expires is not None:
            heapq.heappush(self.expiries, (record.expires, agent_id, record.id))

    def save(self, agent_id: str, record: Record) -> None:
        """Hand the record's present form to the journal."""
        self._journal.put("memory", f"{agent_id}\0{record.id}", record.saved())

    def remove(self, agent_id: str, memory_id: str) -> Record | None:
        """Delete a memory and its derived sentences; None when there is none."""
        known = self.agents.get(agent_id)
        removed = known.remove(memory_id, self.clock.now()) if known is not None else None
        if known is not None and removed is not None:
            self._journal.delete("memory", f"{agent_id}\0{memory_id}")
            if known.count(with_children=True) != known.count(with_children=False):
                for child in [r.id for r in known.records.values() if r.parent == memory_id]:
                    known.remove(child, self.clock.now())
                    self._journal.delete("memory", f"{agent_id}\0{child}")
        return removed

    def evict(self, agent_id: str, which: Callable[[dict[str, Any]], bool] | Iterable[str]) -> int:
        """Lose memories without a trace or an event; return how many."""
        with self.lock:
            known = self.agents.get(agent_id)
            if known is None:
                return 0
            if callable(which):
                ids = [record.id for record in known.records.values() if which(record.doc)]
            else:
                ids = list(which)
            lost = sum(self.remove(agent_id, memory_id) is not None for memory_id in ids)
            self.commit()
            return lost

    # Policies, namespaces, sessions, settings

    def policy(self, namespace: str) -> dict[str, Any]:
        """Return the policy in force, which is the defaults until one is stored."""
        default = {**DEFAULT_POLICY, "dedup_on_store": self.modes.dedup_on_store}
        return self.policies.get(namespace, default)

    def set_policy(self, namespace: str, policy: dict[str, Any]) -> None:
        """Store a namespace's policy."""
        self.policies[namespace] = policy
        self._journal.put("policy", namespace, policy)

    def has_namespace(self, name: str) -> bool:
        """Whether a namespace exists, be it an agent's or a data namespace."""
        return name in self.namespaces or bool(self.agents_of(name))

    def agents_of(self, name: str) -> set[str]:
        """Return the agents whose memories live in the namespace: one or none."""
        agent_id = name.removeprefix(AGENT_PREFIX) if name.startswith(AGENT_PREFIX) else None
        return {agent_id} if agent_id is not None and agent_id in self.agents else set()

    def set_namespace(self, name: str, value: dict[str, Any]) -> None:
        """Create or change a data namespace."""
        self.namespaces[name] = value
        self._journal.put("namespace", name, value)

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace with all its data; no event tells of it."""
        for agent_id in self.agents_of(name):
            for memory_id in self.agents.pop(agent_id).records:
                self._journal.delete("memory", f"{agent_id}\0{memory_id}")
            self._journal.delete("agent", agent_id)
            for session in [s for s in self.sessions.values() if s["agent_id"] == agent_id]:
                del self.sessions[session["id"]]
                self._journal.delete("session", session["id"])
        if self.namespaces.pop(name, None) is not None:
            self._journal.delete("namespace", name)
        if self.policies.pop(name, None) is not None:
            self._journal.delete("policy", name)

    def save_session(self, session: dict[str, Any]) -> None:
        """Insert or update a session."""
        self.sessions[session["id"]] = session
        self._journal.put("session", session["id"], session)

    def configure(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Apply changes to the `decay` or `autopilot` settings and return them."""
        settings: dict[str, Any] = getattr(self, name)
        settings.update(changes)
        self._journal.put("config", name, settings)
        return settings

    def add_key(self, key: Key) -> Key:
        """Accept an API key from now on; the first one switches authentication on."""
        with self.lock:
            self.keys.add(key)
            self._save_key(key)
            self.commit()
            return key

    def _save_key(self, key: Key) -> None:
        if key.name != ROOT_NAME:
            self._journal.put("key", key.secret, key.as_dict())

    def remove_key(self, secret: str) -> None:
        """Refuse an API key from now on."""
        with self.lock:
            self.keys.remove(secret)
            self._journal.delete("key", secret)
            self.commit()

    # The whole

    def commit(self) -> None:
        """Make every change so far durable; called before an answer leaves."""
        self._journal.commit()

    def close(self) -> None:
        """Let the data file go."""
        with self.lock:
            self._journal.close()
            self._journal = NoJournal()

    def reset(self) -> None:
        """Forget all data (a server that kept it in memory and crashed); keys and modes stay."""
        with self.lock:
            self._empty()
            self._journal.clear()
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
                        agent_id: [record.saved() for record in known.records.values()]
                        for agent_id, known in self.agents.items()
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
        """Replace all data by a backup: whatever came after it is gone. KeyError if unknown."""
        with self.lock:
            backup = orjson.loads(self._snapshots[name])
            self.reset()
            for agent_id, records in backup["agents"].items():
                self.agent(agent_id)
                for value in records:
                    self.put(agent_id, Record.load(value))
            for namespace, policy in backup["policies"].items():
                self.set_policy(namespace, policy)
            for namespace, value in backup["namespaces"].items():
                self.set_namespace(namespace, value)
            for session in backup["sessions"].values():
                self.save_session(session)
            self.configure("decay", backup["decay"])
            self.configure("autopilot", backup["autopilot"])
            self.commit()
