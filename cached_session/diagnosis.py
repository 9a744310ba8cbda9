"""A look at everything a device's sessions depend on, and what to do about what is wrong.

Nothing is changed: the journal is opened only after its file was found sound, nothing is synced,
and the server is only asked about itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import stat
import time
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from cached_session.cache import SessionCache
from cached_session.core import RemoteSpec, journal_path
from cached_session.errors import CachedSessionError, JournalError
from cached_session.journal import schema
from cached_session.journal.connection import MEMORY
from cached_session.options import SyncOptions
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.naming import agent_id, namespace
from cached_session.remote.probe import ServerFacts
from cached_session.remote.verdicts import RemoteError
from cached_session.status import Status

__all__ = ["Finding", "diagnose"]

LOW_DISK = 1024**3
"""Bytes free below which a word is due: a write-ahead log may grow for a while."""
NO_DISK = 64 * 1024**2
CLOCK_SECONDS = 30.0
"""A clock that is further off makes times hard to read; the server's own is good to a second."""
EXPIRY_DAYS = 7
POLICIES = 20
"""Namespaces whose policy is asked for; they are set alike, one after the other."""

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    """``warn``: it works, and something should be done. ``fail``: it does not work."""
    message: str
    advice: str = ""
    """What to do; empty where there is nothing to do."""


async def diagnose(
    journal: str | os.PathLike[str] | None = None,
    *,
    url: str | None = None,
    api_key: str | None = None,
    timeout: float = 5.0,
) -> list[Finding]:
    """Look at a journal and, if ``url`` is given, at the server that it syncs with.

    Raises:
        InvalidArgument: an argument makes no sense. What is wrong with the journal or the server is
            a finding.
    """
    path = journal_path(journal)
    spec = RemoteSpec.make(url, api_key, None)
    found = await asyncio.to_thread(_file, path) if path != MEMORY else []
    status: Status | None = None
    if not any(finding.level == "fail" for finding in found):
        try:
            cache = SessionCache(path)
            try:
                status = await asyncio.to_thread(cache.status)
            finally:
                await cache.close()
            found += _contents(status)
        except JournalError as error:
            found.append(Finding("journal", "fail", str(error)))
    if spec is None:
        found.append(
            Finding(
                "server",
                "warn",
                "none is configured: nothing leaves this device",
                "name one with --url, DAKERA_URL or the configuration file",
            )
        )
    else:
        names = sorted(status.sessions) if status is not None else []
        found += await _server(spec, names, timeout)
    return found


# -- the journal's file ----------------------------------------------------------------------


def _file(path: str) -> list[Finding]:
    file = Path(path)
    if not file.exists():
        return [
            Finding(
                "journal",
                "fail",
                f"there is none at {path}",
                "name another; or write to a session once: the journal is made by the first write",
            )
        ]
    return [_integrity(path), _disk(file), _modes(file), *_set_aside(file), _lock(path)]


def _integrity(path: str) -> Finding:
    try:
        with closing(
            sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        ) as conn:
            current = schema.identify(conn, path)
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            problems = [str(row[0]) for row in conn.execute("PRAGMA quick_check(3)")]
    except CachedSessionError as error:
        return Finding("journal", "fail", str(error))
    except sqlite3.Error as error:
        problems, current, version = [str(error)], False, 0
    if problems != ["ok"]:
        return Finding(
            "journal",
            "fail",
            f"{path} is damaged: {'; '.join(problems)[:200]}",
            "keep a copy of the file, then open a session: what can be read is carried over, the "
            "rest comes back from the server",
        )
    form = f"format {version}" if current else f"format {version}, moved forward when next opened"
    return Finding("journal", "ok", f"{path} is whole ({form})")


def _disk(file: Path) -> Finding:
    usage = shutil.disk_usage(file.parent)
    size = sum(
        part.stat().st_size
        for suffix in ("", "-wal", "-shm")
        if (part := file.with_name(file.name + suffix)).exists()
    )
    message = f"the journal takes {_size(size)}, {_size(usage.free)} are free"
    if usage.free < NO_DISK:
        return Finding("disk", "fail", message, "free some space: writes are about to fail")
    if usage.free < max(LOW_DISK, 2 * size):
        return Finding("disk", "warn", message, "free some space, or compact the journal")
    return Finding("disk", "ok", message)


def _modes(file: Path) -> Finding:
    if os.name != "posix":
        return Finding("access", "ok", "left to the file system's own rules")
    open_ones = [
        part
        for suffix in ("", "-wal", "-shm")
        if (part := file.with_name(file.name + suffix)).exists()
        and stat.S_IMODE(part.stat().st_mode) & 0o077
    ]
    if open_ones:
        names = " ".join(part.name for part in open_ones)
        return Finding(
            "access", "warn", f"others on this machine may read {names}", f"chmod 600 {names}"
        )
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
        return Finding(
            "access", "fail", "this user may not write to it", "check the file's owner and mode"
        )
    return Finding("access", "ok", "only its owner can read the journal")


def _set_aside(file: Path) -> list[Finding]:
    """Damaged files that were moved away, and that somebody may want to look at."""
    known = {file.name + suffix for suffix in ("", "-wal", "-shm", "-journal", ".lock")}
    aside = sorted(
        other.name
        for other in file.parent.glob(f"{_globbed(file.name)}?*")
        if other.name not in known and ("damaged" in other.name or "corrupt" in other.name)
    )
    if not aside:
        return []
    return [
        Finding(
            "set aside",
            "warn",
            f"a damaged journal was set aside: {', '.join(aside)}",
            "once nothing is missed, delete it; until then it is the last copy of what is in it",
        )
    ]


