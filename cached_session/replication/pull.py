"""From the server to the journal: newest first, page by page; then the holes, by id.

Whether everything is here is judged by the frontier, never by the listing: a page that shifts, a
replica that lags or a tie in ``created_at`` delays an operation, and loses none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.journal.tables.meta import note_success
from cached_session.journal.tables.pull_state import Ground, ground_of, note_pull
from cached_session.remote.errors import RemoteError
from cached_session.replication.context import Context, Reached, log
from cached_session.replication.gaps import look_for_holes
from cached_session.replication.ingest import Page, apply_page
from cached_session.replication.listing import Pages, step
from cached_session.replication.results import PullResult

__all__ = ["pull"]

STRANGE_PAGES = 20
"""Pages in a row without a memory of ours after which a listing is taken to have no end."""
MOST_PAGES = 20_000
"""Of one listing: ten million memories. A server that makes up ever new ones is not listened to
for ever."""
LARGEST_PAGE = 1000
"""The server's own limit."""
AHEAD = 2
"""Pages for each request that may be under way: some are applied while others travel."""
AHEAD_BYTES = 4 * 1024 * 1024
"""Payload of the pages that are asked for ahead, if they are like the last one."""
MOST_PASSES = 4
"""Passes over a listing whose pages do not continue each other; the rest is for later pulls."""
GROUND_SECONDS = 120
"""A pull goes this far below what the last one had seen: nodes' clocks and late visibility."""
SEAM = 100
"""Ids kept of what stands above the place where a listing was broken off."""


async def pull(
    context: Context,
    session_id: str,
    progress: Callable[[int], None] | None = None,
    *,
    whole: bool = False,
    all_holes: bool = False,
    seen: Callable[[Sequence[Part], Sequence[Dot]], None] | None = None,
) -> PullResult:
    """Bring one session up to date.

    Args:
        progress: called after each page with the operations that it brought.
        whole: list everything, not only down to known ground.
        all_holes: look for every hole now, also those whose next look is far off.
        seen: given what each page of the listing holds, known or new.

    The first listing of a session, which may be long, goes on where an earlier pull failed: what
    had come until then is here.

    Raises:
        RemoteError: the first failure; what came before it is applied.
    """
    async with context.lock("pull", session_id):
        result = PullResult()
        listing = _Listing(context, session_id, result, progress, seen)
        try:
            if await listing.go_down(whole=whole):
                # What came since it was broken off stands above the place where it went on.
                await listing.go_down()
            if listing.before.is_known or result.new or result.unreadable:
                await look_for_holes(context, session_id, result, all_holes)
        except RemoteError:
            if result.new:
                await context.pauses.record_success(session_id)
            raise
        await listing.note()
        return result


