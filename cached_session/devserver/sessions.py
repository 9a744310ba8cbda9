"""Server sessions: a client starts and ends them, and an idle timeout ends them."""

from __future__ import annotations

import uuid
from typing import Any

from cached_session.devserver import validation
from cached_session.devserver.memories import Record
from cached_session.devserver.policy import similarity, word_counts
from cached_session.devserver.responses import invalid, missing
from cached_session.devserver.state import State

IDLE_TIMEOUT_SECONDS = 14_400
ENDED_TTL_SECONDS = 30 * 86_400
"""Seconds from the end of a session until its near-duplicates expire."""
PROTECTED_IMPORTANCE = 0.8
"""Near-duplicates above this importance do not expire."""
NEAR_DUPLICATE = 0.92
"""Minimum similarity of two near-duplicates."""


def start(state: State, body: dict[str, Any]) -> dict[str, Any]:
    """Start a session under an id that the server chooses."""
    agent_id = validation.check_agent_id(body.get("agent_id"))
    now = int(state.clock.now())
    session: dict[str, Any] = {
        "id": f"sess_{uuid.uuid4().hex}",
        "agent_id": agent_id,
        "started_at": now,
        "memory_count": 0,
        "last_activity_at": now,
        "idle_timeout_secs": IDLE_TIMEOUT_SECONDS,
    }
    if body.get("metadata") is not None:
        session["metadata"] = validation.check_metadata(body["metadata"], max_bytes=None)
    if body.get("idle_timeout_secs") is not None:
        session["idle_timeout_secs"] = validation.check_integer(
            body["idle_timeout_secs"], "idle_timeout_secs", 0, validation.MAX_IDLE_TIMEOUT_SECONDS
        )
    state.get_or_create_agent(agent_id)
    state.save_session(session)
    state.events.publish("session_started", agent_id, session_id=session["id"])
    return session


def find(state: State, session_id: str) -> dict[str, Any]:
    """Return a started session, or raise a 404."""
    session = state.sessions.get(session_id)
    if session is None:
        raise missing("session", f"session {session_id} not found")
    return session


def end(state: State, session: dict[str, Any], reason: str, summary: Any = None) -> dict[str, Any]:
    """End a session and return it; do not change a session that has ended before.

    If the client ends the session, near-duplicates among its memories expire after 30 days, unless
    their importance is above `PROTECTED_IMPORTANCE`. An idle timeout changes no memory.
    """
    if "ended_at" in session:
        return session
    if summary is not None and (
        not isinstance(summary, str) or len(summary.encode()) > validation.MAX_CONTENT_BYTES
    ):
        raise invalid("summary must be a string within the content limit")
    ended = {**session, "ended_at": int(state.clock.now()), "ended_reason": reason}
    if summary is not None:
        ended["summary"] = summary
    if reason == "client":
        _expire_duplicates(state, session)
    state.save_session(ended)
    state.events.publish(
        "session_ended", session["agent_id"], session_id=session["id"], reason=reason
    )
    return ended


def _expire_duplicates(state: State, session: dict[str, Any]) -> None:
    agent_id = session["agent_id"]
    kept: list[Record] = []
    for record in list(memories(state, session)):
        counts = word_counts(record.doc["content"])
        similarities = (similarity(counts, word_counts(other.doc["content"])) for other in kept)
        if not any(one >= NEAR_DUPLICATE for one in similarities):
            kept.append(record)
        elif record.doc["importance"] <= PROTECTED_IMPORTANCE:
            record.expires = state.clock.now() + ENDED_TTL_SECONDS
            state.schedule_expiry(agent_id, record)
            state.save(agent_id, record)


def touch(state: State, session: dict[str, Any]) -> dict[str, Any]:
    """Restart the idle timeout of a session; an ended session is not reopened."""
    if "ended_at" in session:
        return {"session": session, "session_state": "ended"}
    touched = {**session, "last_activity_at": int(state.clock.now())}
    state.save_session(touched)
    answer: dict[str, Any] = {"session": touched, "session_state": "active"}
    if touched["idle_timeout_secs"]:
        answer["idle_deadline_at"] = touched["last_activity_at"] + touched["idle_timeout_secs"]
    return answer


def note_activity(
    state: State, agent_id: str, session_id: str | None, stored: int
) -> dict[str, Any] | None:
    """Count memories that were stored under a started session and return the session.

    Return None for a session id that was never started.
    """
    session = state.sessions.get(session_id or "")
    if session is None or session["agent_id"] != agent_id:
        return None
    changed = {**session, "memory_count": session["memory_count"] + stored}
    if "ended_at" not in session:
        changed["last_activity_at"] = int(state.clock.now())
    state.save_session(changed)
    return changed


def end_idle(state: State) -> None:
    """End the sessions whose idle timeout has passed."""
    now = state.clock.now()
    for session in list(state.sessions.values()):
        timeout = session["idle_timeout_secs"]
        if "ended_at" not in session and timeout and session["last_activity_at"] + timeout <= now:
            end(state, session, "idle")


def memories(state: State, session: dict[str, Any]) -> list[Record]:
    """Return the memories stored under a session, newest first."""
    memories = state.agents.get(session["agent_id"])
    if memories is None:
        return []
    with_children = state.modes.derived_children == "leak"
    return [
        record
        for record in memories.newest(with_children=with_children)
        if record.doc.get("session_id") == session["id"]
    ]
