"""Progress bars on a terminal; elsewhere nothing is drawn, and the report at the end is enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cached_session.cli.escape import safe_id

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from cached_session import ImportProgress, Status

FEW = 12
"""Bars that stay when they are done; of more sessions only those under way are shown."""

__all__ = ["ImportBars", "SyncBars", "import_bars", "sync_bars"]


class SyncBars:
    """A bar for each session under way, and one for all of them."""

    def __init__(self, progress: Progress | None, sessions: int) -> None:
        self._progress = progress
        self._sessions = sessions
        self._tasks: dict[str, tuple[TaskID, int, int]] = {}
        if progress is not None:
            self._all = progress.add_task("all sessions", total=sessions, detail="")

    def began(self, session_id: str, status: Status) -> None:
        """A session's turn has come."""
        if self._progress is not None:
            task = self._progress.add_task(
                safe_id(session_id), total=status.pending or None, detail=""
            )
            self._tasks[session_id] = task, status.pending, status.items

    def moved(self, session_id: str, status: Status) -> None:
        """How far it is: the queue shrinks, then the history grows."""
        if self._progress is not None and session_id in self._tasks:
            task, pending, items = self._tasks[session_id]
            fetched = status.items - items
            detail = f"{fetched} items fetched" if fetched > 0 else ""
            if status.pending or not pending:
                # What is to be fetched has no known end: the bar only moves.
                self._progress.update(
                    task,
                    total=pending or None,
                    completed=max(0, pending - status.pending),
                    detail=detail or f"{pending - status.pending} of {pending} sent",
                )
            else:
                self._progress.update(task, total=None, detail=detail or f"{pending} sent")

    def done(self, session_id: str, status: Status) -> None:
        """It is synced, or has failed: its line stays only among few."""
        if self._progress is not None:
            task, pending, items = self._tasks.pop(session_id)
            sent, fetched = pending - status.pending, status.items - items
            self._progress.update(
                task, total=1, completed=1, detail=f"{max(0, sent)} sent, {fetched} items fetched"
            )
            if self._sessions > FEW:
                self._progress.remove_task(task)
            self._progress.advance(self._all)


class ImportBars:
    """A bar for each session that comes in, and one while the source is only read."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        if progress is not None:
            self._reading = progress.add_task("reading", total=None, detail="")

    def __call__(self, news: ImportProgress) -> None:
        """Told by the import after each batch."""
        if self._progress is None:
            return
        self._progress.update(self._reading, visible=False)
        if news.session_id not in self._tasks:
            self._tasks[news.session_id] = self._progress.add_task(
                safe_id(news.session_id), total=news.total, detail=""
            )
        self._progress.update(
            self._tasks[news.session_id], completed=news.done, detail=f"{news.added} added"
        )


@contextmanager
def sync_bars(sessions: int) -> Iterator[SyncBars]:
    """Bars for a sync of so many sessions."""
    with _progress() as progress:
        yield SyncBars(progress, sessions)


@contextmanager
def import_bars() -> Iterator[ImportBars]:
    """Bars for an import."""
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
