"""Routes of agents, namespaces, policies and sessions."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from cached_session.devserver import queries, sessions, validation
from cached_session.devserver.api_call import Call, route
from cached_session.devserver.policy import checked_policy
from cached_session.devserver.responses import ApiError, json_response, missing
from cached_session.devserver.state import State, namespace_of

DIMENSION = 1024
MODEL = "bge-large"


def routes(state: State) -> list[BaseRoute]:
    """Return the routes that the server's version has."""
    table = [
        ("GET", "/v1/agents", list_agents),
        ("GET", "/v1/agents/{agent_id}/memories", agent_memories),
        ("GET", "/v1/agents/{agent_id}/stats", agent_stats),
        ("GET", "/v1/agents/{agent_id}/sessions", list_sessions),
        ("GET", "/v1/namespaces", list_namespaces),
        ("POST", "/v1/namespaces", create_namespace),
        ("GET", "/v1/namespaces/{ns}", get_namespace),
        ("PUT", "/v1/namespaces/{ns}", put_namespace),
        ("DELETE", "/v1/namespaces/{ns}", delete_namespace),
        ("GET", "/v1/namespaces/{ns}/memory_policy", get_policy),
        ("PUT", "/v1/namespaces/{ns}/memory_policy", put_policy),
        ("POST", "/v1/sessions/start", start_session),
        ("GET", "/v1/sessions", list_sessions),
        ("GET", "/v1/sessions/{id}", get_session),
        ("POST", "/v1/sessions/{id}/end", end_session),
        ("GET", "/v1/sessions/{id}/memories", session_memories),
    ]
    if state.version.is_v0122:
        table += [
            ("POST", "/v1/agents", create_agent),
            ("POST", "/v1/sessions/{id}/touch", touch_session),
        ]
    return [route(state, method, path, function) for method, path, function in table]


def create_agent(call: Call) -> Response:
    """Create an agent before its first memory: 201 when new, 200 when it was there."""
    agent_id = call.agent("write")
    _, created = call.state.agent(agent_id)
    body = {
        "agent_id": agent_id,
        "namespace": namespace_of(agent_id),
        "created": created,
        "dimension": DIMENSION,
        "model": MODEL,
    }
    return json_response(body, 201 if created else 200)


def list_agents(call: Call) -> Any:
    """List every agent that the caller may read."""
    call.need("read")
    leak = call.state.modes.derived_children == "leak"
    answer = []
    for agent_id, known in call.state.agents.items():
        if call.key.grants(namespace_of(agent_id)):
            own = [s for s in call.state.sessions.values() if s["agent_id"] == agent_id]
            answer.append(
                {
                    "agent_id": agent_id,
                    "memory_count": known.count(with_children=leak),
                    "session_count": len(own),
                    "active_sessions": sum("ended_at" not in session for session in own),
                    "vector_count": known.count(with_children=True),
                }
            )
    return answer


def agent_memories(call: Call) -> Any:
    """List an agent's memories, newest first."""
    agent_id = call.agent("read", call.path("agent_id"))
    return queries.listing(call.state, call.read(agent_id), call.query)


def agent_stats(call: Call) -> Any:
    """Return an agent's totals."""
    agent_id = call.agent("read", call.path("agent_id"))
    return queries.stats(call.state, agent_id, call.read(agent_id))


# Namespaces and their policies


def list_namespaces(call: Call) -> Any:
    """List the namespaces that the caller may read, with their kinds from 0.12.2."""
    call.need("read")
    kinds = {namespace_of(agent_id): "agent" for agent_id in call.state.agents}
    kinds.update(dict.fromkeys(call.state.namespaces, "data"))
    kinds = {name: kind for name, kind in kinds.items() if call.key.grants(name)}
    answer: dict[str, Any] = {"namespaces": list(kinds)}
    if call.state.version.is_v0122:
        answer["kinds"] = kinds
    return answer


def create_namespace(call: Call) -> Any:
    """Create a data namespace; agents' namespaces cannot be made here."""
    call.need("write")
    name = validation.namespace_name(call.body.get("name"))
    call.need("write", name)
    return _configure(call, name)


def put_namespace(call: Call) -> Any:
    """Create or reconfigure a data namespace."""
    name = validation.namespace_name(call.path("ns"))
    call.need("write", name)
    return _configure(call, name)


