"""A look at everything a device's sessions depend on, and what to do about what is wrong.

Nothing is changed: the journal is opened only after its file was found sound, nothing is synced,
and the server is only asked about itself.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time

from cached_session.cache import SessionCache
from cached_session.diagnosis.contents import LATE_SECONDS, audits_due, contents, search_index
from cached_session.diagnosis.file import broken, look_at
from cached_session.diagnosis.finding import Finding
from cached_session.diagnosis.server import ask
from cached_session.diagnosis.use import in_use
from cached_session.errors import JournalError
from cached_session.journal.journal import MEMORY
from cached_session.journal.tables import audit_state
from cached_session.journal.tables import search_index as index_table
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
    """Look at a journal and, if ``url`` is given, at the server that it syncs with.

    Raises:
        InvalidArgument: an argument makes no sense. What is wrong with the journal or the server is
            a finding.
    """
    path = journal_path(journal)
    spec = RemoteSpec.make(url, api_key, None)
    found = await asyncio.to_thread(look_at, path) if path != MEMORY else []
    status: Status | None = None
    if not any((finding.check, finding.level) == ("journal", "fail") for finding in found):
        if path != MEMORY:
            found += await asyncio.to_thread(in_use, path)
        try:
            cache = SessionCache(path)
            try:
                status = await asyncio.to_thread(cache.status)
                is_kept = any(finding.check == "set aside" for finding in found)
                found += contents(status, is_asked=spec is not None, is_kept=is_kept)
                now = time.time_ns() // 1_000_000
                longest = int(LATE_SECONDS * 1000)
                found += audits_due(
                    await cache._engine.journal.read(
                        lambda conn: audit_state.standing(conn, now, longest)
                    ),
                    now,
                )
                if not any(finding.level == "fail" for finding in found):
                    # It takes the write lock, for which nobody is made to wait in vain.
                    found.append(search_index(await cache._engine.journal.write(_index)))
            finally:
                await cache.close()
        except JournalError as error:
            found.append(broken(error))
    if spec is None:
        found.append(_unasked(status))
    else:
        names = sorted(status.sessions) if status is not None else []
        if status is not None and status.last_server not in (None, spec.server):
            found.append(_moved(str(status.last_server), spec.server))
        found += await ask(spec, names, _taken(status, spec.server), timeout)
    return found


def _index(conn: sqlite3.Connection) -> bool | None:
    return index_table.is_sound(conn) if index_table.is_kept(conn) else None


def _taken(status: Status | None, server: str) -> set[str]:
    """Sessions with items, all of which this server has acknowledged."""
    if status is None or status.last_server != server:
        return set()
    return {
        name
        for name, one in status.sessions.items()
        if one.items and not (one.pending or one.parked)
    }


def _moved(last: str, server: str) -> Finding:
    return Finding(
        "server",
        "warn",
        f"the journal synced last with {last}, not with {server}",
        "if it is to move, everything that it holds is sent there, too; if not, mend the address",
    )


def _unasked(status: Status | None) -> Finding:
    last = status.last_server if status is not None else None
    if last:
        return Finding(
            "server",
            "warn",
            f"not looked at: none is named here; the journal synced last with {last}",
            f"cached-session doctor --url {last}, with its key in DAKERA_API_KEY",
        )
    return Finding(
        "server",
        "warn",
        "none is configured: nothing leaves this device",
        "name one with --url, DAKERA_URL or the configuration file",
    )
