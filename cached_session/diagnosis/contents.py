"""What the journal holds that somebody should know of."""

from __future__ import annotations

from collections.abc import Iterator

from cached_session.diagnosis.finding import Finding
from cached_session.humanize import count, lasting
from cached_session.journal.tables.audit_state import Standing
from cached_session.models import Status

__all__ = ["LATE_SECONDS", "audits_due", "contents", "search_index"]

LATE_SECONDS = 2 * 86_400.0
"""Twice as long as an audit of a session takes to come round, unless there are very many."""
OLD_SECONDS = 3600.0
"""What waits for longer does so for a reason that somebody should look at."""


def contents(status: Status, *, is_asked: bool, is_kept: bool = True) -> list[Finding]:
    """One finding for each thing that waits, is missing or makes no sense.

    ``is_asked``: the server is looked at as well, and answers for itself. ``is_kept``: a damaged
    journal is still beside this one.
    """
    return [
        *_queue(status, is_asked),
        *_refused(status),
        *_missing(status),
        *_salvaged(status, is_kept),
    ]


def _queue(status: Status, is_asked: bool) -> Iterator[Finding]:
    age = status.oldest_pending_age
    if not status.pending:
        yield Finding("outbox", "ok", "nothing waits for the server")
    else:
        waiting = f"waiting for the server: {count(status.pending, 'operation')}"
        waiting += f", the oldest for {lasting(age)}" if age else ""
        if (age or 0.0) <= OLD_SECONDS:
            yield Finding("outbox", "ok", waiting)
        elif status.last_error:
            yield Finding("outbox", "warn", waiting, "nothing is lost; see the last sync below")
        else:
            yield Finding("outbox", "warn", waiting, "cached-session sync, and see what it says")
    if not status.last_error:
        return
    failing = f"failing for {lasting(status.failing_for)}: " if status.failing_for else ""
    if status.is_refused:
        advice = (
            "give it a key that the server takes: DAKERA_API_KEY, --api-key, or api_key in the "
            "configuration file; an application that is running needs it too"
        )
    elif is_asked:
        advice = "what the server says now is below; cached-session sync tries at once"
    else:
        advice = "look whether it still is so: cached-session doctor --url, or cached-session sync"
    yield Finding("last sync", "warn", failing + status.last_error, advice)


def _refused(status: Status) -> Iterator[Finding]:
    if status.parked:
        yield Finding(
            "parked",
            "warn",
            f"refused by the server for good: {count(status.parked, 'operation')}",
            "cached-session parked list says why; once that is mended, parked retry --all",
        )


def _missing(status: Status) -> Iterator[Finding]:
    if status.absent:
        yield Finding(
            "absent",
            "warn",
            f"of other devices, and nobody has been able to find: "
            f"{count(status.absent, 'operation')}",
            "cached-session audit, here and on the devices that wrote them",
        )
    if status.conflicts:
        yield Finding(
            "conflicts",
            "warn",
            f"came again with other content: {count(status.conflicts, 'operation')}; the first "
            "stays",
            "look for a program that writes to these namespaces besides this library",
        )
    if status.unreadable:
        yield Finding(
            "unreadable",
            "warn",
            f"could not be read by the last pull: {count(status.unreadable, 'memory', 'memories')}",
            "upgrade cached-session here, then cached-session audit",
        )
    if status.clock_ahead is not None:
        yield Finding(
            "clock",
            "warn",
            f"something here was written {lasting(status.clock_ahead)} ahead of this device's "
            "clock: one of the devices has, or had, a wrong one",
            "set the clocks: order does not suffer, shown times do",
        )


def _salvaged(status: Status, is_kept: bool) -> Iterator[Finding]:
    if status.salvaged is not None:
        lost = "losses:" in status.salvaged
        if not lost and not is_kept:
            yield Finding("salvaged", "ok", status.salvaged)
            return
        yield Finding(
            "salvaged",
            "warn",
            status.salvaged,
            "cached-session sync: what the server has comes back; for the rest look at the other "
            "devices, and keep the old file"
            if lost
            else "once nothing is missed, delete the old file",
        )


def audits_due(standing: Standing, now_ms: int) -> list[Finding]:
    """Whether the journal and the server have been compared lately."""
    found = []
    if standing.suspected:
        found.append(
            Finding(
                "audit",
                "warn",
                f"the server seems to have lost something of "
                f"{count(standing.suspected, 'session')}",
                "cached-session audit puts it back; a process that syncs does so within the hour",
            )
        )
    if standing.late:
        waited = lasting((now_ms - standing.oldest_ms) / 1000)
        found.append(
            Finding(
                "audit",
                "warn",
                f"not compared with the server for longer than {lasting(LATE_SECONDS)}: "
                f"{standing.late} of {count(standing.sessions, 'session')}, one of them for "
                f"{waited}",
                "cached-session audit compares them now; a process that syncs does so with four an "
                "hour",
            )
        )
    return found


def search_index(is_sound: bool | None) -> Finding:
    """What a look at the full-text index has shown; None: the file, just opened, has none."""
    if is_sound is None:
        return Finding(
            "search",
            "warn",
            "this SQLite has no full-text index: a search looks through its whole session",
            "a Python whose sqlite3 has FTS5 (SQLite 3.34 or later) makes long sessions fast",
        )
    if is_sound:
        return Finding("search", "ok", "its index is whole")
    return Finding(
        "search",
        "warn",
        "its index is damaged: searches may miss words",
        "cached-session compact builds it anew",
    )
