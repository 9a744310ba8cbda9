"""Checks of the journal's content: pending, parked and missing operations, audits, search index."""

from __future__ import annotations

from collections.abc import Iterator

from cached_session.diagnosis.finding import Finding
from cached_session.humanize import count, lasting
from cached_session.journal.recovery.report import NOTHING_LOST
from cached_session.journal.tables.audit_state import AuditOverview
from cached_session.models import Status

__all__ = ["LATE_SECONDS", "check_audits", "check_search_index", "check_status"]

LATE_SECONDS = 2 * 86_400.0
"""Seconds since the last audit after which a session is reported. The value is twice the default
time between two audits of a session."""
OLD_SECONDS = 3600.0
"""Seconds after which a pending operation is reported."""


def check_status(
    status: Status, *, server_is_checked: bool, old_file_exists: bool
) -> list[Finding]:
    """Report each problem in the status of a journal.

    Args:
        status: the status of all sessions of the journal.
        server_is_checked: True if the findings include those of the server.
        old_file_exists: True if a damaged file that was set aside is next to the journal.
    """
    return [
        *_check_outbox(status, server_is_checked),
        *_check_parked(status),
        *_check_history(status),
        *_check_salvaged(status, old_file_exists),
    ]


def _check_outbox(status: Status, server_is_checked: bool) -> Iterator[Finding]:
    age = status.oldest_pending_age
    if not status.pending:
        yield Finding("outbox", "ok", "the server has acknowledged all operations")
    else:
        waiting = f"not sent yet: {count(status.pending, 'operation')}"
        waiting += f", the oldest for {lasting(age)}" if age else ""
        if (age or 0.0) <= OLD_SECONDS:
            yield Finding("outbox", "ok", waiting)
        elif status.last_error:
            yield Finding(
                "outbox",
                "warn",
                waiting,
                "see the last sync below; the operations are safe in the journal",
            )
        else:
            yield Finding("outbox", "warn", waiting, "run cached-session sync and read its output")
    if not status.last_error:
        return
    failing = f"failing for {lasting(status.failing_for)}: " if status.failing_for else ""
    if status.is_refused:
        advice = (
            "use a key that the server accepts: DAKERA_API_KEY, --api-key, or api_key in the "
            "configuration file; a running application needs it too"
        )
    elif server_is_checked:
        advice = "see the server's current answer below; cached-session sync retries immediately"
    else:
        advice = "check it again: cached-session doctor --url, or cached-session sync"
    yield Finding("last sync", "warn", failing + status.last_error, advice)


def _check_parked(status: Status) -> Iterator[Finding]:
    if status.parked:
        yield Finding(
            "parked",
            "warn",
            f"refused permanently by the server: {count(status.parked, 'operation')}",
            "run cached-session parked list for the reasons, fix them, then run parked retry --all",
        )


def _check_history(status: Status) -> Iterator[Finding]:
    if status.absent:
        yield Finding(
            "absent",
            "warn",
            f"written by other devices and not found: {count(status.absent, 'operation')}",
            "run cached-session audit here and on the devices that wrote them",
        )
    if status.conflicts:
        yield Finding(
            "conflicts",
            "warn",
            f"received again with different content: {count(status.conflicts, 'operation')}; the "
            "first content is kept",
            "look for another program that writes to these namespaces",
        )
    if status.unreadable:
        yield Finding(
            "unreadable",
            "warn",
            f"not readable in the last pull: {count(status.unreadable, 'memory', 'memories')}",
            "upgrade cached-session here, then run cached-session audit",
        )
    if status.clock_ahead is not None:
        yield Finding(
            "clock",
            "warn",
            f"an operation has a time that is {lasting(status.clock_ahead)} ahead of this device's "
            "clock: the clock of a device is or was wrong",
            "set the clocks: displayed times are wrong, the order is not affected",
        )


def _check_salvaged(status: Status, old_file_exists: bool) -> Iterator[Finding]:
    if status.salvaged is not None:
        lost = NOTHING_LOST not in status.salvaged
        if not lost and not old_file_exists:
            yield Finding("salvaged", "ok", status.salvaged)
            return
        yield Finding(
            "salvaged",
            "warn",
            status.salvaged,
            "run cached-session sync to fetch what the server has; look for the rest on the other "
            "devices, and keep the old file"
            if lost
            else "check the history, then delete the old file",
        )


def check_audits(audits: AuditOverview, now_ms: int) -> list[Finding]:
    """Report sessions that need an audit: suspected losses, and audits that are overdue."""
    found = []
    if audits.suspected:
        found.append(
            Finding(
                "audit",
                "warn",
                f"the server seems to have lost something of {count(audits.suspected, 'session')}",
                "run cached-session audit to send it again; a process that syncs does so within "
                "the hour",
            )
        )
    if audits.late:
        waited = lasting((now_ms - audits.oldest_ms) / 1000)
        found.append(
            Finding(
                "audit",
                "warn",
                f"not compared with the server for longer than {lasting(LATE_SECONDS)}: "
                f"{audits.late} of {count(audits.sessions, 'session')}, one of them for "
                f"{waited}",
                "run cached-session audit to compare them now; a process that syncs compares four "
                "in an hour",
            )
        )
    return found


def check_search_index(is_sound: bool | None) -> Finding:
    """Report the state of the full-text index; ``is_sound`` is None if there is no such index."""
    if is_sound is None:
        return Finding(
            "search",
            "warn",
            "this SQLite has no full-text index: a search scans the whole session",
            "use a Python whose sqlite3 has FTS5 (SQLite 3.34 or later) for faster searches",
        )
    if is_sound:
        return Finding("search", "ok", "the index is intact")
    return Finding(
        "search",
        "warn",
        "the index is damaged: searches may miss items",
        "run cached-session compact to rebuild it",
    )
