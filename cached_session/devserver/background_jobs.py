"""Background jobs of the server: expiry, idle sessions, decay, consolidation, deduplication.

`run_due_jobs` runs before each request and each inspection, so a change of the clock takes effect
immediately and no timer is needed.
"""

from __future__ import annotations

import heapq
from typing import Any

from cached_session.devserver import sessions
from cached_session.devserver.memories import Record
from cached_session.devserver.policy import decayed_importance, similarity, word_counts
from cached_session.devserver.state import State, namespace_of

DECAY_INTERVAL_SECONDS = 3600


def run_due_jobs(state: State) -> None:
    """Delete expired memories, end idle sessions, and run each job whose interval has passed."""
    delete_expired(state)
    sessions.end_idle(state)
    if _is_due(state, "decay", DECAY_INTERVAL_SECONDS):
        apply_decay(state)
    for agent_id in list(state.agents):
        _consolidate(state, agent_id)
    _run_autopilot(state)


def _is_due(state: State, job: str, interval: float) -> bool:
    """Return whether a job is due: `interval` seconds after its last run or the first call."""
    now = state.clock.now()
    last = state.last_cycle.setdefault(job, now)
    if now - last < interval:
        return False
    state.last_cycle[job] = now
    return True


def delete_expired(state: State) -> int:
    """Delete every expired memory, publish no event, and return the number of deletions."""
    now = state.clock.now()
    expired = 0
    while state.expiries and state.expiries[0][0] <= now:
        _, agent_id, memory_id = heapq.heappop(state.expiries)
        memories = state.agents.get(agent_id)
        record = memories.records.get(memory_id) if memories is not None else None
        # The queue entry may be outdated: the record may have been replaced or extended since.
        if record is not None and record.expires is not None and record.expires <= now:
            state.remove(agent_id, memory_id)
            expired += 1
    state.totals["expired"] += expired
    return expired


def apply_decay(state: State) -> int:
    """Lower importances by the decay curve of each memory type; delete memories below the minimum.

    Return the number of deleted memories.
    """
    now = state.clock.now()
    half_life = float(state.decay["half_life_hours"])
    minimum = float(state.decay["min_importance"])
    protected = state.modes.decay_protects_above
    deleted = 0
    for agent_id, memories in state.agents.items():
        policy = state.policy(namespace_of(agent_id))
        for record in list(memories.records.values()):
            if protected is not None and record.base_importance > protected:
                continue
            curve = policy[f"{record.doc['memory_type']}_decay"]
            if curve == "flat":
                continue
            age = now - record.doc["updated_at"]
            left = decayed_importance(curve, record.base_importance, age, half_life)
            if left < minimum:
                state.remove(agent_id, record.id)
                deleted += 1
            else:
                record.doc["importance"] = round(left, 6)
    state.totals["decayed"] += deleted
    return deleted


def _consolidate(state: State, agent_id: str) -> None:
    """Delete near-duplicates of one agent when its policy enables consolidation."""
    namespace = namespace_of(agent_id)
    policy = state.policies.get(namespace)
    if policy is None or not policy["consolidation_enabled"]:
        return
    if not _is_due(state, f"consolidate:{agent_id}", policy["consolidation_interval_hours"] * 3600):
        return
    deleted = delete_duplicates(
        state, agent_id, policy["consolidation_threshold"], "consolidation", cross_session=True
    )
    state.set_policy(
        namespace, {**policy, "consolidated_count": policy["consolidated_count"] + deleted}
    )


def _run_autopilot(state: State) -> None:
    """Delete duplicates of every agent when the settings enable deduplication.

    Servers before 0.12.3 have no `dedup_mode`. There, `enabled` alone enables deduplication.
    """
    config = state.autopilot
    merges = config["dedup_mode"] == "merge" or not state.version.is_v0123
    if not config["enabled"] or not merges:
        return
    if _is_due(state, "dedup", config["dedup_interval_hours"] * 3600):
        for agent_id in list(state.agents):
            delete_duplicates(
                state,
                agent_id,
                config["dedup_threshold"],
                "deduplication",
                cross_session=config["dedup_cross_session"],
            )


def delete_duplicates(
    state: State, agent_id: str, threshold: float, kind: str, *, cross_session: bool
) -> int:
    """Delete each near-duplicate of an older memory; return the number of deleted memories.

    A client can restore the deleted memories until the retention time of the trash has passed.
    """
    memories = state.agents[agent_id]
    kept: list[Record] = []
    deleted = 0
    for record in reversed(list(memories.newest(with_children=False))):
        original = _find_original(kept, record, threshold, cross_session)
        if original is None:
            kept.append(record)
            continue
        _move_to_trash(state, agent_id, record, original, kind)
        deleted += 1
    if kind == "consolidation":
        state.totals["consolidated"] += deleted
    else:
        state.totals["dedup_removed"] += deleted
    return deleted


def _find_original(
    kept: list[Record], record: Record, threshold: float, cross_session: bool
) -> Record | None:
    counts = word_counts(record.doc["content"])
    for other in kept:
        if not cross_session and other.doc.get("session_id") != record.doc.get("session_id"):
            continue
        if similarity(counts, word_counts(other.doc["content"])) >= threshold:
            return other
    return None


def _move_to_trash(
    state: State, agent_id: str, record: Record, original: Record, kind: str
) -> None:
    now = int(state.clock.now())
    entry: dict[str, Any] = {
        "id": record.id,
        "kind": kind,
        "survivor_id": original.id,
        "deleted_at": now,
        "restorable_until": now + int(state.autopilot["trash_retention_hours"] * 3600),
    }
    if "session_id" in record.doc:
        entry["session_id"] = record.doc["session_id"]
    state.trash[agent_id, record.id] = {"entry": entry, "record": record}
    state.remove(agent_id, record.id)
    if kind == "consolidation":
        state.events.publish("consolidated", agent_id, memory_id=original.id)
    else:
        state.events.publish("deduplicated", agent_id, memory_id=record.id)
