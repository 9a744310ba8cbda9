"""A model of Dakera's memories, without a clock and a network of its own.

It lists newest first with an arbitrary order within a second (the same in every call, or another in
each), deletes by id with a count, stores with replacement, and can answer with the state of some
seconds ago, like a replica that lags.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Literal

import orjson

from cached_session.remote.errors import RemoteError, judge

__all__ = ["SimServer", "failure"]

Existing = Literal["replace", "refuse", "ignore"]


def failure(status: int | None, reason: str, retry_after: float | None = None) -> RemoteError:
    """Return the error of an HTTP status (None: no answer), as the real client maps it."""
    verdict, scope = judge(status)
    return RemoteError(verdict, reason, scope=scope, retry_after=retry_after, status=status)


class SimServer:
    """Memories of agents, by id, with their earlier versions."""

    def __init__(
        self, now: Callable[[], float], random: Random, existing: Existing, *, shuffles: bool
    ) -> None:
        self._now = now
        self._random = random
        self._existing = existing
        self._shuffles = shuffles
        self._past: dict[str, dict[str, list[tuple[float, int, bytes | None]]]] = {}
        """agent -> id -> versions as (since, created_at, memory or None)."""
        self.guarded: set[str] = set()
        self.evicted: set[str] = set()
        """Times at which memories were lost."""
        self._forgotten: dict[str, float] = {}
        """The time at which each memory was last deleted on request."""
        self.on_forget: Callable[[str, str], None] = lambda agent, identity: None
        """Called with each memory before it is deleted on request."""
        self.poison: str | None = None
        """Content with this text is refused permanently."""

    def second(self) -> int:
        """Return the time of the server's clock in seconds."""
        return int(self._now())

    # -- requests of a client --------------------------------------------------------------------

    def store(self, agent: str, memories: Iterable[dict[str, Any]]) -> set[str]:
        """Store all memories or none, and return the ids that are held now.

        Raises:
            RemoteError: a memory is refused, or exists and may not be replaced.
        """
        batch = list(memories)
        held = self._past.setdefault(agent, {})
        if not batch or len(batch) > 1000:
            raise failure(400, "between 1 and 1000 memories")
        ids = [memory["id"] for memory in batch]
        if len(set(ids)) != len(ids):
            raise failure(400, "an id twice in one batch")
        if self.poison and any(self.poison in memory["content"] for memory in batch):
            raise failure(400, "content refused")
        if self._existing == "refuse" and any(self._read(agent, i, 0.0) for i in ids):
            raise failure(409, "a memory with this id exists")
        created = int(self._now())
        for memory in batch:
            identity = memory["id"]
            if self._existing == "ignore" and self._read(agent, identity, 0.0):
                continue
            kept = {**memory, "agent_id": agent, "created_at": created}
            kept.pop("ttl_seconds", None)
            held.setdefault(identity, []).append((self._now(), created, orjson.dumps(kept)))
        return set(ids)

    def forget(self, agent: str, ids: Iterable[str]) -> int:
        """Delete memories, and return the number that this request deleted."""
        held = self._past.get(agent, {})
        count = 0
        for identity in ids:
            if self._read(agent, identity, 0.0) is not None:
                self.on_forget(agent, identity)
                held[identity].append((self._now(), 0, None))
                self._forgotten[identity] = self._now()
                count += 1
        return count

    def evict(self, agent: str, ids: Iterable[str]) -> None:
        """Lose memories without a request."""
        for identity in ids:
            self._past[agent][identity].append((self._now(), 0, None))
            self.evicted.add(identity)

    def rewind(self, seconds: float) -> int:
        """Return to the state of some seconds ago, as after the restore of a backup, and return the
        number of changed memories. Lost memories count as evicted, and memories deleted since are
        back."""
        moment, changed = self._now() - seconds, 0
        for agent, held in self._past.items():
            for identity, versions in held.items():
                now, then = self._read(agent, identity, 0.0), self._read(agent, identity, seconds)
                if now == then:
                    continue
                changed += 1
                if then is None:
                    self.evicted.add(identity)
                kept = [version for version in versions if version[0] <= moment]
                versions.append((self._now(), *(kept[-1][1:] if kept else (0, None))))
        return changed

    def fetch(self, agent: str, identity: str, lag: float) -> dict[str, Any] | None:
        """Return one memory, as of ``lag`` seconds ago."""
        found = self._read(agent, identity, lag)
        return None if found is None else orjson.loads(found[1])

    def page(
        self, agent: str, offset: int, limit: int, lag: float, *, hides: bool = False
    ) -> list[dict[str, Any]]:
        """Return a listing page, as of ``lag`` seconds ago. ``hides``: without some operations, but
        not without any writer's last one, which would leave no gap."""
        found = []
        hidden = self._hidden(agent) if hides else ()
        for identity in self._past.get(agent, {}):
            memory = self._read(agent, identity, lag)
            if memory is not None and _name(identity) not in hidden:
                chance = self._random.random() if self._shuffles else _mixed(identity)
                found.append((-memory[0], chance, memory[1]))
        found.sort(key=lambda row: row[:2])
        return [orjson.loads(memory) for _, _, memory in found[offset : offset + limit]]

    def _hidden(self, agent: str) -> frozenset[tuple[str, int]]:
        """Return the operations that some readers are never shown: one in three, and never the last
        one of a writer."""
        names = {_name(identity) for identity in self.ids(agent) if not identity.startswith("csn")}
        last: dict[str, int] = {}
        for writer, counter in names:
            last[writer] = max(last.get(writer, 0), counter)
        return frozenset(
            (writer, counter)
            for writer, counter in names
            if counter < last[writer] and _mixed(f"{writer}-{counter}") % 3 == 0
        )

    def tagged(self, agent: str, tag: str, lag: float) -> list[dict[str, Any]]:
        """Return the memories with a tag, as of ``lag`` seconds ago."""
        found = [self.fetch(agent, identity, lag) for identity in self._past.get(agent, {})]
        return [memory for memory in found if memory is not None and tag in memory["tags"]]

    def guard(self, agent: str) -> None:
        self.guarded.add(agent)

    # -- access for the tests --------------------------------------------------------------------

    def ids(self, agent: str) -> list[str]:
        """Return every memory held now, in a fixed order."""
        return sorted(i for i in self._past.get(agent, {}) if self._read(agent, i, 0.0))

    def agents(self) -> list[str]:
        return sorted(self._past)

    def memory(self, agent: str, identity: str) -> dict[str, Any] | None:
        return self.fetch(agent, identity, 0.0)

    def newest(self, agent: str, ids: Iterable[str]) -> list[str]:
        """Return the item among these memories that was stored last."""
        stored = [
            (found[0], identity)
            for identity in ids
            if (found := self._read(agent, identity, 0.0)) is not None
            and orjson.loads(found[1])["metadata"].get("cs_op") == "append"
        ]
        return [max(stored)[1]] if stored else []

    def time(self) -> float:
        return self._now()

    def had(self, agent: str, identity: str) -> bool:
        """Return whether a memory was ever stored."""
        return identity in self._past.get(agent, {})

    def forgot(self, identity: str, since: float) -> bool:
        """Return whether a memory was deleted on request since a time."""
        return self._forgotten.get(identity, 0.0) >= since

    def _read(self, agent: str, identity: str, lag: float) -> tuple[int, bytes] | None:
        moment = self._now() - lag
        for since, created, memory in reversed(self._past.get(agent, {}).get(identity, ())):
            if since <= moment:
                return None if memory is None else (created, memory)
        return None


def _name(identity: str) -> tuple[str, int]:
    """Return the writer and the counter of a memory's operation."""
    _, _, writer, counter, *_ = identity.split("-")
    return writer, int(counter)


def _mixed(identity: str) -> float:
    """Return a number that is unrelated to the order of writing."""
    return zlib.crc32(identity.encode())
