"""The server: whether it answers, what it is, what the key may do there, whether it forgets."""

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

__all__ = ["ask"]

CLOCK_SECONDS = 30.0
"""A clock that is further off makes times hard to read; the server's own is good to a second."""
EXPIRY_DAYS = 7
PREFIX = "cs-"
"""With which every agent of ours begins."""
POLICIES = 20
"""Namespaces whose policy is asked for; they are set alike, one after the other."""


async def ask(
    spec: RemoteSpec, sessions: list[str], taken: Collection[str], timeout: float
) -> list[Finding]:
    """Ask the server about itself; nothing is changed there. ``taken``: sessions with items, all of
    which a server has acknowledged."""
    options = SyncOptions(request_timeout=timeout, connect_timeout=timeout)
    remote = await spec.open(options)
    try:
        try:
            facts = await remote.probe()
        except RemoteError as error:
            return [_unreachable(error)]
        return [
            _version(spec.server, facts),
            _key(facts, sessions),
            _clock(facts),
            *await _policies(remote, sessions, taken),
        ]
    finally:
        await remote.aclose()


def _unreachable(error: RemoteError) -> Finding:
    if error.status in (401, 403):
        advice = "check the key: DAKERA_API_KEY, --api-key, or api_key in the configuration file"
        if "API_KEY_EXPIRED" in error.reason:
            advice = "get a new key; what is written meanwhile waits in the journal"
        return Finding("server", "fail", error.reason, advice)
    return Finding(
        "server",
        "fail",
        error.reason,
        "check the address, and that the server runs; sessions go on without it, and send later",
    )


def _version(server: str, facts: ServerFacts) -> Finding:
    answered = f"{server} answers in {facts.seconds * 1000:.0f} ms"
    if facts.version is None:
        return Finding("server", "warn", f"{answered}, without a version", "is it a Dakera server?")
    if facts.capabilities is None:
        return Finding(
            "server",
            "warn",
            f"{answered}: Dakera {facts.version}, older than its list of capabilities",
            "an upgrade to 0.12 or later brings memory policies and key scopes",
        )
    return Finding("server", "ok", f"{answered}: Dakera {facts.version}")


def _key(facts: ServerFacts, sessions: list[str]) -> Finding:
    key = facts.key
    if key is None:
        return Finding("key", "ok", "accepted; the server is too old to say what it may do")
    if key.get("auth_enabled") is False:
        return Finding("key", "ok", "the server asks for none")
    said = f"{key.get('name') or 'accepted'}, scope {key.get('scope')}"
    if key.get("scope") == "read":
        return Finding(
            "key", "fail", f"{said}: nothing can be stored", "use a key with the scope write"
        )
    grants, inert = key.get("namespaces"), key.get("inert_namespaces")
    if isinstance(grants, list) and not key.get("unrestricted"):
        dead = inert if isinstance(inert, list) else []
        live = [str(grant) for grant in grants if grant not in dead]
        shut = [name for name in sessions if not _granted(name, live)]
        if shut or not live:
            return Finding("key", "fail", *_shut(said, shut, sessions, bool(dead)))
        said += f", for {count(len(live), 'grant')} of namespaces"
    expires = key.get("expires_at")
    if isinstance(expires, (int, float)):
        # Seconds or milliseconds: no key of ours is from before 1980.
        left = (expires / 1000 if expires > 1e11 else expires) - time.time()
        if left < EXPIRY_DAYS * 86400:
            return Finding(
                "key",
                "warn",
                f"{said}: it expires in {lasting(max(0.0, left))}",
                "renew it: when it has expired, what is written waits in the journal",
            )
    return Finding("key", "ok", said)


def _shut(said: str, shut: list[str], sessions: list[str], is_inert: bool) -> tuple[str, str]:
    """What is out of the key's reach, and what opens it."""
    what = f"{said}: no grant at all"
    if shut:
        first = namespace(agent_id(shut[0]))
        what = f"{said}: no grant for {len(shut)} of {count(len(sessions), 'session')}: {first}"
        what += ", ..." if len(shut) > 1 else ""
    if is_inert:
        return what, "its patterns date from before 0.12.2: save the key again, and they count"
    return what, f"grant the key the namespaces {namespace(PREFIX)}*, or each by its name"


def _granted(session_id: str, grants: list[str]) -> bool:
    name = namespace(agent_id(session_id))
    return any(
        name.startswith(grant[:-1]) if grant.endswith("*") else name == grant for grant in grants
    )


def _clock(facts: ServerFacts) -> Finding:
    if facts.date is None:
        return Finding("clock", "ok", "the server does not say its time")
    off = time.time() - facts.seconds / 2 - facts.date
    if abs(off) > CLOCK_SECONDS:
        return Finding(
            "clock",
            "warn",
            f"this device is {lasting(abs(off))} {'ahead of' if off > 0 else 'behind'} the server",
            "set the clock: order does not suffer, shown times do",
        )
    return Finding("clock", "ok", "agrees with the server's")


async def _policies(
    remote: DakeraRemote, sessions: list[str], taken: Collection[str]
) -> list[Finding]:
    wrong: list[str] = []
    known = empty = 0
    for session_id in sessions[:POLICIES]:
        try:
            why = await remote.policy_problem(agent_id(session_id))
        except RemoteError as error:
            why_not = f"cannot be read: {error.reason}"
            return [Finding("policy", "warn", why_not, "see the key above")]
        known += why is not None
        empty += why is None and session_id in taken
        if why:
            wrong.append(why)
    found = [_policy(wrong, known, len(sessions))]
    if empty:
        found.append(
            Finding(
                "memories",
                "warn",
                f"the server has nothing of {count(empty, 'session')} of which it had acknowledged "
                "everything: it was emptied",
                "cached-session audit puts it back",
            )
        )
    return found


def _policy(wrong: list[str], known: int, sessions: int) -> Finding:
    if wrong:
        return Finding(
            "policy",
            "warn",
            f"{len(wrong)} of {known} namespaces may forget: {wrong[0]}",
            "cached-session audit sets it where it was lost or refused, with a key that may; "
            "otherwise what is sent tomorrow does",
        )
    if not known:
        return Finding("policy", "ok", "no namespace of these sessions is on the server yet")
    more = f" (of {sessions})" if sessions > POLICIES else ""
    keep = "keeps what it is given" if known == 1 else "keep what they are given"
    return Finding("policy", "ok", f"{count(known, 'namespace')}{more} {keep}")
