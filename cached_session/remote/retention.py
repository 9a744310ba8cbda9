"""The retention guard: a policy under which the server keeps every memory of a namespace.

Dakera deletes by default: memories expire by type, decay, and are merged or deduplicated. A policy
of the namespace turns these deletions off. Dakera *sessions* are not used, because ending such a
session merges its memories.
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
"""50 years in seconds."""
TYPES = ("working", "episodic", "semantic", "procedural")
"""Types of memory for which a policy has fields."""

POLICY: dict[str, Any] = {
    **{f"{kind}_ttl_seconds": YEARS_50 for kind in TYPES},
    **{f"{kind}_decay": "flat" for kind in TYPES},
    "consolidation_enabled": False,
    "dedup_on_store": False,
}
"""Policy fields to set. The other fields of a namespace's policy stay unchanged."""

Request = Callable[[str, str, bytes | None], Awaitable[Any]]
"""Function that sends one request (method, path, body), once, and returns the decoded answer; see
`DakeraHttp.json`."""


async def guard(request: Request, agent: str, created: set[str]) -> GuardReport:
    """Set the namespace's policy, read it again and compare.

    ``created`` contains the agents for which only the first step, creating the agent, has
    succeeded. This function updates the set, so that the next attempt skips that step. Otherwise
    the guard would never succeed on a server that fails each third request.

    Raises:
        RemoteError: the server is unreachable or busy, or refuses the key. The policy is unknown.
    """
    if agent not in created:
        # The policy route answers 404 until the namespace exists, so create the agent first.
        # Servers before 0.12.2 do not have the route that creates agents, so ignore a refusal.
        await _answer_or_refusal(request, "POST", "/v1/agents", orjson.dumps({"agent_id": agent}))
        created.add(agent)
    report = await _set_policy(request, agent)
    created.discard(agent)
    return report


async def _set_policy(request: Request, agent: str) -> GuardReport:
    path = _policy_path(agent)
    found, refusal = await _answer_or_refusal(request, "GET", path, None)
    if not isinstance(found, dict):
        return GuardReport(refusal or "the server has no memory policies")
    if _protects(found):
        return GuardReport()
    wanted = {**found, **POLICY}
    # This field is a counter of the server, not a setting.
    wanted.pop("consolidated_count", None)
    _, refusal = await _answer_or_refusal(request, "PUT", path, orjson.dumps(wanted))
    if refusal:
        return GuardReport(refusal)
    found, refusal = await _answer_or_refusal(request, "GET", path, None)
    if isinstance(found, dict) and not _protects(found):
        return GuardReport(f"the server did not keep {', '.join(_wrong_fields(found))}")
    return GuardReport(refusal)


async def policy_problem(request: Request, agent: str) -> str | None:
    """Read a namespace's policy without changing it, and return the problem of the policy.

    Returns:
        An empty string if the policy protects the history; None if the server does not know the
        namespace.

    Raises:
        RemoteError: the request failed.
    """
    try:
        found = await request("GET", _policy_path(agent), None)
    except RemoteError as error:
        if error.verdict is Verdict.ABSENT or error.status == 404:
            return None
        raise
    policy = found if isinstance(found, dict) else {}
    if _protects(policy):
        return ""
    return f"its policy does not protect a history: {', '.join(_wrong_fields(policy))}"


def _policy_path(agent: str) -> str:
    return f"/v1/namespaces/{namespace(agent)}/memory_policy"


def _protects(policy: dict[str, Any]) -> bool:
    return not _wrong_fields(policy)


def _wrong_fields(policy: dict[str, Any]) -> list[str]:
    return sorted(name for name, value in POLICY.items() if policy.get(name) != value)


async def _answer_or_refusal(
    request: Request, method: str, path: str, body: bytes | None
) -> tuple[Any, str]:
    """Return (answer, reason of a refusal). A refusal is a result and raises no error."""
    try:
        return await request(method, path, body), ""
    except RemoteError as error:
        if error.verdict in (Verdict.UNREACHABLE, Verdict.BUSY) or error.status == 401:
            raise
        return None, error.reason
