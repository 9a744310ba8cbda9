"""What the server loses on its own as its clock moves: expiry, decay, deduplication.

`housekeeping` runs before each request and each inspection, so a moved clock shows at once and
nothing here needs a timer.
"""

from __future__ import annotations

import heapq
from typing import Any

from cached_session.devserver import sessions
from cached_session.devserver.memories import Record
from cached_session.devserver.policy import decayed, similarity, words
from cached_session.devserver.state import State, namespace_of

DECAY_INTERVAL_SECONDS = 3600


def housekeeping(state: State) -> None:
    """Delete what has expired, then run each engine whose interval has passed."""
    expire(state)
    sessions.end_idle(state)
    if _is_due(state, "decay", DECAY_INTERVAL_SECONDS):
        decay(state)
    for agent_id in list(state.agents):
        _consolidate(state, agent_id)
    _autopilot(state)


def _is_due(state: State, engine: str, interval: float) -> bool:
    """Whether an engine's interval has passed; the first look only starts it."""
    now = state.clock.now()
    last = state.last_cycle.setdefault(engine, now)
    if now - last < interval:
        return False
    state.last_cycle[engine] = now
    return True


def expire(state: State) -> int:
    """Hard-delete every memory whose time has come; no event tells of it."""
    now = state.clock.now()
    expired = 0
    while state.expiries and state.expiries[0][0] <= now:
        _, agent_id, memory_id = heapq.heappop(state.expiries)
        known = state.agents.get(agent_id)
        record = known.records.get(memory_id) if known is not None else None
        # The entry may be older than a replacement of the record or an extension of its life.
        if record is not None and record.expires is not None and record.expires <= now:
            state.remove(agent_id, memory_id)
            expired += 1
    state.totals["expired"] += expired
    return expired


def decay(state: State) -> int:
    """Lower every importance by its type's curve; delete what falls under the minimum."""
    now = state.clock.now()
    half_life = float(state.decay["half_life_hours"])
    minimum = float(state.decay["min_importance"])
    protected = state.modes.decay_protects_above
    deleted = 0
    for agent_id, known in state.agents.items():
        policy = state.policy(namespace_of(agent_id))
        for record in list(known.records.values()):
            if protected is not None and record.base_importance > protected:
                continue
            curve = policy[f"{record.doc['memory_type']}_decay"]
            if curve == "flat":
                continue
            age = now - record.doc["updated_at"]
            left = decayed(curve, record.base_importance, age, half_life)
            if left < minimum:
                state.remove(agent_id, record.id)
                deleted += 1
            else:
                record.doc["importance"] = round(left, 6)
    state.totals["decayed"] += deleted
    return deleted


def _consolidate(state: State, agent_id: str) -> None:
    """Merge near-duplicates of one namespace when its policy asks for it."""
    namespace = namespace_of(agent_id)
    policy = state.policies.get(namespace)
    if policy is None or not policy["consolidation_enabled"]:
        return
    if not _is_due(state, f"consolidate:{agent_id}", policy["consolidation_interval_hours"] * 3600):
        return
    merged = fold_duplicates(
        state, agent_id, policy["consolidation_threshold"], "consolidation", cross_session=True
    )
    state.set_policy(
        namespace, {**policy, "consolidated_count": policy["consolidated_count"] + merged}
    )


def _autopilot(state: State) -> None:
    """Fold duplicates in every agent, when the operator switched that on.

    Servers before 0.12.3 have no `dedup_mode`: there, `enabled` alone is enough.
    """
    config = state.autopilot
    switched_on = config["dedup_mode"] == "merge" or not state.version.is_v0123
    if not config["enabled"] or not switched_on:
        return
    if _is_due(state, "dedup", config["dedup_interval_hours"] * 3600):
        for agent_id in list(state.agents):
            fold_duplicates(
                state,
                agent_id,
                config["dedup_threshold"],
                "deduplication",
                cross_session=config["dedup_cross_session"],
            )


def fold_duplicates(
    state: State, agent_id: str, threshold: float, kind: str, *, cross_session: bool
) -> int:
    """Delete each memory that is a near-duplicate of an older one; return how many.

    The copies stay in the trash for its retention, from where a client can restore them.
    """
    known = state.agents[agent_id]
    survivors: list[Record] = []
    folded = 0
    for record in reversed(list(known.newest(with_children=False))):
        twin = _twin(survivors, record, threshold, cross_session)
        if twin is None:
            survivors.append(record)
            continue
        _trash(state, agent_id, record, twin, kind)
        folded += 1
    if kind == "consolidation":
        state.totals["consolidated"] += folded
    else:
        state.totals["dedup_removed"] += folded
    return folded


def _twin(
    survivors: list[Record], record: Record, threshold: float, cross_session: bool
) -> Record | None:
    bag = words(record.doc["content"])
    for other in survivors:
        if not cross_session and other.doc.get("session_id") != record.doc.get("session_id"):
            continue
        if similarity(bag, words(other.doc["content"])) >= threshold:
            return other
    return None


def _trash(state: State, agent_id: str, record: Record, twin: Record, kind: str) -> None:
    now = int(state.clock.now())
    entry: dict[str, Any] = {
        "id": record.id,
        "kind": kind,
        "survivor_id": twin.id,
        "deleted_at": now,
        "restorable_until": now + int(state.autopilot["trash_retention_hours"] * 3600),
    }
    if "session_id" in record.doc:
        entry["session_id"] = record.doc["session_id"]
    state.trash[agent_id, record.id] = {"entry": entry, "record": record}
    state.remove(agent_id, record.id)
    if kind == "consolidation":
        state.events.publish("consolidated", agent_id, memory_id=twin.id)
    else:
        state.events.publish("deduplicated", agent_id, memory_id=record.id)
