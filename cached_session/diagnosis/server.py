"""Checks of the server: reachability, version, rights of the key, clock, memory policies."""

from __future__ import annotations

import time
from collections.abc import Collection

from cached_session.diagnosis.finding import Finding
from cached_session.history.ids import agent_id
from cached_session.humanize import count, lasting
from cached_session.options import SyncOptions
from cached_session.remote.connect import RemoteSpec
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.errors import RemoteError
from cached_session.remote.ids import namespace
from cached_session.remote.probe import ServerFacts

__all__ = ["check_server"]

CLOCK_SECONDS = 30.0
"""Clock difference in seconds above which it is reported. The server's time has no fractions."""
EXPIRY_DAYS = 7
"""Days of remaining validity below which a key is reported."""
PREFIX = "cs-"
"""The prefix of the agent ids of this library."""
POLICIES = 20
"""Maximum number of namespaces whose policy is requested. This library sets the same policy on all
namespaces, so a sample is enough."""


async def check_server(
    spec: RemoteSpec, sessions: list[str], acknowledged: Collection[str], timeout: float
) -> list[Finding]:
    """Check the server without changing anything there.

    Args:
        spec: address and key of the server.
        sessions: the names of the journal's sessions.
        acknowledged: the names of the sessions that have items and of which the server has
            acknowledged all operations.
        timeout: seconds for connecting, and for each request.
    """
    options = SyncOptions(request_timeout=timeout, connect_timeout=timeout)
    remote = await spec.open(options)
    try:
        try:
            facts = await remote.probe()
        except RemoteError as error:
            return [_unreachable(error)]
        return [
            _check_version(spec.server, facts),
            _check_key(facts, sessions),
            _check_clock(facts),
            *await _check_policies(remote, sessions, acknowledged),
        ]
    finally:
        await remote.aclose()


def _unreachable(error: RemoteError) -> Finding:
    if error.status in (401, 403):
        advice = "check the key: DAKERA_API_KEY, --api-key, or api_key in the configuration file"
        if "API_KEY_EXPIRED" in error.reason:
            advice = "get a new key; until then, operations stay in the journal"
        return Finding("server", "fail", error.reason, advice)
    return Finding(
        "server",
        "fail",
        error.reason,
        "check the address, and that the server runs; sessions work without it and sync later",
    )


def _check_version(server: str, facts: ServerFacts) -> Finding:
    answered = f"{server} answers in {facts.seconds * 1000:.0f} ms"
    if facts.version is None:
        return Finding(
            "server", "warn", f"{answered}, without a version", "check that it is a Dakera server"
        )
    if facts.capabilities is None:
        return Finding(
            "server",
            "warn",
            f"{answered}: Dakera {facts.version}, too old to list its capabilities",
            "upgrade it to 0.12 or later for memory policies and key scopes",
        )
    return Finding("server", "ok", f"{answered}: Dakera {facts.version}")


def _check_key(facts: ServerFacts, sessions: list[str]) -> Finding:
    key = facts.key
    if key is None:
        return Finding("key", "ok", "accepted; the server is too old to list the rights of a key")
    if key.get("auth_enabled") is False:
        return Finding("key", "ok", "the server requires no key")
    message = f"{key.get('name') or 'accepted'}, scope {key.get('scope')}"
    if key.get("scope") == "read":
        return Finding(
            "key", "fail", f"{message}: it cannot store anything", "use a key with the scope write"
        )
    grants, inert = key.get("namespaces"), key.get("inert_namespaces")
    if isinstance(grants, list) and not key.get("unrestricted"):
        ignored = inert if isinstance(inert, list) else []
        active = [str(grant) for grant in grants if grant not in ignored]
        denied = [name for name in sessions if not _is_granted(name, active)]
        if denied or not active:
            return Finding(
                "key", "fail", *_describe_denied(message, denied, sessions, bool(ignored))
            )
        message += f", with {count(len(active), 'grant')} of namespaces"
    expires = key.get("expires_at")
    if isinstance(expires, (int, float)):
        # The value is in seconds up to 1e11, else in milliseconds: 1e11 ms would be in 1973.
        left = (expires / 1000 if expires > 1e11 else expires) - time.time()
        if left < EXPIRY_DAYS * 86400:
            return Finding(
                "key",
                "warn",
                f"{message}: it expires in {lasting(max(0.0, left))}",
                "renew it: after it has expired, operations stay in the journal",
            )
    return Finding("key", "ok", message)


def _describe_denied(
    key: str, denied: list[str], sessions: list[str], has_ignored: bool
) -> tuple[str, str]:
    """Return message and advice about the namespaces that the key may not access."""
    message = f"{key}: no grant at all"
    if denied:
        first = namespace(agent_id(denied[0]))
        message = f"{key}: no grant for {len(denied)} of {count(len(sessions), 'session')}: {first}"
        message += ", ..." if len(denied) > 1 else ""
    if has_ignored:
        return message, (
            "the server ignores patterns of keys from before 0.12.2: save the key again to "
            "activate them"
        )
    return message, f"grant the key the namespaces {namespace(PREFIX)}*, or each by its name"


def _is_granted(session: str, grants: list[str]) -> bool:
    name = namespace(agent_id(session))
    return any(
        name.startswith(grant[:-1]) if grant.endswith("*") else name == grant for grant in grants
    )


def _check_clock(facts: ServerFacts) -> Finding:
    if facts.date is None:
        return Finding("clock", "ok", "the server does not send its time")
    off = time.time() - facts.seconds / 2 - facts.date
    if abs(off) > CLOCK_SECONDS:
        return Finding(
            "clock",
            "warn",
            f"this device is {lasting(abs(off))} {'ahead of' if off > 0 else 'behind'} the server",
            "set the clock: displayed times are wrong, the order is not affected",
        )
    return Finding("clock", "ok", "it agrees with the server's clock")


async def _check_policies(
    remote: DakeraRemote, sessions: list[str], acknowledged: Collection[str]
) -> list[Finding]:
    problems: list[str] = []
    existing = empty = 0
    for name in sessions[:POLICIES]:
        try:
            problem = await remote.policy_problem(
                agent_id(name)
            )  # None: there is no such namespace
        except RemoteError as error:
            reason = f"cannot be read: {error.reason}"
            return [Finding("policy", "warn", reason, "see the key above")]
        existing += problem is not None
        empty += problem is None and name in acknowledged
        if problem:
            problems.append(problem)
    findings = [_describe_policies(problems, existing, len(sessions))]
    if empty:
        findings.append(
            Finding(
                "memories",
                "warn",
                f"the server has nothing of {count(empty, 'session')} of which it had acknowledged "
                "everything: its data was deleted",
                "cached-session audit sends it again",
            )
        )
    return findings


def _describe_policies(problems: list[str], existing: int, sessions: int) -> Finding:
    if problems:
        return Finding(
            "policy",
            "warn",
            f"{len(problems)} of {existing} namespaces may forget: {problems[0]}",
            "cached-session audit sets a policy that was lost or refused, if the key has the right "
            "to; otherwise the next sync after a day sets it",
        )
    if not existing:
        return Finding("policy", "ok", "the server has no namespace of these sessions yet")
    more = f" (of {sessions})" if sessions > POLICIES else ""
    keep = "keeps all memories" if existing == 1 else "keep all memories"
    return Finding("policy", "ok", f"{count(existing, 'namespace')}{more} {keep}")
