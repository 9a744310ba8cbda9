"""Progress bars on a terminal. Elsewhere nothing is drawn; the report at the end is enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cached_session.cli.escape import safe_id
from cached_session.humanize import count

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from cached_session import ImportProgress, Status

MOST_KEPT_BARS = 12
"""Number of sessions above which the bar of a session is removed when its sync ends."""

__all__ = ["ImportBars", "SyncBars", "import_bars", "sync_bars"]


class SyncBars:
    """The progress bars of a sync: one for each session, and one for all sessions."""

    def __init__(self, progress: Progress | None, sessions: int) -> None:
        self._progress = progress
        self._sessions = sessions
        self._tasks: dict[str, tuple[TaskID, int, int]] = {}
        if progress is not None:
            self._all = progress.add_task("all sessions", total=sessions, detail="")

    def start(self, session: str, status: Status) -> None:
        """Add the bar of a session."""
        if self._progress is not None:
            task = self._progress.add_task(
                safe_id(session), total=status.pending or None, detail=""
            )
            self._tasks[session] = task, status.pending, status.items

    def update(self, session: str, status: Status) -> None:
        """Show the progress of a session: first the operations sent, then the items fetched."""
        if self._progress is not None and session in self._tasks:
            task, pending, items = self._tasks[session]
            fetched = status.items - items
            detail = f"{count(fetched, 'item')} fetched" if fetched > 0 else ""
            if status.pending or not pending:
                # The number of items to fetch is unknown, so only a bar for sending has a total.
                self._progress.update(
                    task,
                    total=pending or None,
                    completed=max(0, pending - status.pending),
                    detail=detail or f"{pending - status.pending} of {pending} sent",
                )
            else:
                self._progress.update(task, total=None, detail=detail or f"{pending} sent")

    def finish(self, session: str, status: Status) -> None:
        """Complete the bar of a session that is synced or has failed. If there are many sessions,
        remove the bar."""
        if self._progress is not None:
            task, pending, items = self._tasks.pop(session)
            sent, fetched = pending - status.pending, status.items - items
            self._progress.update(
                task,
                total=1,
                completed=1,
                detail=f"{max(0, sent)} sent, {count(fetched, 'item')} fetched",
            )
            if self._sessions > MOST_KEPT_BARS:
                self._progress.remove_task(task)
            self._progress.advance(self._all)


class ImportBars:
    """The progress bars of an import: one for each session, and one while the source is read."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        if progress is not None:
            self._reading = progress.add_task("reading", total=None, detail="")

    def __call__(self, done: ImportProgress) -> None:
        """Show the progress of an import. The import calls this after each batch."""
        if self._progress is None:
            return
        self._progress.update(self._reading, visible=False)
        if done.session_id not in self._tasks:
            self._tasks[done.session_id] = self._progress.add_task(
                safe_id(done.session_id), total=done.total, detail=""
            )
        self._progress.update(
            self._tasks[done.session_id], completed=done.done, detail=f"{done.added} added"
        )


@contextmanager
def sync_bars(sessions: int) -> Iterator[SyncBars]:
    """Show the progress bars of a sync of this number of sessions."""
    with _progress() as progress:
        yield SyncBars(progress, sessions)


@contextmanager
def import_bars() -> Iterator[ImportBars]:
    """Show the progress bars of an import."""
    with _progress() as progress:
        yield ImportBars(progress)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
    ) as progress:
        yield progress