@dataclass
class _Listing:
    """A session's memories on the server, gone through from the newest one on."""

    context: Context
    session_id: str
    result: PullResult
    progress: Callable[[int], None] | None
    seen: Callable[[Sequence[Part], Sequence[Dot]], None] | None
    before: Ground = field(default_factory=Ground)
    ground: Ground | None = None
    """Where it may end; None goes to the very end."""
    is_first: bool = False
    """Whether nearly all of it will be new."""
    newest: int = 0
    """The newest second that was seen."""

    async def go_down(self, *, whole: bool = False) -> bool:
        """Down to known ground, or to the end; whether it went on from where an earlier one had
        been broken off, and came to the end.

        A listing may change its order between two requests, within one second or because
        somebody has deleted. What then slips through between two pages leaves a hole, unless it is
        a writer's last operation: so where a page does not continue the one before, all is listed
        once more, in the largest pages and one after the other, until they do or until a pass
        brings nothing.
        """
        context, result, options = self.context, self.result, self.context.options
        before = await context.journal.read(lambda conn: ground_of(conn, self.session_id))
        self.before, self.newest, result.finished = before, 0, False
        self.is_first = not before.is_hydrated
        self.ground = None if whole or self.is_first else before
        reached = context.reached.get(self.session_id) if self.is_first and not whole else None
        top = Reached(0, options.first_page_size, (), 0, is_torn=False)
        pages = Pages(context, self.session_id)
        try:
            is_torn = await self._pass(
                pages, reached or top, options.page_size, ahead=self._ahead()
            )
            went_on = reached is not None and result.finished and not is_torn
            top = Reached(0, LARGEST_PAGE, (), 0, is_torn=False)
            for _ in range(MOST_PASSES - 1):
                if not (is_torn and result.finished):
                    break
                found = result.new
                is_torn = await self._pass(pages, top, LARGEST_PAGE, ahead=1)
                is_torn = is_torn and result.new > found
            context.reached.pop(self.session_id, None)
        finally:
            await pages.aclose()
        result.went_back = result.finished and self.newest < before.second
        if went_on:
            await self.note()
        return went_on

    async def note(self) -> None:
        """Write down how far it came."""
        now, result = self.context.runtime.wall_ms(), self.result

        def finish(conn: Any) -> None:
            note_pull(
                conn,
                self.session_id,
                now_ms=now,
                ground=self.newest,
                is_same_ground=self.newest == self.before.second,
                hydrated=result.finished,
                unreadable=result.unreadable,
            )
            note_success(conn, now)

        await self.context.journal.write(finish)

    async def _pass(self, pages: Pages, start: Reached, following: int, ahead: int) -> bool:
        """From a place on, mostly the top; whether a page did not continue the one before.
        ``following``: the limit of the pages after the first; ``ahead``: how many may be asked for
        side by side."""
        context, result = self.context, self.result
        offset, limit, whole, is_torn = start.offset, start.limit, start.above, start.is_torn
        self.newest = max(self.newest, start.newest)
        before: tuple[str, ...] = ()
        strange = 0
        # Most listings end on the first page.
        width = 1
        while True:
            page = await pages.page(offset, limit, following=following, width=width)
            listed = len(page.ids)
            result.pages += 1
            if result.pages > MOST_PAGES:
                log.warning("%s lists more pages than any history has", context.remote.server)
                return False
            if not listed:
                result.finished = True
                # It has become shorter than it was, if this is where it goes on.
                return is_torn or offset == start.offset > 0
            if page.ids == before and offset:
                # The same page again for another offset: a server from before there were offsets.
                # The largest page is all that it can give; what lies below is found by the holes it
                # leaves, and where it leaves none the history does not count as hydrated.
                if listed == limit < LARGEST_PAGE:
                    limit, before, width = LARGEST_PAGE, (), 1
                    continue
                log.warning("the server at %s ignores offsets in listings", context.remote.server)
                result.finished = listed < limit
                return False
            is_torn = is_torn or not _continues(whole, page.ids)
            before = page.ids
            if self.seen is not None:
                self.seen(page.parts, page.explained)
            self.newest = max(self.newest, page.newest)
            applied = await apply_page(context, self.session_id, page, result)
            if self.progress is not None:
                self.progress(applied.new)
            is_ours = bool(page.parts or page.explained)
            strange = 0 if is_ours else strange + 1
            if strange >= STRANGE_PAGES:
                log.warning(
                    "%s lists page after page without a memory of ours", context.remote.server
                )
                return False
            short = listed < limit
            if applied.is_ground and is_ours and self._is_ground(page, short=short):
                result.finished = True
                return is_torn
            # A short page may still not be the last: only an empty one is.
            offset += listed if short else step(limit)
            whole = () if short or limit < 2 else page.ids
            if short:
                # It gives less than it is asked for: where a page begins, the one before it tells.
                ahead = 1
            if page.oldest == self.newest:
                # Within a second a listing has any order: no end is whole before all of it is here.
                following = min(2 * context.options.page_size, LARGEST_PAGE)
            limit = following
            if self.is_first and whole:
                context.reached[self.session_id] = Reached(
                    offset, limit, whole[-SEAM:], self.newest, is_torn
                )
            size = sum(len(part.text) for part in page.parts) * limit // listed
            width = max(1, min(ahead, AHEAD_BYTES // max(1, size)))

    def _ahead(self) -> int:
        """Pages that may be held or under way at a time: of a history that is all new; known ground
        is likely to be near, and what was asked for below it in vain."""
        return AHEAD * self.context.options.parallel_requests if self.is_first else 1

    def _is_ground(self, page: Page, *, short: bool) -> bool:
        """Whether a page of known memories goes so far down that nothing new lies below it."""
        ground = self.ground
        if ground is None or short:
            return ground is not None
        age_ms = self.context.now_ms() - ground.since_ms
        if self.newest <= ground.second and age_ms > 1000 * GROUND_SECONDS:
            # Nothing has come for so long that whatever was late is here: any known page is ground.
            # Not so above it: what is known there was sent from here, over what others sent before.
            return True
        return page.oldest < ground.second - GROUND_SECONDS


def _continues(above: Sequence[str], below: Sequence[str]) -> bool:
    """Whether a page begins with the end of the one above it, in the same order; also where new
    memories have pushed it down."""
    if not above:
        return True
    try:
        shared = below.index(above[-1]) + 1
    except ValueError:
        return False
    return tuple(above[-shared:]) == tuple(below[:shared])
