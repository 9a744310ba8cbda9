"""The verbs: each calls the public API and hands the answer to `render`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from cached_session import (
    CachedSession,
    Parked,
    SessionCache,
    Status,
    SyncReport,
    diagnose,
    export_jsonl,
    import_dakera_export,
    import_dakera_session,
    import_jsonl,
    import_sqlite,
    import_sqlite_session,
)
from cached_session.cli import bars, render
from cached_session.cli.config import Settings
from cached_session.cli.kinds import kind_of
from cached_session.cli.safe import safe_id
from cached_session.core import journal_path
from cached_session.errors import CachedSessionError, InvalidArgument, JournalError

LOOK_SECONDS = 0.5
"""Between two looks at the journal, for those who watch or follow it."""
BAR_SECONDS = 0.1
TOGETHER = 4
"""Sessions that sync side by side."""
SEEN_MOST = 2000
"""Items of the tail that a follower remembers having shown."""


async def status(settings: Settings, *, as_json: bool, watch: bool) -> None:
    """Print the state of a journal, without a server; again whenever it changes."""
    async with _existing(settings) as cache:
        if watch:
            await _watch(cache.status, as_json=as_json)
        elif as_json:
            render.say_json(cache.status())
        else:
            render.print_status(cache.status())


async def _watch(look: Callable[[], Status], *, as_json: bool) -> None:
    if render.is_terminal() and not as_json:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            while True:
                live.update(render.status_screen(look()), refresh=True)
                await anyio.sleep(LOOK_SECONDS)
    before: Any = None
    while True:
        found = look()
        lines = list(render.status_lines(found))
        if lines != before:
            if as_json:
                render.say_json(found, indent=None)
            else:
                for line in [*([""] if before else []), *lines]:
                    render.say(line)
        before = lines
        await anyio.sleep(LOOK_SECONDS)


async def show(
    session_id: str,
    settings: Settings,
    *,
    limit: int | None,
    raw: bool,
    unfold: bool,
    follow: bool,
) -> None:
    """Print one session's history; with ``follow``, what comes after it too."""
    async with _existing(settings, online=follow) as cache:
        session = cache.session(session_id, hydrate=False)
        entries = await session.entries(limit)
        if not entries and not follow:
            if not raw:
                render.say(f"{safe_id(session_id)}: nothing is known of it here")
            return
        shown: dict[tuple[str, int, int], None] = {}
        while True:
            fresh = [e for e in entries if (e.writer, e.counter, e.index) not in shown]
            shown |= dict.fromkeys((e.writer, e.counter, e.index) for e in fresh)
            if raw:
                render.print_items(entry.item for entry in fresh)
            else:
                render.print_entries(fresh, unfold=unfold)
            if not follow:
                return
            for old in list(shown)[: max(0, len(shown) - 2 * SEEN_MOST)]:
                del shown[old]
            await anyio.sleep(LOOK_SECONDS)
            entries = await session.entries(SEEN_MOST if limit is None else max(limit, 200))


async def sync(session_ids: list[str], settings: Settings, *, timeout: float) -> None:
    """Push and pull, and print what came of it.

    Raises:
        SyncError: the server did not take or give everything in the time given.
    """
    started = time.monotonic()
    async with _online(settings) as cache:
        names = list(dict.fromkeys(session_ids)) or await cache.sessions()
        reports: dict[str, SyncReport] = {}
        errors: list[CachedSessionError] = []
        limiter = anyio.CapacityLimiter(TOGETHER)

        async def one(name: str, drawn: bars.SyncBars) -> None:
            async with limiter, cache.session(name, hydrate=False) as session:
                drawn.began(name, session.status())
                try:
                    left = max(0.0, timeout - (time.monotonic() - started))
                    reports[name] = await _synced(session, left, drawn)
                except CachedSessionError as error:
                    errors.append(error)
                finally:
                    drawn.done(name, session.status())

        with bars.sync_bars(len(names)) as drawn:
            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(one, name, drawn)
        for name in names if session_ids or len(names) > 1 else ():
            if name in reports:
                render.print_report(reports[name], name)
        if errors:
            raise errors[0]
        if not session_ids:
            render.print_report(_sum(reports, time.monotonic() - started), "all sessions")
        render.print_status(cache.status())


