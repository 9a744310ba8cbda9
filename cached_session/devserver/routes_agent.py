"""Routes of agents, namespaces, policies and sessions."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from cached_session.devserver import queries, sessions, validation
from cached_session.devserver.api_call import ApiCall, route
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


def create_agent(call: ApiCall) -> Response:
    """Create an agent before its first memory; answer 201 if it is new, 200 if it existed."""
    agent_id = call.authorised_agent("write")
    _, created = call.state.get_or_create_agent(agent_id)
    body = {
        "agent_id": agent_id,
        "namespace": namespace_of(agent_id),
        "created": created,
        "dimension": DIMENSION,
        "model": MODEL,
    }
    return json_response(body, 201 if created else 200)


def list_agents(call: ApiCall) -> Any:
    """List the agents that the caller may read."""
    call.require("read")
    with_children = call.state.modes.derived_children == "leak"
    found = []
    for agent_id, memories in call.state.agents.items():
        if call.key.grants(namespace_of(agent_id)):
            started = [s for s in call.state.sessions.values() if s["agent_id"] == agent_id]
            found.append(
                {
                    "agent_id": agent_id,
                    "memory_count": memories.count(with_children=with_children),
                    "session_count": len(started),
                    "active_sessions": sum("ended_at" not in session for session in started),
                    "vector_count": memories.count(with_children=True),
                }
            )
    return found


def agent_memories(call: ApiCall) -> Any:
    """List the memories of an agent, newest first."""
    agent_id = call.authorised_agent("read", call.path("agent_id"))
    return queries.list_memories(call.state, call.memories_of(agent_id), call.query)


def agent_stats(call: ApiCall) -> Any:
    """Return the totals of an agent."""
    agent_id = call.authorised_agent("read", call.path("agent_id"))
    return queries.agent_totals(call.state, agent_id, call.memories_of(agent_id))


# Namespaces and their policies


def list_namespaces(call: ApiCall) -> Any:
    """List the namespaces that the caller may read, with their kinds from 0.12.2."""
    call.require("read")
    kinds = {namespace_of(agent_id): "agent" for agent_id in call.state.agents}
    kinds.update(dict.fromkeys(call.state.namespaces, "data"))
    kinds = {name: kind for name, kind in kinds.items() if call.key.grants(name)}
    answer: dict[str, Any] = {"namespaces": list(kinds)}
    if call.state.version.is_v0122:
        answer["kinds"] = kinds
    return answer


def create_namespace(call: ApiCall) -> Any:
    """Create a data namespace; its name must not be the name of an agent's namespace."""
    call.require("write")
    name = validation.check_namespace_name(call.body.get("name"))
    call.require("write", name)
    return _set_data_namespace(call, name)


def put_namespace(call: ApiCall) -> Any:
    """Create or change a data namespace."""
    name = validation.check_namespace_name(call.path("ns"))
    call.require("write", name)
    return _set_data_namespace(call, name)


def _set_data_namespace(call: ApiCall, name: str) -> dict[str, Any]:
    if call.body.get("dimension") is None:
        raise ApiError(422, "UNPROCESSABLE_CONTENT", "dimension is required")
    dimension = validation.check_integer(call.body["dimension"], "dimension", 1)
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


def _existing_namespace(call: ApiCall, scope: str) -> str:
    name = call.path("ns")
    call.require(scope, name)
    if not call.state.has_namespace(name):
        raise missing("namespace", f"namespace {name} not found", "NAMESPACE_NOT_FOUND")
    return name


def get_namespace(call: ApiCall) -> Any:
    """Describe a namespace."""
    name = _existing_namespace(call, "read")
    if name in call.state.namespaces:
        dimension = call.state.namespaces[name]["dimension"]
        return {"namespace": name, "kind": "data", "vector_count": 0, "dimension": dimension}
    count = sum(len(call.state.agents[agent_id]) for agent_id in call.state.agents_of(name))
    return {"namespace": name, "kind": "agent", "vector_count": count, "dimension": DIMENSION}


def delete_namespace(call: ApiCall) -> Any:
    """Delete a namespace with all its data."""
    name = _existing_namespace(call, "admin")
    call.state.delete_namespace(name)
    return {"namespace": name, "deleted": True}


def get_policy(call: ApiCall) -> Any:
    """Return the policy of a namespace, or the defaults if none was stored."""
    name = call.path("ns")
    call.require("read", name)
    return call.state.policy(name)


def put_policy(call: ApiCall) -> Any:
    """Replace the policy of a namespace; missing fields get their defaults."""
    name = _existing_namespace(call, "write")
    policy = checked_policy(call.body)
    policy["consolidated_count"] = call.state.policy(name)["consolidated_count"]
    call.state.set_policy(name, policy)
    return policy


# Sessions


def start_session(call: ApiCall) -> Any:
    """Start a session under an id that the server chooses."""
    call.authorised_agent("write")
    return {"session": sessions.start(call.state, call.body)}


def _find_session(call: ApiCall, scope: str) -> dict[str, Any]:
    """Return the session in the path, or raise a 404 if the caller may not see it."""
    call.require(scope)
    session = sessions.find(call.state, call.path("id"))
    if not call.key.grants(namespace_of(session["agent_id"])):
        raise missing("session", f"session {session['id']} not found")
    return session


def get_session(call: ApiCall) -> Any:
    """Return a session."""
    return _find_session(call, "read")


def end_session(call: ApiCall) -> Any:
    """End a session; it cannot be reopened."""
    session = _find_session(call, "write")
    ended = sessions.end(call.state, session, "client", call.body.get("summary"))
    return {"session": ended, "memory_count": ended["memory_count"]}


def touch_session(call: ApiCall) -> Any:
    """Restart the idle timeout of a session."""
    return sessions.touch(call.state, _find_session(call, "write"))


def list_sessions(call: ApiCall) -> Any:
    """List the sessions of one agent, or of all agents that the caller may read, newest first."""
    agent_id = call.request.path_params.get("agent_id") or call.query.get("agent_id")
    if agent_id is not None:
        agent_id = call.authorised_agent("read", agent_id)
    call.require("read")
    active_only = validation.check_query_flag(call.query.get("active_only"), "active_only")
    limit = validation.check_query_integer(
        call.query.get("limit"), "limit", queries.DEFAULT_LISTING, 1
    )
    offset = validation.check_query_integer(call.query.get("offset"), "offset", 0, 0)
    limit = queries.bounded_limit(call.state, limit, queries.MAX_LISTING)
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


def session_memories(call: ApiCall) -> Any:
    """List the memories of a session; raise a 404 for a session id that was never started."""
    session = _find_session(call, "read")
    limit = validation.check_query_integer(
        call.query.get("limit"), "limit", queries.DEFAULT_LISTING, 1
    )
    offset = validation.check_query_integer(call.query.get("offset"), "offset", 0, 0)
    limit = queries.bounded_limit(call.state, limit, queries.MAX_SESSION_LISTING)
    found = [record.doc for record in sessions.memories(call.state, session)]
    page = queries.cut_previews(call.state, found[offset : offset + limit], call.query)
    return {"session": session, "memories": page, "total": len(found)}
