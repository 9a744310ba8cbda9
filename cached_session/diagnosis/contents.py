"""What the journal holds that somebody should know of."""

from __future__ import annotations

from cached_session.diagnosis.finding import Finding
from cached_session.status import Status

__all__ = ["contents"]


def contents(status: Status) -> list[Finding]:
    """One finding for each thing that waits, is missing or makes no sense."""
    found = []
    age = status.oldest_pending_age
    if status.pending:
        found.append(
            Finding(
                "outbox",
                "warn" if (age or 0.0) > 3600 else "ok",
                f"{status.pending} operations wait for the server"
                + (f", the oldest for {age / 60:.0f} min" if age else ""),
                "cached-session sync" if (age or 0.0) > 3600 else "",
            )
        )
    else:
        found.append(Finding("outbox", "ok", "nothing waits for the server"))
    if status.parked:
        found.append(
            Finding(
                "parked",
                "warn",
                f"{status.parked} operations that the server refuses for good",
                "cached-session parked list",
            )
        )
    if status.absent:
        found.append(
            Finding(
                "absent",
                "warn",
                f"{status.absent} operations of other devices that nobody has been able to find",
                "cached-session audit, here and on the devices that wrote them",
            )
        )
    if status.conflicts:
        found.append(
            Finding(
                "conflicts",
                "warn",
                f"{status.conflicts} operations came again with other content; the first stays",
                "look for a program that writes to these namespaces besides this library",
            )
        )
    if status.unreadable:
        found.append(
            Finding(
                "unreadable",
                "warn",
                f"{status.unreadable} memories of the last pull could not be read",
                "upgrade cached-session here, then cached-session audit",
            )
        )
    if status.clock_ahead is not None:
        found.append(
            Finding(
                "clock",
                "warn",
                f"a device wrote {status.clock_ahead / 60:.0f} min ahead of this one's clock",
                "set the clocks: order does not suffer, shown times do",
            )
        )
    if status.last_error:
        found.append(Finding("last sync", "warn", status.last_error, "cached-session sync"))
    return found
