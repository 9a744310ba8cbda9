"""The verbs: each calls the public API and hands the answer to `render`."""

from __future__ import annotations

from pathlib import Path

from cached_session import CachedSession, SessionCache
from cached_session.cli import render
from cached_session.errors import JournalError


async def status(journal: Path | None, *, as_json: bool) -> None:
    """Print the state of a journal, without a server."""
    async with _existing(journal) as cache:
        found = cache.status()
    if as_json:
        render.print_json(found)
    else:
        render.print_status(found)


async def show(session_id: str, journal: Path | None, *, limit: int | None, raw: bool) -> None:
    """Print one session's history, without a server."""
    async with _existing(journal) as cache:
        entries = await cache.session(session_id).entries(limit)
    if raw:
        render.print_items([entry.item for entry in entries])
    else:
        render.print_entries(session_id, entries)


async def sync(
    session_ids: list[str], journal: Path | None, *, url: str, api_key: str | None, timeout: float
) -> None:
    """Push and pull, and print what came of it; raises `SyncTimeout` if the time ran out."""
    cache = SessionCache(_path(journal), url=url, api_key=api_key)
    async with cache:
        known = session_ids or sorted(cache.status().sessions)
        sessions: list[CachedSession] = [cache.session(session_id) for session_id in known]
        with render.waiting(f"syncing {len(sessions)} sessions with {url}"):
            report = await cache.sync(timeout)
        render.print_report(report)
        render.print_status(cache.status())


def devserver(
    host: str, port: int, *, data: Path | None, api_key: str | None, latency: float
) -> None:
    """Serve until interrupted; latency in seconds."""
    from cached_session.devserver import serve

    serve(host, port, data=data, api_key=api_key, latency=latency)


def _existing(journal: Path | None) -> SessionCache:
    """A cache over a journal that is there: looking at nothing must not create something."""
    if journal is not None and not journal.exists():
        raise JournalError(
            f"there is no journal at {journal}; name another with --journal, "
            "or CACHED_SESSION_JOURNAL in the environment"
        )
    return SessionCache(_path(journal))


def _path(journal: Path | None) -> str | None:
    return None if journal is None else str(journal)
