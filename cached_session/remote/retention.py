"""The retention guard: a policy under which the server keeps every memory of a namespace.

Dakera deletes by default: memories expire by type, decay, and are merged or deduplicated. A policy
of the namespace turns that off. Dakera *sessions* are not used, because ending one merges its
memories.
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
"""Seconds."""
TYPES = ("working", "episodic", "semantic", "procedural")
"""The types of memory that a policy has fields for."""

POLICY: dict[str, Any] = {
    **{f"{kind}_ttl_seconds": YEARS_50 for kind in TYPES},
    **{f"{kind}_decay": "flat" for kind in TYPES},
    "consolidation_enabled": False,
    "dedup_on_store": False,
}
"""The fields to set; the rest of a namespace's policy stays as it is."""

Request = Callable[[str, str, bytes | None], Awaitable[Any]]
"""Sends (method, path, body) once and returns the decoded answer; see `DakeraHttp.json`."""


async def guard(request: Request, agent: str, created: set[str]) -> GuardReport:
    """Set the namespace's policy: read, edit, write, read again and compare.

    ``created`` holds the agents whose guard stopped after its first step, and this function changes
    it: the next attempt continues there. Otherwise a server that fails each third request would
    never let a guard finish.

    Raises:
        RemoteError: the server is unreachable or busy, or refuses the key; nothing is known about
            the policy.
    """
    if agent not in created:
        # The policy route answers 404 until the namespace exists. Servers before 0.12.2 do not have
        # this route, so a refusal is ignored here.
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
    # A counter of the server, not a setting.
    wanted.pop("consolidated_count", None)
    _, refusal = await _answer_or_refusal(request, "PUT", path, orjson.dumps(wanted))
    if refusal:
        return GuardReport(refusal)
    found, refusal = await _answer_or_refusal(request, "GET", path, None)
    if isinstance(found, dict) and not _protects(found):
        return GuardReport(f"the server did not keep {', '.join(_wrong_fields(found))}")
    return GuardReport(refusal)


async def policy_problem(request: Request, agent: str) -> str | None:
    """Read a namespace's policy without changing it, and return what is wrong with it.

    Returns:
        An empty string if the policy protects the history; None if the server does not know the
        namespace.

    Raises:
        RemoteError: the server cannot be asked.
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
    """Return (answer, reason of a refusal): a refusal is a result here, not a failure."""
    try:
        return await request(method, path, body), ""
    except RemoteError as error:
        if error.verdict in (Verdict.UNREACHABLE, Verdict.BUSY) or error.status == 401:
            raise
        return None, error.reason
