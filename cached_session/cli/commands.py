"""The commands: each calls the public API and prints the result."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import anyio

from cached_session import (
    CachedSession,
    Changes,
    Entry,
    Status,
    SyncReport,
    diagnose,
)
from cached_session.cli import output, progress, render_history, render_reports, render_status
from cached_session.cli.common import open_existing, open_online
from cached_session.cli.config import Settings
from cached_session.cli.sessions import ChosenSession
from cached_session.errors import CachedSessionError, SyncError

T = TypeVar("T")

WATCH_SECONDS = 0.5
"""Seconds between two reads of the journal by ``status --watch``."""
BAR_SECONDS = 0.1
"""Seconds between two updates of a progress bar."""
FIRST_SYNC_SECONDS = 5.0
"""Seconds after which ``show --follow`` reports that its first sync got no answer."""
CONCURRENT_SYNCS = 4
"""Maximum number of sessions that are synced at the same time."""


async def status(settings: Settings, *, as_json: bool, watch: bool) -> None:
    """Print the status of a journal; with ``watch``, print it again whenever it changes."""
    async with open_existing(settings) as sessions:
        if watch:
            await _watch(sessions.status, as_json=as_json)
        elif as_json:
            output.say_json(render_status.status_json(sessions.status()))
        else:
            render_status.print_status(sessions.status())


async def _watch(look: Callable[[], Status], *, as_json: bool) -> None:
    if output.is_terminal() and not as_json:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            while True:
                live.update(render_status.status_screen(look()), refresh=True)
                await anyio.sleep(WATCH_SECONDS)
    before: Any = None
    while True:
        found = look()
        lines = list(render_status.status_lines(found))
        if lines != before:
            if as_json:
                output.say_json(render_status.status_json(found), indent=None)
            else:
                for line in [*([""] if before else []), *lines]:
                    output.say(line)
        before = lines
        await anyio.sleep(WATCH_SECONDS)


async def show(
    session_id: str,
    settings: Settings,
    *,
    limit: int | None,
    raw: bool,
    unfold: bool,
    follow: bool,
) -> None:
    """Print one session's history; with ``follow``, also print new items."""
    async with open_existing(settings, syncing=follow) as sessions:
        if not follow:
            sessions.choose([session_id])
        session = sessions.session(session_id).open()
        # Subscribe before the history is read, so that no item written in between is missed.
        changes = session.changes()
        entries = await session.entries(limit)
        _print(entries, raw=raw, unfold=unfold)
        if not follow:
            if not entries and limit != 0:
                output.complain(f"{session_id!r} has no items")
            return

        async def sync_now() -> None:
            # Sync explicitly: the background sync may pause after an earlier failure, and the user
            # should not wait for the end of the pause.
            if settings.url:
                try:
                    await session.sync(FIRST_SYNC_SECONDS)
                except SyncError as error:
                    output.complain(f"only this journal is shown until the server answers: {error}")

        await _run_beside(sync_now, _follow(changes, entries, raw=raw, unfold=unfold))


async def _run_beside(other: Callable[[], Coroutine[Any, Any, None]], work: Awaitable[T]) -> T:
    """Return the result of ``work``; run ``other`` at the same time, and cancel it at the end.

    An error of ``work`` is raised unchanged, not inside the exception group of the two tasks.
    """
    failure: CachedSessionError | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(other)
        try:
            result = await work
        except CachedSessionError as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _follow(changes: Changes, shown: list[Entry], *, raw: bool, unfold: bool) -> None:
    printed = {(entry.writer, entry.counter, entry.index) for entry in shown}
    async for change in changes:
        if change.kind == "appended":
            fresh = [e for e in change.entries if (e.writer, e.counter, e.index) not in printed]
            _print(fresh, raw=raw, unfold=unfold)
        elif change.kind == "removed" and not raw:
            output.say(f"(removed: {len(change.entries)} of the items above)")


def _print(entries: list[Entry], *, raw: bool, unfold: bool) -> None:
    if raw:
        render_history.print_items(entry.item for entry in entries)
    else:
        render_history.print_entries(entries, unfold=unfold)


