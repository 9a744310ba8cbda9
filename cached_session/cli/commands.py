"""The verbs: each calls the public API and hands the answer to `render`."""

from __future__ import annotations

from pathlib import Path

from cached_session import SessionCache
from cached_session.cli import render
from cached_session.core import journal_path
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
    """Push and pull, and print what came of it.

    Raises:
        SyncError: the server did not take or give everything in the time given.
    """
    async with SessionCache(_path(journal), url=url, api_key=api_key) as cache:
        with render.waiting(f"syncing with {url}"):
            if session_ids:
                for session_id in session_ids:
                    render.print_report(await cache.session(session_id).sync(timeout), session_id)
            else:
                render.print_report(await cache.sync(timeout), "all sessions")
        render.print_status(cache.status())


def devserver(
    host: str, port: int, *, data: Path | None, api_key: str | None, latency: float
) -> None:
    """Serve until interrupted; latency in seconds."""
    from cached_session.devserver import serve

    serve(host, port, data=data, api_key=api_key, latency=latency)


def _existing(journal: Path | None) -> SessionCache:
    """A cache over a journal that is there: looking at nothing must not create something."""
    path = journal_path(_path(journal))
    if not Path(path).exists():
        raise JournalError(
            f"there is no journal at {path}; name another with --journal, "
            "or CACHED_SESSION_JOURNAL in the environment"
        )
    return SessionCache(path)


def _path(journal: Path | None) -> str | None:
    return None if journal is None else str(journal)
