"""Parsed requests with their checks (`ApiCall`), and `route`, which makes a route from a function.

A route function is synchronous and runs under the lock of the state, so other requests and tests
see all of its changes or none. The changes are committed before the response is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cached_session.devserver import validation
from cached_session.devserver.auth import Key, authorise
from cached_session.devserver.background_jobs import run_due_jobs
from cached_session.devserver.faults import Fault
from cached_session.devserver.memories import AgentMemories
from cached_session.devserver.responses import ApiError, error_response, json_response
from cached_session.devserver.state import State, namespace_of

FAULTS_SCOPE_KEY = "devserver.faults"
"""Key in the ASGI scope under which the middleware stores the faults of a request."""


@dataclass
class ApiCall:
    """A request whose body has been read, with the checks that route functions need."""

    state: State
    request: Request
    raw: bytes

    @cached_property
    def body(self) -> dict[str, Any]:
        """Return the JSON object that was sent; an empty body counts as an empty object."""
        return validation.parse_object(self.raw)

    @property
    def query(self) -> dict[str, str]:
        """Return the query parameters; if a name is repeated, its last value counts."""
        return dict(self.request.query_params)

    def path(self, name: str) -> str:
        """Return a path parameter."""
        return str(self.request.path_params[name])

    @cached_property
    def key(self) -> Key:
        """Return the caller's API key, or raise a 401."""
        return self.state.keys.identify(
            self.request.headers.get("authorization"), None, self.state.clock.now()
        )

    def require(self, scope: str, namespace: str | None = None) -> None:
        """Raise a 403 unless the key has the scope and a grant for the namespace."""
        authorise(self.key, scope, namespace)

    def authorised_agent(self, scope: str, agent_id: Any = None) -> str:
        """Return the agent id of the request after checking its form and the caller's access.

        Without `agent_id`, read the id from the body.
        """
        self.require(scope)
        given = agent_id if agent_id is not None else self.body.get("agent_id")
        valid = validation.check_agent_id(given, any_characters=not self.state.version.is_v0122)
        self.require(scope, namespace_of(valid))
        return valid

    def faults(self, kind: str) -> list[Fault]:
        """Return the faults of a kind that apply to this request."""
        return [
            fault for fault in self.request.scope.get(FAULTS_SCOPE_KEY, ()) if fault.kind == kind
        ]

    def visible(self, memories: AgentMemories) -> AgentMemories:
        """Return the current memories or, under a `stale` fault, those of an earlier time."""
        age = max((fault.seconds for fault in self.faults("stale")), default=0.0)
        return memories.as_of(self.state.clock.now() - age) if age > 0 else memories

    def memories_of(self, agent_id: str) -> AgentMemories:
        """Return the memories of an agent that this request may see.

        For an unknown agent the modes decide between an empty result and a 404.
        """
        return self.visible(self.state.agent_to_read(agent_id))


RouteFunction = Callable[[ApiCall], Any]


def route(state: State, method: str, path: str, function: RouteFunction) -> Route:
    """Return a route that answers `method path` with the result of the function.

    The function returns a `Response`, or a value that is sent as JSON with status 200.
    """

    async def endpoint(request: Request) -> Response:
        raw = await request.body()
        with state.lock:
            try:
                run_due_jobs(state)
                result = function(ApiCall(state, request, raw))
                # Serialise under the lock: a later request may change the documents in the result.
                response = result if isinstance(result, Response) else json_response(result)
            except ApiError as error:
                response = error_response(error, with_code=state.version.is_v012)
            state.commit()
        return response

    return Route(path, endpoint, methods=[method])