async def _synced(session: CachedSession, timeout: float, drawn: bars.SyncBars) -> SyncReport:
    async def draw() -> None:
        while True:
            drawn.moved(session.session_id, session.status())
            await anyio.sleep(BAR_SECONDS)

    failure: CachedSessionError | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(draw)
        try:
            report = await session.sync(timeout)
        except CachedSessionError as error:
            # Raised outside of the group, as itself.
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return report


def _sum(reports: Mapping[str, SyncReport], seconds: float) -> SyncReport:
    found = list(reports.values())
    return SyncReport(
        pushed=sum(report.pushed for report in found),
        pulled=sum(report.pulled for report in found),
        pending=sum(report.pending for report in found),
        parked=sum(report.parked for report in found),
        absent=sum(report.absent for report in found),
        seconds=seconds,
    )


async def search(
    query: str,
    session_ids: list[str],
    settings: Settings,
    *,
    limit: int,
    recall: bool,
    as_json: bool,
) -> None:
    """Print the items that hold the words, or that the server finds near in meaning."""
    found: list[dict[str, Any]] = []
    async with _online(settings) if recall else _existing(settings) as cache:
        for name in session_ids or await cache.sessions():
            session = cache.session(name, hydrate=False)
            if recall:
                answer = await session.recall(query, limit)
                entries = answer.entries
                if answer.source == "local":
                    render.complain("the server cannot be asked: this is what the words say")
            else:
                entries = await session.search(query, limit)
            if not as_json:
                render.print_found(name, entries)
            found += [
                {"session": name, "rank": e.rank, "said_at": e.said_at, "item": e.item}
                for e in entries
            ]
    if as_json:
        render.say_json(found)
    elif not found:
        render.complain("nothing found")


async def doctor(settings: Settings, *, as_json: bool, timeout: float) -> bool:
    """Print what is right and wrong; whether nothing has failed."""
    with render.waiting("looking"):
        findings = await diagnose(
            settings.journal, url=settings.url, api_key=settings.api_key, timeout=timeout
        )
    if as_json:
        render.say_json(findings)
    else:
        render.print_findings(findings)
    return all(finding.level != "fail" for finding in findings)


async def audit(session_ids: list[str], settings: Settings, *, as_json: bool) -> None:
    """Compare the server with the journal and mend both."""
    reports: dict[str, Any] = {}
    async with _online(settings) as cache:
        for name in session_ids or await cache.sessions():
            async with cache.session(name, hydrate=False) as session:
                reports[name] = await session.audit()
            if not as_json:
                render.print_audit(name, reports[name])
    if as_json:
        render.say_json(reports)


# -- parked ----------------------------------------------------------------------------------


async def parked(settings: Settings, session_ids: list[str], *, as_json: bool) -> None:
    """List what the server refuses."""
    async with _existing(settings) as cache:
        found = await _parked(cache, session_ids)
    if as_json:
        render.say_json([{"operation": render.dot_of(one), **vars(one)} for one in found])
    else:
        render.print_parked(found)


async def parked_show(settings: Settings, operation: str) -> None:
    """Print one refused operation: why, and its items."""
    async with _existing(settings) as cache:
        (one,) = _named(await _parked(cache, []), [operation])
    render.complain(f"{one.kind} of {safe_id(one.session_id)}: {one.error}")
    render.print_items(one.items)


async def parked_move(settings: Settings, operations: list[str], *, drop: bool) -> None:
    """Retry or give up the operations named; all of them if none is."""
    async with _existing(settings) as cache:
        found = await _parked(cache, [])
        moved = 0
        for one in _named(found, operations) if operations else found:
            session = cache.session(one.session_id)
            if drop:
                moved += await session.drop_parked(one.dot)
            else:
                moved += await session.retry_parked([one.dot])
    render.say(
        f"{moved} dropped" if drop else f"{moved} put back in the queue: the next sync sends"
    )


