"""The lifecycle guard: a namespace keeps what it is given, or the status says that it may not.

Dakera forgets on purpose: memories expire by type, decay, are merged and deduplicated. Dakera
*sessions* are never used: ending one consolidates its memories.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.ids import namespace
from cached_session.remote.protocol import GuardReport

__all__ = ["POLICY", "guard", "policy_problem"]

YEARS_50 = 50 * 365 * 86400
TYPES = ("working", "episodic", "semantic", "procedural")

POLICY: dict[str, Any] = {
    **{f"{kind}_ttl_seconds": YEARS_50 for kind in TYPES},
    **{f"{kind}_decay": "flat" for kind in TYPES},
    "consolidation_enabled": False,
    "dedup_on_store": False,
}
"""What a namespace of ours must say; the rest of its policy is left as it is."""

Request = Callable[[str, str, bytes | None], Awaitable[Any]]


async def guard(request: Request, agent: str, made: set[str]) -> GuardReport:
    """Set the namespace's policy: read, edit, write, read again and compare.

    ``made`` holds the agents whose guard was broken off behind its first step, and is this
    function's to change: the next attempt goes on there. Else a server that fails each third
    request would never let one through.

    Raises:
        RemoteError: the server could not be asked (unreachable or busy); nothing is known.
    """
    if agent not in made:
        # The policy route answers 404 until the namespace exists; older servers know no such route.
        await _unless_denied(
            request, "POST", "/v1/agents", orjson.dumps({"agent_id": agent}), later=True
        )
        made.add(agent)
    report = await _set_policy(request, agent)
    made.discard(agent)
    return report


async def _set_policy(request: Request, agent: str) -> GuardReport:
    path = f"/v1/namespaces/{namespace(agent)}/memory_policy"
    found, why = await _unless_denied(request, "GET", path, None)
    if not isinstance(found, dict):
        return GuardReport(why or "the server has no memory policies")
    if _kept(found):
        return GuardReport()
    wanted = {**found, **POLICY}
    # Counted by the server, not set by anyone.
    wanted.pop("consolidated_count", None)
    _, why = await _unless_denied(request, "PUT", path, orjson.dumps(wanted))
    if why:
        return GuardReport(why)
    found, why = await _unless_denied(request, "GET", path, None)
    if isinstance(found, dict) and not _kept(found):
        wrong = sorted(name for name in POLICY if found.get(name) != POLICY[name])
        return GuardReport(f"the server did not keep {', '.join(wrong)}")
    return GuardReport(why)


async def policy_problem(request: Request, agent: str) -> str | None:
    """Look at a namespace's policy and leave it alone: empty if it protects the history, None if
    the server knows no such namespace, otherwise what is wrong with it.

    Raises:
        RemoteError: the server could not be asked.
    """
    path = f"/v1/namespaces/{namespace(agent)}/memory_policy"
    try:
        found = await request("GET", path, None)
    except RemoteError as error:
        if error.verdict is Verdict.ABSENT or error.status == 404:
            return None
        raise
    if isinstance(found, dict) and _kept(found):
        return ""
    wrong = [
        name for name in POLICY if not isinstance(found, dict) or found.get(name) != POLICY[name]
    ]
    return f"its policy does not protect a history: {', '.join(sorted(wrong))}"


def _kept(policy: dict[str, Any]) -> bool:
    return all(policy.get(name) == value for name, value in POLICY.items())


async def _unless_denied(
    request: Request, method: str, path: str, body: bytes | None, *, later: bool = False
) -> tuple[Any, str]:
    """(answer, why there is none): a refusal is a finding here, not a failure."""
    try:
        return await request(method, path, body), ""
    except RemoteError as error:
        if error.verdict in (Verdict.UNREACHABLE, Verdict.BUSY) or error.status == 401:
            raise
        return None, "" if later else error.reason
