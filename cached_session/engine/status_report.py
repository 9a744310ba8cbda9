"""The `Status` of a session or journal, computed from the counts in the journal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from cached_session.history.clock import stamp_ms
from cached_session.history.session_name import split_name
from cached_session.humanize import count
from cached_session.journal.recovery.report import read_report
from cached_session.journal.tables.pauses import Pause
from cached_session.journal.tables.status_counts import SessionCounts, StatusRows, totals
from cached_session.models import State, Status

__all__ = ["Viewpoint", "backlog_age", "closed", "report"]

STALLED_MS = 120_000
"""Age in milliseconds at which the outbox counts as stalled, if there is no pause and nothing was
acknowledged. It is four times the longest duration of one request."""
CLOCK_AHEAD_MS = 60_000
"""Clock difference in milliseconds above which the status reports it. Differences of seconds
between devices are normal."""


@dataclass(frozen=True)
class Viewpoint:
    """The process that requests a status, and the time of the request."""

    journal: str
    server: str | None
    """URL of the server that is configured now; None for local-only use."""
    now: int
    """Time of the request in Unix milliseconds."""
    opened: int
    """Time when the process began to use the journal, in Unix milliseconds."""
    is_closed: bool
    local_error: Callable[[str | None], str | None] = lambda _: None
    """Function that returns the error of the journal that stops the sync of a session. Its argument
    is the session id, or None for all sessions."""


def closed(journal: str, server: str | None) -> Status:
    """Return the status of a closed journal, which can no longer be read."""
    return Status(
        state="closed",
        items=0,
        pending=0,
        parked=0,
        absent=0,
        oldest_pending_age=None,
        last_success=None,
        last_error=None,
        server=server,
        journal=journal,
    )


def backlog_age(oldest: int | None, now: int) -> float | None:
    """Return the seconds that the oldest operation has waited.

    The result is never negative, even if the clock was set back. Both arguments are milliseconds.
    """
    return None if oldest is None else max(0.0, (now - oldest) / 1000)


def report(rows: StatusRows, at: Viewpoint, name: str | None, prefix: str | None) -> Status:
    """Return the status of the session with this name.

    Without a name, return the combined status of the sessions of the key prefix, and the status of
    each session by its id. Without a name and a prefix, return the combined status of all sessions,
    and the status of each prefix.
    """
    if name is not None:
        return _each(rows, at, [name])[name]
    if prefix is not None:
        return _together(rows, at, _by_prefix(rows).get(prefix, {}))
    prefixes = {
        prefix: _together(rows, at, ids) for prefix, ids in sorted(_by_prefix(rows).items())
    }
    return replace(_total(rows, at, rows.sessions), prefixes=prefixes)


def _by_prefix(rows: StatusRows) -> dict[str, dict[str, str]]:
    """Return the names of each key prefix's sessions, with their session ids."""
    found: dict[str, dict[str, str]] = {}
    for name in rows.sessions:
        prefix, session_id = split_name(name)
        found.setdefault(prefix, {})[name] = session_id
    return found


def _each(rows: StatusRows, at: Viewpoint, names: Iterable[str]) -> dict[str, Status]:
    """Return the status of each of these sessions by its name."""
    recovered = _recovered(rows)
    return {
        name: _status(name, rows.sessions[name], rows, recovered, [rows.pauses.get(name)], at)
        for name in names
    }


def _together(rows: StatusRows, at: Viewpoint, ids: dict[str, str]) -> Status:
    """Return the status of the sessions with these names, together and each by its session id."""
    each = _each(rows, at, ids)
    sessions = {session_id: each[name] for name, session_id in ids.items()}
    return replace(_total(rows, at, ids), sessions=sessions)


def _total(rows: StatusRows, at: Viewpoint, names: Collection[str]) -> Status:
    """Return the status of several sessions together."""
    counts = totals(rows.sessions[name] for name in names)
    pauses = [rows.pauses.get(name) for name in names]
    return _status(None, counts, rows, _recovered(rows), pauses, at)


def _recovered(rows: StatusRows) -> str | None:
    recovered = read_report(rows.meta)
    return None if recovered is None else recovered.summary()


def _status(
    session_id: str | None,
    counts: SessionCounts,
    rows: StatusRows,
    recovered: str | None,
    session_pauses: list[Pause | None],
    at: Viewpoint,
) -> Status:
    meta = rows.meta
    pauses = [pause for pause in (rows.server, *session_pauses) if pause is not None]
    waits = [pause.wait_ms(at.now) for pause in pauses]
    ahead = stamp_ms(counts.stamp) - at.now
    success = meta.get("last_success_ms")
    return Status(
        state=_state(rows.server, pauses, session_id, at, has_answered=bool(success)),
        items=counts.items,
        pending=counts.pending,
        parked=counts.parked,
        absent=counts.absent,
        oldest_pending_age=backlog_age(counts.oldest_pending_ms, at.now),
        last_success=int(success) / 1000 if success else None,
        last_error=pauses[-1].reason if pauses else _hindrance(counts, meta, at, session_id),
        server=at.server,
        journal=at.journal,
        retry_in=max(waits) / 1000 if waits else None,
        failing_for=(
            max(0, at.now - min(pause.since_ms for pause in pauses)) / 1000 if pauses else None
        ),
        is_refused=_is_refused(pauses),
        incomplete=counts.incomplete,
        conflicts=counts.conflicts,
        clock_ahead=ahead / 1000 if ahead > CLOCK_AHEAD_MS else None,
        unreadable=counts.unreadable,
        unguarded=counts.guard or None,
        salvaged=recovered,
        hydrated=counts.hydrated,
        last_server=meta.get("server"),
    )


def _state(
    server: Pause | None,
    pauses: list[Pause],
    session_id: str | None,
    at: Viewpoint,
    *,
    has_answered: bool,
) -> State:
    if at.is_closed:
        return "closed"
    if at.server is None:
        return "local"
    if _is_refused(pauses):
        return "unauthorized"
    if server is not None or (session_id is not None and pauses):
        return "offline"
    return "online" if has_answered else "connecting"


def _is_refused(pauses: list[Pause]) -> bool:
    return any(pause.kind == "unauthorized" for pause in pauses)


def _hindrance(
    counts: SessionCounts, meta: dict[str, str], at: Viewpoint, session_id: str | None
) -> str | None:
    """Return why sync makes no progress although no pause is set; None if nothing is wrong."""
    if at.server is None or at.is_closed:
        return None
    return at.local_error(session_id) or _stall(counts, meta, at)


def _stall(counts: SessionCounts, meta: dict[str, str], at: Viewpoint) -> str | None:
    oldest = counts.oldest_pending_ms
    if oldest is None:
        return None
    since = max(oldest, int(meta.get("last_ack_ms", 0)), at.opened)
    if at.now - since <= STALLED_MS:
        return None
    return (
        f"{count(counts.pending, 'operation')} pending, and nothing was sent for "
        f"{(at.now - since) // 1000} s: is the process alive that syncs {at.journal} (it holds the "
        "lock file next to it), and does its event loop run? cached-session doctor may name it"
    )