def _configure(call: Call, name: str) -> dict[str, Any]:
    if call.body.get("dimension") is None:
        raise ApiError(422, "UNPROCESSABLE_CONTENT", "dimension is required")
    dimension = validation.integer(call.body["dimension"], "dimension", 1)
    before = call.state.namespaces.get(name)
    if before is not None and before["dimension"] != dimension:
        raise ApiError(400, "DIMENSION_MISMATCH", f"{name} has dimension {before['dimension']}")
    distance = call.body.get("distance") or "cosine"
    call.state.set_namespace(name, {"dimension": dimension, "distance": distance})
    return {
        "namespace": name,
        "dimension": dimension,
        "distance": distance,
        "created": before is None,
    }


def _existing(call: Call, scope: str) -> str:
    name = call.path("ns")
    call.need(scope, name)
    if not call.state.has_namespace(name):
        raise missing("namespace", f"namespace {name} not found", "NAMESPACE_NOT_FOUND")
    return name


def get_namespace(call: Call) -> Any:
    """Describe a namespace."""
    name = _existing(call, "read")
    if name in call.state.namespaces:
        dimension = call.state.namespaces[name]["dimension"]
        return {"namespace": name, "kind": "data", "vector_count": 0, "dimension": dimension}
    count = sum(len(call.state.agents[agent_id]) for agent_id in call.state.agents_of(name))
    return {"namespace": name, "kind": "agent", "vector_count": count, "dimension": DIMENSION}


def delete_namespace(call: Call) -> Any:
    """Delete a namespace and everything in it."""
    name = _existing(call, "admin")
    call.state.delete_namespace(name)
    return {"namespace": name, "deleted": True}


def get_policy(call: Call) -> Any:
    """Return the policy in force; an unknown namespace answers the defaults."""
    name = call.path("ns")
    call.need("read", name)
    return call.state.policy(name)


def put_policy(call: Call) -> Any:
    """Replace a namespace's policy; fields that are left out fall back to the defaults."""
    name = _existing(call, "write")
    policy = checked_policy(call.body)
    policy["consolidated_count"] = call.state.policy(name)["consolidated_count"]
    call.state.set_policy(name, policy)
    return policy


# Sessions


def start_session(call: Call) -> Any:
    """Start a session under an id of the server's choice."""
    call.agent("write")
    return {"session": sessions.start(call.state, call.body)}


def _session(call: Call, scope: str) -> dict[str, Any]:
    call.need(scope)
    session = sessions.find(call.state, call.path("id"))
    if not call.key.grants(namespace_of(session["agent_id"])):
        raise missing("session", f"session {session['id']} not found")
    return session


def get_session(call: Call) -> Any:
    """Return a session."""
    return _session(call, "read")


def end_session(call: Call) -> Any:
    """End a session for good."""
    session = _session(call, "write")
    ended = sessions.end(call.state, session, "client", call.body.get("summary"))
    return {"session": ended, "memory_count": ended["memory_count"]}


def touch_session(call: Call) -> Any:
    """Keep a session open while it is idle."""
    return sessions.touch(call.state, _session(call, "write"))


def list_sessions(call: Call) -> Any:
    """List sessions, newest first, of one agent or of all that the caller may read."""
    agent_id = call.request.path_params.get("agent_id") or call.query.get("agent_id")
    if agent_id is not None:
        agent_id = call.agent("read", agent_id)
    call.need("read")
    active_only = validation.query_flag(call.query.get("active_only"), "active_only")
    limit = validation.query_integer(call.query.get("limit"), "limit", queries.DEFAULT_LISTING, 1)
    offset = validation.query_integer(call.query.get("offset"), "offset", 0, 0)
    limit = queries.limit_of(call.state, limit, queries.MAX_LISTING)
    found = [
        session
        for session in reversed(call.state.sessions.values())
        if (agent_id is None or session["agent_id"] == agent_id)
        and call.key.grants(namespace_of(session["agent_id"]))
        and not (active_only and "ended_at" in session)
    ]
    page = found[offset : offset + limit]
    if call.state.modes.sessions_shape == "array":
        return page
    return {"sessions": page, "total": len(found)}


def session_memories(call: Call) -> Any:
    """List what was stored under a started session; a free-form id was never started: 404."""
    session = _session(call, "read")
    limit = validation.query_integer(call.query.get("limit"), "limit", queries.DEFAULT_LISTING, 1)
    offset = validation.query_integer(call.query.get("offset"), "offset", 0, 0)
    limit = queries.limit_of(call.state, limit, queries.MAX_SESSION_LISTING)
    found = [record.doc for record in sessions.memories(call.state, session)]
    page = queries.previews(call.state, found[offset : offset + limit], call.query)
    return {"session": session, "memories": page, "total": len(found)}
