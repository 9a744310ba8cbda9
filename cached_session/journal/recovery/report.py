"""The report of a recovery: the counts of copied operations, and the rows that could not be
read."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import asdict, dataclass

from cached_session.humanize import count
from cached_session.journal.tables.meta import write_meta

__all__ = ["NOTHING_LOST", "Losses", "RecoveryReport", "read_report", "write_report"]

NOTHING_LOST = "nothing unsent was lost"
"""Part of the summary of a recovery without losses."""
MAX_NAMED_LOSSES = 100
"""Maximum number of losses that a report describes one by one. Further losses are only counted."""


@dataclass(frozen=True)
class RecoveryReport:
    """The result of replacing a journal file that was damaged, deleted or replaced.

    Stored as JSON in the `meta` table, so the names of the fields belong to the format.
    """

    at_ms: int
    """The time of the recovery, in Unix milliseconds."""
    why: str
    """The reason of the recovery: the damage, or that the file was deleted or replaced."""
    source: str
    """The device and inode of the old file."""
    set_aside: str | None = None
    """The new path of the damaged file; None if another program removed or replaced the file."""
    operations: int = 0
    """The number of copied operations."""
    unsent: int = 0
    """The number of copied operations that no server had acknowledged."""
    lost: tuple[str, ...] = ()
    """Descriptions of the rows and items that could not be read."""
    lost_more: int = 0
    """The number of losses that are not described in `lost`."""

    def summary(self) -> str:
        """Return the report in one line, for the status and the log."""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.at_ms / 1000))
        old = f"the old file is {self.set_aside}" if self.set_aside else "the old file was not kept"
        return (
            f"{when}: {self.why}; copied {count(self.operations, 'operation')} to a new file, "
            f"{self.unsent} of them unsent; {self._losses()}; {old}"
        )

    def _losses(self) -> str:
        if not self.lost:
            return NOTHING_LOST
        named = "; ".join(self.lost)
        more = f"; and {self.lost_more} more" if self.lost_more else ""
        return f"{count(len(self.lost) + self.lost_more, 'loss', 'losses')}: {named}{more}"


class Losses:
    """Descriptions of lost rows and items, up to a maximum, and the number of further losses."""

    def __init__(self) -> None:
        self.named: list[str] = []
        self.more = 0

    def add(self, text: str) -> None:
        """Add a description. If the maximum is reached, only count the loss."""
        if len(self.named) < MAX_NAMED_LOSSES:
            self.named.append(text)
        else:
            self.more += 1


def read_report(meta: dict[str, str]) -> RecoveryReport | None:
    """Return the latest report in the meta rows of a journal; None if no report is stored."""
    text = meta.get("salvage")
    if text is None:
        return None
    found = json.loads(text)
    return RecoveryReport(**{**found, "lost": tuple(found["lost"])})


def write_report(conn: sqlite3.Connection, report: RecoveryReport) -> None:
    """Store a report in the new journal."""
    write_meta(conn, salvage=json.dumps(asdict(report)))
