"""Pull a session: read its listing page by page, newest first, then fetch the gaps by id.

The frontier, not the listing, shows which operations the journal has. So a page that shifts, a node
that lags or a tie in ``created_at`` may delay an operation, but no operation is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.pull_state import PullState
from cached_session.remote.errors import RemoteError
from cached_session.replication.context import Context, log
from cached_session.replication.gaps import search_gaps
from cached_session.replication.ingest import apply_page
from cached_session.replication.listing import PageFetcher
from cached_session.replication.listing_progress import (
    first_progress,
    needs_thorough_scan,
    next_progress,
)
from cached_session.replication.listing_scan import ListingScan
from cached_session.replication.results import PullResult

__all__ = ["pull"]

PageObserver = Callable[[Sequence[Part], Sequence[Dot]], None]
"""A function that receives the parts and the explained dots of each page, both new and known."""


async def pull(
    context: Context,
    session: SessionRef,
    on_applied: Callable[[], None] | None = None,
    *,
    whole: bool = False,
    all_gaps: bool = False,
    on_page: PageObserver | None = None,
    expected: int = 0,
) -> PullResult:
    """Fetch and apply the operations of one session that the journal does not have.

    The first listing of a session may be long. It resumes where an earlier pull was interrupted.

    Args:
        on_applied: called after each page that was applied.
        whole: read the listing to its end, not only down to the known part.
        all_gaps: search for every gap now, also for gaps that are not due.
        on_page: called with each page of the listing before it is applied.
        expected: the number of new memories that events have named.

    Raises:
        RemoteError: the first failure. The pages before it are applied.
    """
    async with context.lock("pull", session.name):
        result = PullResult()
        listing = _Listing(context, session, result, on_applied, on_page, expected)
        try:
            if await listing.read(whole=whole):
                # Read again from the top: memories stored since the interruption are above the
                # checkpoint.
                await listing.read()
            if listing.state.is_known or result.new or result.unreadable:
                await search_gaps(context, session, result, all_gaps=all_gaps)
        except RemoteError:
            if result.new:
                await context.pauses.record_success(session.name)
            raise
        await listing.record()
        return result


@dataclass
class _Listing:
    """The listing of a session, read from the newest memory to older memories."""

    context: Context
    session: SessionRef
    result: PullResult
    on_applied: Callable[[], None] | None
    on_page: PageObserver | None
    expected: int = 0
    state: PullState = field(default_factory=PullState)
    """The progress of earlier pulls."""
    newest: int = 0
    """The storage time of the newest listed memory, in Unix seconds by the server's clock."""
    server_second: int = 0
    """The server's time when it returned the first page, in Unix seconds; 0 if it is unknown."""

    async def read(self, *, whole: bool = False) -> bool:
        """Read down to the known part, or to the end, and apply each page.

        Returns:
            Whether this scan resumed an interrupted listing and reached its end.
        """
        context, result, options = self.context, self.result, self.context.options
        checkpoints, session_id = context.listing_checkpoints, self.session.name
        state = self.state = await context.journal.pulls.of(self.session)
        began_ms = context.now_ms()
        progress = context.listing_progress.get(session_id) or first_progress(state, began_ms)
        scan = ListingScan(
            state,
            first_page_size=options.first_page_size,
            page_size=options.page_size,
            parallel_requests=options.parallel_requests,
            whole=whole,
            checkpoint=checkpoints.get(session_id),
            progress=progress,
            is_thorough=needs_thorough_scan(state, progress, began_ms),
            expected=self.expected,
            pages=result.pages,
        )
        fetcher = PageFetcher(context, self.session)
        try:
            while scan.request is not None:
                await self._read_page(scan, fetcher)
                checkpoint = scan.checkpoint()
                if checkpoint is not None:
                    checkpoints[session_id] = checkpoint
        finally:
            await fetcher.aclose()
            result.pages, result.finished = scan.pages, scan.is_finished
            self.newest = scan.newest
        checkpoints.pop(session_id, None)
        if scan.problem is not None:
            server, problem = context.remote.server, scan.problem
            log.warning("the server at %s %s: stopped reading the listing", server, problem)
        if result.finished:
            reached = next_progress(
                progress,
                state,
                newest=scan.newest,
                is_thorough=scan.is_thorough,
                began_ms=began_ms,
                server_second=self.server_second,
            )
            context.record_progress(session_id, reached)
        result.went_back = result.finished and self.newest < self.state.newest_second
        if scan.has_resumed:
            await self.record()
        return scan.has_resumed

    async def _read_page(self, scan: ListingScan, fetcher: PageFetcher) -> None:
        """Fetch the page that the scan requests, and apply it."""
        request = scan.request
        assert request is not None  # noqa: S101 - the caller has checked it
        page = await fetcher.fetch(request)
        if not scan.pages:
            self.server_second = self.context.remote.server_second
        if not scan.receive(page.ids):
            return
        if self.on_page is not None:
            self.on_page(page.parts, page.explained)
        applied = await apply_page(self.context, self.session, page, self.result)
        if self.on_applied is not None:
            self.on_applied()
        scan.advance(page, is_known=applied.is_known, new=applied.new, known=applied.known)

    async def record(self) -> None:
        """Store the progress of this pull in the journal."""
        await self.context.journal.pulls.record(
            self.session,
            now_ms=self.context.runtime.wall_ms(),
            newest_second=self.newest,
            is_hydrated=self.result.finished,
            unreadable=self.result.unreadable,
        )