async def sync(
    session_ids: list[str], settings: Settings, *, timeout: float, as_json: bool, move: bool
) -> None:
    """Sync sessions and print the results; as JSON, only the reports of successful syncs.

    Raises:
        SyncError: the server did not accept or send everything in time.
    """
    started = time.monotonic()
    async with open_online(settings, new=bool(session_ids), move=move) as sessions:
        known = sessions.all()
        given = [sessions.session(session_id) for session_id in dict.fromkeys(session_ids)]
        chosen = given or known
        reports, errors = await _sync_all(chosen, started + timeout)
        if as_json:
            output.say_json(
                [{**one.fields, **vars(reports[one])} for one in chosen if one in reports]
            )
        elif given or len(chosen) > 1:
            for one in chosen:
                if one in reports:
                    render_reports.print_report(reports[one], one.label)
        if errors:
            raise errors[0]
        for one in reports.keys() - set(known):
            if not one.open().status().items:
                output.complain(
                    f"the server has no items of {one.label!r} either; check the session id"
                )
        if not chosen:
            output.complain("this journal has no session; --session ID fetches one from the server")
        found = sessions.status()
        if not as_json:
            if chosen and not given:
                total = _sum(reports.values(), time.monotonic() - started)
                render_reports.print_report(total, "all sessions")
            render_status.print_status(found)
        if found.parked:
            output.complain("operations are parked; cached-session parked list shows why")


async def _sync_all(
    chosen: list[ChosenSession], deadline: float
) -> tuple[dict[ChosenSession, SyncReport], list[CachedSessionError]]:
    """Sync several sessions at a time; return the reports, and the errors of failed syncs."""
    reports: dict[ChosenSession, SyncReport] = {}
    errors: list[CachedSessionError] = []
    limiter = anyio.CapacityLimiter(CONCURRENT_SYNCS)

    async def sync_one(one: ChosenSession, bars: progress.SyncBars) -> None:
        async with limiter, one.open() as session:
            before = session.status()
            bars.start(one.label, before)
            try:
                reports[one] = await _sync_one(
                    session, before, deadline, lambda status: bars.update(one.label, status)
                )
            except CachedSessionError as error:
                errors.append(error)
            finally:
                bars.finish(one.label, session.status())

    with progress.sync_bars(len(chosen)) as bars:
        async with anyio.create_task_group() as group:
            for one in chosen:
                group.start_soon(sync_one, one, bars)
    return reports, errors


async def _sync_one(
    session: CachedSession, before: Status, deadline: float, on_status: Callable[[Status], None]
) -> SyncReport:
    """Sync one session, and return the report for the time since ``before``."""

    async def update_bar() -> None:
        while True:
            on_status(session.status())
            await anyio.sleep(BAR_SECONDS)

    left = max(0.0, deadline - time.monotonic())
    report = await _run_beside(update_bar, session.sync(left))
    # The replicator starts with the session: it may send or fetch before `sync` begins to count.
    after = session.status()
    refused = max(0, after.parked - before.parked)
    return replace(
        report,
        pushed=max(report.pushed, before.pending - after.pending - refused),
        pulled=max(0, after.items - before.items),
    )


def _sum(reports: Iterable[SyncReport], seconds: float) -> SyncReport:
    found = list(reports)
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
    """Print the items that contain the words, or that the server finds by meaning."""
    found: list[dict[str, Any]] = []
    is_local = False
    async with open_online(settings) if recall else open_existing(settings) as sessions:
        for one in sessions.choose(session_ids):
            session = one.open()
            if recall:
                answer = await session.recall(query, limit)
                entries = answer.entries
                if answer.source == "local" and not is_local:
                    output.complain(
                        "the server cannot be asked (cached-session doctor shows why); "
                        "the journal was searched for the words instead"
                    )
                    is_local = True
            else:
                entries = await session.search(query, limit)
            if not as_json:
                render_history.print_found(one.label, entries)
            found += [
                {**one.fields, "rank": e.rank, "said_at": e.said_at, "item": e.item}
                for e in entries
            ]
    if as_json:
        output.say_json(found)
    elif not found:
        output.complain("no items found")


async def doctor(settings: Settings, *, as_json: bool, timeout: float) -> bool:
    """Print the findings of all checks, and return whether no check has failed."""
    with output.waiting("checking"):
        findings = await diagnose(
            settings.journal, url=settings.url, api_key=settings.api_key, timeout=timeout
        )
    if as_json:
        output.say_json(findings)
    else:
        render_reports.print_findings(findings)
    return all(finding.level != "fail" for finding in findings)


async def audit(session_ids: list[str], settings: Settings, *, as_json: bool) -> None:
    """Compare the server with the journal, and restore operations that one of them has lost."""
    reports: list[dict[str, Any]] = []
    async with open_online(settings) as sessions:
        for one in sessions.choose(session_ids):
            async with one.open() as session:
                report = await session.audit()
            reports.append({**one.fields, **vars(report)})
            if not as_json:
                render_reports.print_audit(one.label, report)
    if as_json:
        output.say_json(reports)


async def compact(settings: Settings, *, as_json: bool) -> None:
    """Delete bookkeeping that is no longer needed, and free its disk space."""
    async with open_existing(settings) as sessions:
        with output.waiting("compacting"):
            report = await sessions.cache.compact()
    if as_json:
        output.say_json(report)
    else:
        render_reports.print_compacted(report)
