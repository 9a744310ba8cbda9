"""Diagnosis of a journal and of the server that it syncs with: problems, and what to do about them.

The diagnosis changes nothing: the journal is opened only if its file is intact, nothing is synced,
and the requests to the server only read.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

from cached_session.cache import SessionCache, open_engine
from cached_session.diagnosis.finding import Finding
from cached_session.diagnosis.journal_file import check_file, unusable
from cached_session.diagnosis.journal_state import (
    LATE_SECONDS,
    check_audits,
    check_search_index,
    check_status,
)
from cached_session.diagnosis.locks import check_locks
from cached_session.diagnosis.server import check_server
from cached_session.errors import JournalError
from cached_session.history.session_name import session_name
from cached_session.journal.journal import MEMORY
from cached_session.models import Status
from cached_session.paths import journal_path
from cached_session.remote.connect import RemoteSpec

__all__ = ["Finding", "diagnose"]


async def diagnose(
    journal: str | os.PathLike[str] | None = None,
    *,
    url: str | None = None,
    api_key: str | None = None,
    timeout: float = 5.0,
) -> list[Finding]:
    """Check a journal and, if ``url`` is given, the server that it syncs with.

    Args:
        journal: path of the journal; None for the default.
        url: address of the server.
        api_key: key for the server.
        timeout: seconds for connecting to the server, and for each request.

    Returns:
        The findings of all checks. Problems with the journal or the server are findings, not
        errors.

    Raises:
        InvalidArgument: an argument is wrong.
    """
    path = journal_path(journal)
    spec = RemoteSpec.make(url, api_key, None)
    findings = await asyncio.to_thread(check_file, path) if path != MEMORY else []
    status: Status | None = None
    if not any((finding.check, finding.level) == ("journal", "fail") for finding in findings):
        if path != MEMORY:
            findings += await asyncio.to_thread(check_locks, path)
        status = await _check_journal(path, findings, server_is_checked=spec is not None)
    if spec is None:
        findings.append(_server_not_given(status))
        return findings
    if status is not None and status.last_server not in (None, spec.server):
        findings.append(_server_changed(str(status.last_server), spec.server))
    sessions = _by_name(status) if status is not None else {}
    last = status.last_server if status is not None else None
    acknowledged = _acknowledged(sessions) if last == spec.server else set()
    return findings + await check_server(spec, sorted(sessions), acknowledged, timeout)


async def _check_journal(
    path: str, findings: list[Finding], *, server_is_checked: bool
) -> Status | None:
    """Open the journal and add findings about its content; return its status if it can be read."""
    status: Status | None = None
    try:
        cache = SessionCache(path)
        try:
            status = await asyncio.to_thread(cache.journal_status)
            findings += check_status(
                status,
                server_is_checked=server_is_checked,
                old_file_exists=any(finding.check == "set aside" for finding in findings),
            )
            now, late_ms = time.time_ns() // 1_000_000, int(LATE_SECONDS * 1000)
            journal = (await open_engine(cache)).journal
            findings += check_audits(await journal.audits.overview(now, late_ms), now)
            if not any(finding.level == "fail" for finding in findings):
                # This check takes the write lock, so skip it if a check has failed, for example
                # because another process holds the lock.
                findings.append(check_search_index(await journal.search_index.is_sound()))
        finally:
            await cache.close()
    except JournalError as error:
        findings.append(unusable(error))
    return status


def _by_name(journal: Status) -> dict[str, Status]:
    """Return the status of each session of a journal, by the session's name."""
    return {
        session_name(prefix, session_id): session
        for prefix, status in journal.prefixes.items()
        for session_id, session in status.sessions.items()
    }


def _acknowledged(sessions: Mapping[str, Status]) -> set[str]:
    """Return the names of sessions with items whose operations the server has all acknowledged."""
    return {
        name
        for name, session in sessions.items()
        if session.items and not (session.pending or session.parked)
    }


def _server_changed(last: str, server: str) -> Finding:
    return Finding(
        "server",
        "warn",
        f"the journal synced last with {last}, not with {server}",
        "to move the journal, run cached-session sync --move, which sends everything in it to the "
        "new server; if you do not want to move it, fix the address",
    )


def _server_not_given(status: Status | None) -> Finding:
    last = status.last_server if status is not None else None
    if last:
        return Finding(
            "server",
            "warn",
            f"not checked: no address was given; the journal synced last with {last}",
            f"cached-session doctor --url {last}, with its key in DAKERA_API_KEY",
        )
    return Finding(
        "server",
        "warn",
        "none is configured: nothing leaves this device",
        "name one with --url, DAKERA_URL or the configuration file",
    )
