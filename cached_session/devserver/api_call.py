"""One request as a route sees it, and the wrapper that makes a route of a plain function.

A route function is synchronous and runs under the state's lock: what it does is one step for every
other request and for the tests' own inspection. Its changes are committed before it answers.
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
from cached_session.devserver.background_jobs import housekeeping
from cached_session.devserver.faults import Fault
from cached_session.devserver.memories import AgentMemories
from cached_session.devserver.responses import ApiError, error_response, json_response
from cached_session.devserver.state import State, namespace_of

FAULTS_SCOPE = "devserver.faults"
"""Where the gate leaves the faults that a route itself has to carry out."""


@dataclass
class Call:
    """A request with its body read, and what route functions ask about it."""

    state: State
    request: Request
    raw: bytes

    @cached_property
    def body(self) -> dict[str, Any]:
        """The JSON object that was sent; an empty body is an empty object."""
        return validation.parse_object(self.raw)

    @property
    def query(self) -> dict[str, str]:
        """The query string; the last of repeated names counts."""
        return dict(self.request.query_params)

    def path(self, name: str) -> str:
        """Return a variable part of the path."""
        return str(self.request.path_params[name])

    @cached_property
    def key(self) -> Key:
        """The caller's API key; 401 without a valid one."""
        return self.state.keys.identify(
            self.request.headers.get("authorization"), None, self.state.clock.now()
        )

    def need(self, scope: str, namespace: str | None = None) -> None:
        """Go on only if the caller may do this."""
        authorise(self.key, scope, namespace)

    def agent(self, scope: str, agent_id: Any = None) -> str:
        """Return the agent of the request, once its id is valid and the caller may touch it."""
        self.need(scope)
        given = agent_id if agent_id is not None else self.body.get("agent_id")
        valid = validation.agent_id(given, any_sign=not self.state.version.is_v0122)
        self.need(scope, namespace_of(valid))
        return valid

    def faults(self, kind: str) -> list[Fault]:
        """Return the faults of a kind that hit this request."""
        return [fault for fault in self.request.scope.get(FAULTS_SCOPE, ()) if fault.kind == kind]

    def view(self, known: AgentMemories) -> AgentMemories:
        """Return the memories as this request sees them: the present, or a stale past."""
        behind = max((fault.seconds for fault in self.faults("stale")), default=0.0)
        return known.as_of(self.state.clock.now() - behind) if behind > 0 else known

    def read(self, agent_id: str) -> AgentMemories:
        """Return an agent's memories as this request sees them; 404 when the modes say so."""
        return self.view(self.state.known_agent(agent_id))


Function = Callable[[Call], Any]


def route(state: State, method: str, path: str, function: Function) -> Route:
    """Return the route that answers `method path` with what the function returns.

    A function returns a `Response`, or a value that is answered as JSON with status 200.
    """

    async def endpoint(request: Request) -> Response:
        raw = await request.body()
        with state.lock:
            try:
                housekeeping(state)
                answer = function(Call(state, request, raw))
                # Made under the lock: the answer may hold documents that a later call changes.
                response = answer if isinstance(answer, Response) else json_response(answer)
            except ApiError as error:
                response = error_response(error, with_code=state.version.is_v012)
            state.commit()
        return response

    return Route(path, endpoint, methods=[method])