async def _parked(cache: SessionCache, session_ids: list[str]) -> list[Parked]:
    names = [name for name, one in cache.status().sessions.items() if one.parked]
    found: list[Parked] = []
    for name in names:
        if not session_ids or name in session_ids:
            found += await cache.session(name).parked()
    return found


def _named(found: Sequence[Parked], operations: Sequence[str]) -> list[Parked]:
    """Those whose name begins like one that was typed; each must mean exactly one.

    Raises:
        InvalidArgument: one means none, or several.
    """
    chosen = []
    for typed in operations:
        exact = [one for one in found if render.dot_of(one) == typed]
        near = exact or [one for one in found if render.dot_of(one).startswith(typed)]
        if len(near) != 1:
            raise InvalidArgument(
                f"{typed!r} names {len(near)} parked operations; see cached-session parked list"
            )
        chosen += near
    return chosen


# -- moving ----------------------------------------------------------------------------------


async def export(session_id: str, target: str, settings: Settings) -> None:
    """Write a session to a file, or to standard output."""
    async with _existing(settings) as cache:
        if session_id not in await cache.sessions():
            raise InvalidArgument(
                f"nothing is known of {session_id!r} here; cached-session sync --session fetches it"
            )
        session = cache.session(session_id, hydrate=False)
        if target == "-":
            await export_jsonl(session, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            written = await export_jsonl(session, target)
            render.say(f"{safe_id(session_id)}: {written} items written to {target}")


async def import_(
    source: str,
    session_id: str | None,
    settings: Settings,
    *,
    kind: str,
    source_session: str | None,
    branch: str,
    table: str,
) -> bool:
    """Bring a file or a direct session in; whether all of it could be read."""
    if kind == "auto":
        kind = kind_of(source)
    if session_id is None and kind != "sqlite":
        raise InvalidArgument("say which session it goes into: --session ID")
    async with _online(settings) if kind == "server" else SessionCache(settings.journal) as cache:
        with bars.import_bars() as drawn:
            if session_id is None:
                reports = await import_sqlite(
                    cache, source, branch=branch, messages_table=table, on_progress=drawn
                )
            else:
                session = cache.session(session_id, hydrate=False)
                if kind == "sqlite":
                    report = await import_sqlite_session(
                        session,
                        source,
                        source_session,
                        branch=branch,
                        messages_table=table,
                        on_progress=drawn,
                    )
                elif kind == "server":
                    report = await import_dakera_session(session, source, on_progress=drawn)
                elif kind == "dakera":
                    report = await import_dakera_export(session, source, on_progress=drawn)
                else:
                    report = await import_jsonl(session, source, on_progress=drawn)
                reports = [report]
    for report in reports:
        render.print_import(report)
    return not any(report.unreadable for report in reports)


async def compact(settings: Settings, *, as_json: bool) -> None:
    """Give back the space that nothing needs."""
    async with _existing(settings) as cache:
        with render.waiting("compacting"):
            report = await cache.compact()
    if as_json:
        render.say_json(report)
    else:
        render.print_compacted(report)


def devserver(
    host: str,
    port: int,
    *,
    data: Path | None,
    api_key: str | None,
    latency: float,
    faults: Sequence[Mapping[str, Any]],
    log: bool,
) -> None:
    """Serve until interrupted; latency in seconds."""
    from cached_session.devserver import serve

    serve(host, port, data=data, api_key=api_key, latency=latency, faults=faults, log=log)


def _existing(settings: Settings, *, online: bool = False) -> SessionCache:
    """A cache over a journal that is there: looking at nothing must not create something."""
    path = journal_path(settings.journal)
    if not Path(path).exists():
        raise JournalError(
            f"there is no journal at {path}; name another with --journal, "
            "or CACHED_SESSION_JOURNAL in the environment"
        )
    return _online(settings) if online and settings.url else SessionCache(path)


def _online(settings: Settings) -> SessionCache:
    if not settings.url:
        raise InvalidArgument(
            "say which server: --url http://..., DAKERA_URL in the environment, "
            "or url in the configuration file"
        )
    return SessionCache(settings.journal, url=settings.url, api_key=settings.api_key)
