"""The control routes under `/_dev/`: with them, a test in another process controls the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cached_session.devserver import validation
from cached_session.devserver.auth import Key
from cached_session.devserver.background_jobs import run_due_jobs
from cached_session.devserver.request_log import RequestLog
from cached_session.devserver.responses import ApiError, error_response, invalid, json_response
from cached_session.devserver.state import State

BreakConnections = Callable[[float | None], None]
"""Function that closes all connections after the current response.

It refuses new connections for the given number of seconds. With None, it accepts new connections.
"""

Body = dict[str, Any]


class _ControlRoutes:
    """The functions of the control routes; each gets the JSON body and returns a JSON value."""

    def __init__(self, state: State, log: RequestLog, break_soon: BreakConnections) -> None:
        self._state = state
        self._log = log
        self._break_soon = break_soon

    def faults(self, _: Body) -> Any:
        """Return the active faults."""
        return {"faults": [fault.as_dict() for fault in self._state.faults.active()]}

    def add_faults(self, body: Body) -> Any:
        """Add the list `faults` of the body, or the body itself as one fault, to the plan."""
        added = self._state.faults.add_all(body.get("faults", [body]))
        return {"faults": [fault.as_dict() for fault in added]}

    def replace_faults(self, body: Body) -> Any:
        """Replace all faults with the list `faults` of the body."""
        self._state.faults.clear()
        return self.add_faults({"faults": body.get("faults", [])})

    def clear_faults(self, body: Body) -> Any:
        """Remove all faults."""
        self._state.faults.clear()
        return self.faults(body)

    def clock(self, body: Body) -> Any:
        """Move the clock: `freeze` (bool), then `set` (Unix seconds), then `advance` (seconds)."""
        clock = self._state.clock
        if body.get("freeze") is True:
            clock.freeze()
        if "set" in body:
            clock.set(float(body["set"]))
        if "advance" in body:
            clock.advance(float(body["advance"]))
        if body.get("freeze") is False:
            clock.resume()
        run_due_jobs(self._state)
        return {"now": clock.now(), "frozen": clock.is_frozen}

    def requests(self, _: Body) -> Any:
        """Return the request log."""
        return {"requests": [asdict(entry) for entry in self._log], "count": len(self._log)}

    def clear_requests(self, body: Body) -> Any:
        """Clear the request log."""
        self._log.clear()
        return self.requests(body)

    def modes(self, body: Body) -> Any:
        """Change the modes in the body, and return all modes."""
        self._state.modes = self._state.modes.changed(body)
        return self._state.modes.as_dict()

    def evict(self, body: Body) -> Any:
        """Delete memories of `agent_id` without an event, selected by `ids`, `filter` or `all`."""
        agent_id = validation.check_agent_id(body.get("agent_id"))
        if "ids" in body:
            return {"evicted": self._state.evict(agent_id, [str(i) for i in body["ids"]])}
        if "filter" not in body and body.get("all") is not True:
            raise invalid("one of ids, filter, all is required")
        predicates = validation.check_filter_object(body.get("filter"))
        evicted = self._state.evict(
            agent_id, lambda doc: validation.matches_filter(doc, predicates)
        )
        return {"evicted": evicted}

    def memories(self, body: Body) -> Any:
        """Return every memory of `agent_id`, newest first; faults do not apply."""
        memories = self._state.agents.get(validation.check_agent_id(body.get("agent_id")))
        docs = [] if memories is None else [r.doc for r in memories.newest(with_children=True)]
        return {"memories": docs, "count": len(docs)}

    def snapshot(self, _: Body) -> Any:
        """Take a backup and return its name."""
        return {"snapshot": self._state.snapshot()}

    def restore(self, body: Body) -> Any:
        """Replace all data with the backup whose name is `snapshot` in the body."""
        name = validation.check_text(body, "snapshot")
        try:
            self._state.restore(name)
        except KeyError:
            message = f"snapshot {name} not found"
            raise ApiError(404, "NOT_FOUND", message, resource="snapshot") from None
        return {"restored": True}

    def reset(self, _: Body) -> Any:
        """Delete all data."""
        self._state.reset()
        return {"reset": True}

    def add_key(self, body: Body) -> Any:
        """Add an API key: `secret`, `scope`, `namespaces`, `name`, `expires_at`."""
        return self._state.add_key(Key(**body)).as_dict()

    def refuse_connections(self, body: Body) -> Any:
        """Refuse connections for `seconds`; then accept them again, with the same port and data."""
        seconds = float(body["seconds"])
        self._break_soon(seconds)
        return {"refusing": seconds}

    def disconnect(self, _: Body) -> Any:
        """Close every open connection, event streams included."""
        self._break_soon(None)
        return {"disconnecting": True}


def routes(state: State, log: RequestLog, break_soon: BreakConnections) -> list[BaseRoute]:
    """Return the control routes; they need no API key, because the server is for tests only."""
    control = _ControlRoutes(state, log, break_soon)
    table: list[tuple[str, str, Callable[[Body], Any]]] = [
        ("GET", "/_dev/faults", control.faults),
        ("PUT", "/_dev/faults", control.replace_faults),
        ("POST", "/_dev/faults", control.add_faults),
        ("DELETE", "/_dev/faults", control.clear_faults),
        ("POST", "/_dev/clock", control.clock),
        ("GET", "/_dev/requests", control.requests),
        ("DELETE", "/_dev/requests", control.clear_requests),
        ("POST", "/_dev/modes", control.modes),
        ("POST", "/_dev/evict", control.evict),
        ("POST", "/_dev/memories", control.memories),
        ("POST", "/_dev/snapshot", control.snapshot),
        ("POST", "/_dev/restore", control.restore),
        ("POST", "/_dev/reset", control.reset),
        ("POST", "/_dev/keys", control.add_key),
        ("POST", "/_dev/refuse", control.refuse_connections),
        ("POST", "/_dev/disconnect", control.disconnect),
    ]
    return [_control_route(state, method, path, function) for method, path, function in table]


def _control_route(state: State, method: str, path: str, function: Callable[[Body], Any]) -> Route:
    async def endpoint(request: Request) -> Response:
        raw = await request.body()
        with state.lock:
            try:
                response = json_response(function(validation.parse_object(raw)))
            except ApiError as error:
                return error_response(error)
            except (KeyError, TypeError, ValueError) as error:
                # A mistake in the request of a test: return a 400 with the reason, not a 500.
                return error_response(invalid(f"{type(error).__name__}: {error}"))
            state.commit()
        return response

    return Route(path, endpoint, methods=[method])