def _globbed(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


def _lock(path: str) -> Finding:
    lock = f"{os.path.realpath(path)}.lock"
    if not Path(lock).exists():
        return Finding("replicator", "ok", "none has run yet")
    try:
        with FileLock(lock, timeout=0, mode=0o600):
            return Finding("replicator", "ok", "no process syncs this journal right now")
    except Timeout:
        return Finding("replicator", "ok", "another process is syncing this journal")
    except OSError as error:
        return Finding(
            "replicator", "warn", f"{lock} cannot be locked: {error}", "check its owner and mode"
        )


# -- what the journal holds ------------------------------------------------------------------


def _contents(status: Status) -> list[Finding]:
    found = []
    age = status.oldest_pending_age
    if status.pending:
        found.append(
            Finding(
                "outbox",
                "warn" if (age or 0.0) > 3600 else "ok",
                f"{status.pending} operations wait for the server"
                + (f", the oldest for {age / 60:.0f} min" if age else ""),
                "cached-session sync" if (age or 0.0) > 3600 else "",
            )
        )
    else:
        found.append(Finding("outbox", "ok", "nothing waits for the server"))
    if status.parked:
        found.append(
            Finding(
                "parked",
                "warn",
                f"{status.parked} operations that the server refuses for good",
                "cached-session parked list",
            )
        )
    if status.absent:
        found.append(
            Finding(
                "absent",
                "warn",
                f"{status.absent} operations of other devices that nobody has been able to find",
                "cached-session audit, here and on the devices that wrote them",
            )
        )
    if status.conflicts:
        found.append(
            Finding(
                "conflicts",
                "warn",
                f"{status.conflicts} operations came again with other content; the first stays",
                "look for a program that writes to these namespaces besides this library",
            )
        )
    if status.unreadable:
        found.append(
            Finding(
                "unreadable",
                "warn",
                f"{status.unreadable} memories of the last pull could not be read",
                "upgrade cached-session here, then cached-session audit",
            )
        )
    if status.clock_ahead is not None:
        found.append(
            Finding(
                "clock",
                "warn",
                f"a device wrote {status.clock_ahead / 60:.0f} min ahead of this one's clock",
                "set the clocks: order does not suffer, shown times do",
            )
        )
    if status.last_error:
        found.append(Finding("last sync", "warn", status.last_error, "cached-session sync"))
    return found


# -- the server ------------------------------------------------------------------------------


async def _server(spec: RemoteSpec, sessions: list[str], timeout: float) -> list[Finding]:
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
            await _policies(remote, sessions),
        ]
    finally:
        await remote.aclose()


def _unreachable(error: RemoteError) -> Finding:
    if error.status in (401, 403):
        return Finding("server", "fail", error.reason, "check the key: DAKERA_API_KEY or --api-key")
    return Finding(
        "server",
        "fail",
        error.reason,
        "check the address and that the server runs; sessions go on without it",
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
    scope, grants, expires = key.get("scope"), key.get("namespaces"), key.get("expires_at")
    said = f"{key.get('name') or 'accepted'}, scope {scope}"
    if scope == "read":
        return Finding(
            "key", "fail", f"{said}: nothing can be stored", "use a key with the scope write"
        )
    if isinstance(grants, list) and not key.get("unrestricted"):
        shut = [name for name in sessions if not _granted(name, grants)]
        if shut or not grants:
            return Finding(
                "key",
                "fail",
                f"{said}: no grant for {len(shut)} of {len(sessions)} sessions",
                "grant the key the namespaces _dakera_agent_cs-*",
            )
    if isinstance(expires, (int, float)):
        # Seconds or milliseconds: no key of ours is from before 1980.
        left = (expires / 1000 if expires > 1e11 else expires) - time.time()
        if left < EXPIRY_DAYS * 86400:
            return Finding(
                "key", "warn", f"{said}: it expires in {left / 86400:.1f} days", "renew it soon"
            )
    return Finding("key", "ok", said)


def _granted(session_id: str, grants: list[object]) -> bool:
    names = (agent_id(session_id), namespace(agent_id(session_id)))
    return any(
        name == grant or (str(grant).endswith("*") and fnmatchcase(name, str(grant)))
        for grant in grants
        for name in names
    )


def _clock(facts: ServerFacts) -> Finding:
    if facts.date is None:
        return Finding("clock", "ok", "the server does not say its time")
    off = time.time() - facts.seconds / 2 - facts.date
    if abs(off) > CLOCK_SECONDS:
        return Finding(
            "clock",
            "warn",
            f"this device is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server",
            "set the clock: order does not suffer, shown times do",
        )
    return Finding("clock", "ok", "agrees with the server's")


async def _policies(remote: DakeraRemote, sessions: list[str]) -> Finding:
    wrong: list[str] = []
    known = 0
    for session_id in sessions[:POLICIES]:
        try:
            why = await remote.kept(agent_id(session_id))
        except RemoteError as error:
            return Finding(
                "policy", "warn", f"cannot be read: {error.reason}", "give the key the scope write"
            )
        known += why is not None
        if why:
            wrong.append(why)
    if wrong:
        return Finding(
            "policy",
            "warn",
            f"{len(wrong)} of {known} namespaces may forget: {wrong[0]}",
            "cached-session sync sets it, with a key that may write",
        )
    if not known:
        return Finding("policy", "ok", "no namespace of these sessions is on the server yet")
    more = f" (of {len(sessions)})" if len(sessions) > POLICIES else ""
    return Finding("policy", "ok", f"{known} namespaces{more} keep what they are given")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
