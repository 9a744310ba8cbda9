"""The control routes under `/_dev/`: what a test in another process can command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cached_session.devserver import validation
from cached_session.devserver.auth import Key
from cached_session.devserver.background_jobs import housekeeping
from cached_session.devserver.fault_middleware import RequestLog
from cached_session.devserver.responses import ApiError, error_response, invalid, json_response
from cached_session.devserver.state import State

Break = Callable[[float | None], None]
"""Makes the server refuse connections for some seconds (None: cut the open ones), soon."""

Body = dict[str, Any]


def routes(state: State, log: RequestLog, break_soon: Break) -> list[BaseRoute]:
    """Return the control routes; they need no key, because only tests can reach the server."""

    def faults(_: Body) -> Any:
        """The plan in force."""
        return {"faults": [fault.as_dict() for fault in state.faults.active()]}

    def add_faults(body: Body) -> Any:
        """Add `faults` (a list) or one fault (the body) to the plan."""
        descriptions = body.get("faults", [body])
        added = state.faults.add_all(descriptions)
        return {"faults": [fault.as_dict() for fault in added]}

    def put_faults(body: Body) -> Any:
        """Replace the plan by `faults`."""
        state.faults.clear()
        return add_faults({"faults": body.get("faults", [])})

    def clear_faults(body: Body) -> Any:
        """End all faults."""
        state.faults.clear()
        return faults(body)

    def clock(body: Body) -> Any:
        """Move the clock: `freeze` (bool), then `set` (Unix seconds), then `advance` (seconds)."""
        if body.get("freeze") is True:
            state.clock.freeze()
        if "set" in body:
            state.clock.set(float(body["set"]))
        if "advance" in body:
            state.clock.advance(float(body["advance"]))
        if body.get("freeze") is False:
            state.clock.resume()
        housekeeping(state)
        return {"now": state.clock.now(), "frozen": state.clock.is_frozen}

    def requests(_: Body) -> Any:
        """The request log."""
        return {"requests": [asdict(entry) for entry in log], "count": len(log)}

    def clear_requests(body: Body) -> Any:
        """Start the request log anew."""
        log.clear()
        return requests(body)

    def modes(body: Body) -> Any:
        """The modes in force, after the changes of the body."""
        state.modes = state.modes.changed(body)
        return state.modes.as_dict()

    def evict(body: Body) -> Any:
        """Silently lose memories of `agent_id`: `ids`, or those that pass `filter`, or `all`."""
        agent_id = validation.agent_id(body.get("agent_id"))
        if "ids" in body:
            return {"evicted": state.evict(agent_id, [str(i) for i in body["ids"]])}
        if "filter" not in body and body.get("all") is not True:
            raise invalid("one of ids, filter, all is required")
        rule = validation.filter_object(body.get("filter"))
        return {"evicted": state.evict(agent_id, lambda doc: validation.passes(doc, rule))}

    def memories(body: Body) -> Any:
        """Every memory of `agent_id`, newest first, whatever the faults say."""
        known = state.agents.get(validation.agent_id(body.get("agent_id")))
        docs = [] if known is None else [r.doc for r in known.newest(with_children=True)]
        return {"memories": docs, "count": len(docs)}

    def snapshot(_: Body) -> Any:
        """Take a backup and name it."""
        return {"snapshot": state.snapshot()}

    def restore(body: Body) -> Any:
        """Put the backup `snapshot` back."""
        try:
            state.restore(validation.text(body, "snapshot"))
        except KeyError:
            raise ApiError(404, "NOT_FOUND", "no such snapshot", resource="snapshot") from None
        return {"restored": True}

    def reset(_: Body) -> Any:
        """Forget all data."""
        state.reset()
        return {"reset": True}

    def add_key(body: Body) -> Any:
        """Accept an API key: `secret`, `scope`, `namespaces`, `name`, `expires_at`."""
        return state.add_key(Key(**body)).as_dict()

    def refuse_connections(body: Body) -> Any:
        """Refuse connections for `seconds`, then serve the same data on the same port."""
        seconds = float(body["seconds"])
        break_soon(seconds)
        return {"refusing": seconds}

    def disconnect(_: Body) -> Any:
        """Cut every open connection, event streams included."""
        break_soon(None)
        return {"disconnecting": True}

    table: list[tuple[str, str, Callable[[Body], Any]]] = [
        ("GET", "/_dev/faults", faults),
        ("PUT", "/_dev/faults", put_faults),
        ("POST", "/_dev/faults", add_faults),
        ("DELETE", "/_dev/faults", clear_faults),
        ("POST", "/_dev/clock", clock),
        ("GET", "/_dev/requests", requests),
        ("DELETE", "/_dev/requests", clear_requests),
        ("POST", "/_dev/modes", modes),
        ("POST", "/_dev/evict", evict),
        ("POST", "/_dev/memories", memories),
        ("POST", "/_dev/snapshot", snapshot),
        ("POST", "/_dev/restore", restore),
        ("POST", "/_dev/reset", reset),
        ("POST", "/_dev/keys", add_key),
        ("POST", "/_dev/refuse", refuse_connections),
        ("POST", "/_dev/disconnect", disconnect),
    ]
    return [_control(state, method, path, function) for method, path, function in table]


def _control(state: State, method: str, path: str, function: Callable[[Body], Any]) -> Route:
    async def endpoint(request: Request) -> Response:
        raw = await request.body()
        with state.lock:
            try:
                answer = json_response(function(validation.parse_object(raw)))
            except ApiError as error:
                return error_response(error)
            except (KeyError, TypeError, ValueError) as error:
                # A slip in a test's command: say what is wrong instead of failing with 500.
                return error_response(invalid(f"{type(error).__name__}: {error}"))
            state.commit()
        return answer

    return Route(path, endpoint, methods=[method])
