"""The verbs: each calls the public API and prints what it answers."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import anyio

from cached_session import CachedSession, Changes, Entry, Status, SyncReport, diagnose
from cached_session.cli import output, progress, render_history, render_reports, render_status
from cached_session.cli.common import chosen, existing, online
from cached_session.cli.config import Settings
from cached_session.errors import CachedSessionError, SyncError

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""Between two looks at the journal, for those who watch it."""
BAR_SECONDS = 0.1
TRY_SECONDS = 5.0
"""Until a person who follows a session is told that the server does not answer."""
TOGETHER = 4
"""Sessions that sync side by side."""


async def status(settings: Settings, *, as_json: bool, watch: bool) -> None:
    """Print the state of a journal, without a server; again whenever it changes."""
    async with existing(settings) as cache:
        if watch:
            await _watch(cache.status, as_json=as_json)
        elif as_json:
            output.say_json(cache.status())
        else:
            render_status.print_status(cache.status())


async def _watch(look: Callable[[], Status], *, as_json: bool) -> None:
    if output.is_terminal() and not as_json:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            while True:
                live.update(render_status.status_screen(look()), refresh=True)
                await anyio.sleep(LOOK_SECONDS)
    before: Any = None
    while True:
        found = look()
        lines = list(render_status.status_lines(found))
        if lines != before:
            if as_json:
                output.say_json(found, indent=None)
            else:
                for line in [*([""] if before else []), *lines]:
                    output.say(line)
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
    async with existing(settings, syncing=follow) as cache:
        if not follow:
            await chosen(cache, [session_id])
        session = cache.session(session_id, hydrate=False)
        # Before the history is read: what is said meanwhile is in one of the two, or in both.
        changes = session.changes()
        entries = await session.entries(limit)
        _print(entries, raw=raw, unfold=unfold)
        if not follow:
            if not entries and limit != 0:
                output.complain(f"{session_id!r} has no items")
            return

        async def try_now() -> None:
            # Whoever starts to follow wants it now: no pause after an earlier failure is for them.
            if settings.url:
                try:
                    await session.sync(TRY_SECONDS)
                except SyncError as error:
                    output.complain(f"until the server answers, only this journal is seen: {error}")

        await _beside(try_now, _follow(changes, entries, raw=raw, unfold=unfold))


async def _beside(other: Callable[[], Coroutine[Any, Any, None]], work: Awaitable[T]) -> T:
    """Do the work while the other runs, which ends with it; what the work raises is raised as it
    is, outside of the group of the two."""
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
    places = {(entry.writer, entry.counter, entry.index) for entry in shown}
    async for change in changes:
        if change.kind == "appended":
            fresh = [e for e in change.entries if (e.writer, e.counter, e.index) not in places]
            _print(fresh, raw=raw, unfold=unfold)
        elif change.kind == "removed" and not raw:
            output.say(f"(removed: {len(change.entries)} of the items above)")


def _print(entries: list[Entry], *, raw: bool, unfold: bool) -> None:
    if raw:
        render_history.print_items(entry.item for entry in entries)
    else:
        render_history.print_entries(entries, unfold=unfold)


async def sync(
    session_ids: list[str], settings: Settings, *, timeout: float, as_json: bool
) -> None:
    """Push and pull, and print what came of it; ``as_json``: of each session that is done.

    Raises:
        SyncError: the server did not take or give everything in the time given.
    """
    started = time.monotonic()
    async with online(settings, new=bool(session_ids)) as cache:
        known = await cache.sessions()
        names = list(dict.fromkeys(session_ids)) or known
        reports: dict[str, SyncReport] = {}
        errors: list[CachedSessionError] = []
        limiter = anyio.CapacityLimiter(TOGETHER)

        async def one(name: str, drawn: progress.SyncBars) -> None:
            async with limiter, cache.session(name, hydrate=False) as session:
                before = session.status()
                drawn.began(name, before)
                try:
                    left = max(0.0, timeout - (time.monotonic() - started))
                    report = await _synced(session, left, drawn)
                    # Some of it may have gone, or come, before the call that waits for it.
                    after = session.status()
                    refused = max(0, after.parked - before.parked)
                    reports[name] = replace(
                        report,
                        pushed=max(report.pushed, before.pending - after.pending - refused),
                        pulled=max(0, after.items - before.items),
                    )
                except CachedSessionError as error:
                    errors.append(error)
                finally:
                    drawn.done(name, session.status())

        with progress.sync_bars(len(names)) as drawn:
            async with anyio.create_task_group() as group:
                for name in names:
                    group.start_soon(one, name, drawn)
        if as_json:
            output.say_json(reports)
        elif session_ids or len(names) > 1:
            for name in names:
                if name in reports:
                    render_reports.print_report(reports[name], name)
        if errors:
            raise errors[0]
        for name in reports.keys() - set(known):
            if not cache.session(name, hydrate=False).status().items:
                output.complain(f"the server has nothing of {name!r} either: is the id right?")
        if not names:
            output.complain("this journal has no session; --session ID fetches one of the server's")
        found = cache.status()
        if not as_json:
            if names and not session_ids:
                render_reports.print_report(
                    _sum(reports, time.monotonic() - started), "all sessions"
                )
            render_status.print_status(found)
        if found.parked:
            output.complain("something is parked; cached-session parked list says what, and why")


async def _synced(session: CachedSession, timeout: float, drawn: progress.SyncBars) -> SyncReport:
    async def draw() -> None:
        while True:
            drawn.moved(session.session_id, session.status())
            await anyio.sleep(BAR_SECONDS)

    return await _beside(draw, session.sync(timeout))


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
    is_local = False
    async with online(settings) if recall else existing(settings) as cache:
        for name in await chosen(cache, session_ids):
            session = cache.session(name, hydrate=False)
            if recall:
                answer = await session.recall(query, limit)
                entries = answer.entries
                if answer.source == "local" and not is_local:
                    output.complain(
                        "the server cannot be asked (cached-session doctor says why): "
                        "this is what the words say"
                    )
                    is_local = True
            else:
                entries = await session.search(query, limit)
            if not as_json:
                render_history.print_found(name, entries)
            found += [
                {"session": name, "rank": e.rank, "said_at": e.said_at, "item": e.item}
                for e in entries
            ]
    if as_json:
        output.say_json(found)
    elif not found:
        output.complain("nothing found")


async def doctor(settings: Settings, *, as_json: bool, timeout: float) -> bool:
    """Print what is right and wrong; whether nothing has failed."""
    with output.waiting("looking"):
        findings = await diagnose(
            settings.journal, url=settings.url, api_key=settings.api_key, timeout=timeout
        )
    if as_json:
        output.say_json(findings)
    else:
        render_reports.print_findings(findings)
    return all(finding.level != "fail" for finding in findings)


async def audit(session_ids: list[str], settings: Settings, *, as_json: bool) -> None:
    """Compare the server with the journal and mend both."""
    reports: dict[str, Any] = {}
    async with online(settings) as cache:
        for name in await chosen(cache, session_ids):
            async with cache.session(name, hydrate=False) as session:
                reports[name] = await session.audit()
            if not as_json:
                render_reports.print_audit(name, reports[name])
    if as_json:
        output.say_json(reports)


async def compact(settings: Settings, *, as_json: bool) -> None:
    """Give back the space that nothing needs."""
    async with existing(settings) as cache:
        with output.waiting("compacting"):
            report = await cache.compact()
    if as_json:
        output.say_json(report)
    else:
        render_reports.print_compacted(report)
