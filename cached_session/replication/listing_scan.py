"""A pull's scan of a listing: which page to request next, and when the scan is complete. Pure.

A server lists the memories of a session newest first. A scan reads the listing from the top down to
the *known part*, which an earlier pull has read, or to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.journal.tables.pull_state import PullState
from cached_session.replication.listing_progress import SAFETY_SECONDS, ListingProgress

__all__ = [
    "ListingCheckpoint",
    "ListingScan",
    "Page",
    "PageRequest",
    "stride",
]

FEW = 3
"""The number of memories on the first page of a scan of a session that was listed before: a new
memory, the newest known memory, and one that was stored before it."""
PAGE_GROWTH = 4
"""The factor by which the pages of such a scan grow while they do not reach the known part."""

OVERLAP = 20
"""The number of rows that a page shares with the page above it. A deletion between two requests
moves rows from one page to the other."""
FOREIGN_PAGES = 20
"""The maximum number of successive pages without a memory of this library. The limit stops the scan
of an endless listing."""
MAX_PAGES = 20_000
"""The maximum number of pages of one pull: ten million memories. The limit ends the pull if a
server invents memories without end."""
LARGEST_PAGE = 1000
"""The largest number of rows that the server allows on a page."""
PREFETCH = 2
"""The number of pages requested ahead for each parallel request, so that some pages are applied
while others are requested."""
PREFETCH_BYTES = 4 * 1024 * 1024
"""The maximum payload in bytes of the pages that are requested ahead, estimated from the last
page."""
MAX_PASSES = 4
"""The maximum number of passes over a listing whose pages do not continue each other. Later pulls
read the rest."""
THOROUGH_ROWS = 50
"""The number of memories after which a thorough scan ends if all of them are known. In a busy
session, gaps and audits find a late memory that lies deeper."""
CHECKPOINT_IDS = 100
"""The maximum number of ids of the page above that a checkpoint stores."""


@dataclass
class Page:
    """The decoded memories of a listing page, or memories that were fetched by id."""

    parts: list[Part] = field(default_factory=list)
    explained: list[Dot] = field(default_factory=list)
    """The operations that have a placeholder on this page."""
    unreadable: int = 0
    newest: int = 0
    """The time when the newest memory was stored, in Unix seconds by the server's clock; 0 if
    unknown."""
    oldest: int = 0
    ids: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """True if the page holds a memory that this library has written."""
        return bool(self.parts or self.explained)

    @property
    def size(self) -> int:
        """The number of payload characters."""
        return sum(len(part.text) for part in self.parts)


@dataclass(frozen=True)
class PageRequest:
    """A page to request, and the maximum number of pages to request in parallel, with this page."""

    offset: int
    limit: int
    following: int
    """The limit of the pages below this page."""
    width: int = 1
    """The number of pages that may be requested, this page included."""


@dataclass(frozen=True)
class ListingCheckpoint:
    """The position at which the first listing of a session was interrupted."""

    offset: int
    limit: int
    above: tuple[str, ...] = ()
    """The last ids of the page above the position, at most `CHECKPOINT_IDS`. The next page must
    continue them."""
    newest: int = 0
    """The storage time of the newest memory listed so far, in seconds by the server's clock."""
    is_inconsistent: bool = False
    """True if some page did not continue the page above it."""


def stride(limit: int) -> int:
    """Return the distance between the offsets of a full page and of the page below it."""
    return limit - min(OVERLAP, limit // 2)


class ListingScan:
    """One reading of a listing, as a state machine.

    Fetch the page that `request` names and pass its ids to `receive`. If `receive` returns True,
    apply the page and call `advance`. Repeat until `request` is None.

    A listing may change between two requests: memories of one second may change their order, and a
    device may delete a memory. A scan may miss a memory that moves from one page to another. A
    missed operation leaves a gap, unless it is the last operation of its writer. So if a page does
    not continue the page above it, the scan reads the listing again in the largest pages, one after
    the other. The scan ends when the pages continue each other, when a pass has found nothing new,
    or after `MAX_PASSES`.
    """

    def __init__(
        self,
        state: PullState,
        *,
        first_page_size: int,
        page_size: int,
        parallel_requests: int,
        whole: bool = False,
        checkpoint: ListingCheckpoint | None = None,
        progress: ListingProgress | None = None,
        is_thorough: bool = False,
        expected: int = 0,
        pages: int = 0,
    ) -> None:
        """Prepare a scan.

        Args:
            state: the progress of earlier pulls of the session.
            whole: read down to the end, not only to the known part.
            checkpoint: the position where an earlier first listing was interrupted; None to begin
                at the top.
            progress: the scans that this process has finished; None if there were none.
            is_thorough: read `SAFETY_SECONDS` of the known part again.
            expected: the number of new memories that events have named.
            pages: the number of pages that this pull has already read. They count towards
                `MAX_PAGES`.
        """
        self.is_first = not state.is_hydrated
        """True if no pull has reached the end of the listing, so that nearly all of it is new."""
        self._known = None if whole or self.is_first else state
        self._complete_second = progress.complete_second if progress else 0
        self.is_thorough = whole or self.is_first or is_thorough
        """True if the scan reads at least `SAFETY_SECONDS` of the known part."""
        self._page_size = page_size
        self._rows = 0
        self._is_resumed = self.is_first and not whole and checkpoint is not None
        self._pass = 0
        self.pages = pages
        self.newest = 0
        """The storage time of the newest memory listed so far, in seconds by the server's clock."""
        self.is_finished = False
        """True if a pass has reached the known part or the end."""
        self.has_resumed = False
        """True if the scan began at the checkpoint, and its first pass reached the end with all
        pages continuing each other."""
        self.problem: str | None = None
        """The fault of the server that has ended the scan early; None if there was no fault."""
        self.request: PageRequest | None = None
        """The page to fetch next; None when the scan is over."""
        # After the first listing, the known part is likely to begin near the top. Pages requested
        # ahead would be discarded.
        ahead = PREFETCH * parallel_requests if self.is_first else 1
        few = min(max(FEW, expected + FEW - 1), max(first_page_size, page_size))
        top = ListingCheckpoint(0, first_page_size if self._known is None else few)
        start = checkpoint if self._is_resumed and checkpoint else top
        following = page_size if self._known is None else min(PAGE_GROWTH * few, page_size)
        self._begin_pass(start, following, ahead)

    def _begin_pass(self, start: ListingCheckpoint, following: int, ahead: int) -> None:
        self._pass += 1
        self._start = start.offset
        self._above = start.above
        self._previous: tuple[str, ...] = ()
        self._is_inconsistent = start.is_inconsistent
        self._following, self._ahead = following, ahead
        self._foreign = self._new = self._rows = 0
        self.newest = max(self.newest, start.newest)
        # Request the first page alone, because most scans end at the first page.
        self.request = PageRequest(start.offset, start.limit, following)

    def _end_pass(self, *, is_inconsistent: bool, is_finished: bool | None = None) -> None:
        if is_finished is not None:
            self.is_finished = is_finished
        if self._pass == 1:
            self.has_resumed = self._is_resumed and self.is_finished and not is_inconsistent
        elif not self._new:
            is_inconsistent = False
        self.request = None
        if is_inconsistent and self.is_finished and self._pass < MAX_PASSES:
            # Read a recent part of a known listing in pages of its size, not in the largest pages.
            largest = LARGEST_PAGE
            if self._known is not None:
                largest = min(LARGEST_PAGE, PAGE_GROWTH * max(FEW, self._rows))
            self._begin_pass(ListingCheckpoint(0, largest), largest, ahead=1)

    def _give_up(self, problem: str, *, is_finished: bool | None = None) -> None:
        self.problem = problem
        self._end_pass(is_inconsistent=False, is_finished=is_finished)

    def receive(self, ids: tuple[str, ...]) -> bool:
        """Check the ids of the requested page; return whether the caller should apply the page."""
        request = self._current()
        self.pages += 1
        if self.pages > MAX_PAGES:
            self._give_up(f"lists more than {MAX_PAGES} pages for one session")
            return False
        if not ids:
            # If the first page of a resumed scan is empty, the listing has become shorter.
            is_shorter = request.offset == self._start > 0
            self._end_pass(is_inconsistent=self._is_inconsistent or is_shorter, is_finished=True)
            return False
        if ids == self._previous and request.offset:
            self._repeated(request, len(ids))
            return False
        self._is_inconsistent = self._is_inconsistent or not _continues(self._above, ids)
        self._previous = ids
        return True

    def _repeated(self, request: PageRequest, listed: int) -> None:
        """Continue after a page that is identical to the previous page: the server ignores offsets.

        An old server does not support offsets, and can list only its largest page. The searches for
        gaps find a memory below that page if its operation leaves a gap. If the largest page is
        full, the scan does not count as finished, and the session does not count as hydrated.
        """
        if listed == request.limit < LARGEST_PAGE:
            # Request only the largest pages from now on: a smaller page would differ from the
            # largest page, the repetition would not be detected, and the scan would never end.
            self._previous, self._following = (), LARGEST_PAGE
            self.request = PageRequest(request.offset, LARGEST_PAGE, LARGEST_PAGE)
        else:
            self._give_up("ignores offsets in listings", is_finished=listed < request.limit)

    def advance(self, page: Page, *, is_known: bool, new: int, known: int = 0) -> None:
        """Choose the next page after a page was applied.

        Args:
            is_known: whether the page contained no new operations and no new parts.
            new: the number of operations on the page that the journal did not have.
            known: the number of operations on the page that the journal had.
        """
        request = self._current()
        listed = len(page.ids)
        is_short = listed < request.limit
        self.newest = max(self.newest, page.newest)
        self._new += new
        self._rows += listed
        self._foreign = 0 if page.is_ours else self._foreign + 1
        if self._foreign >= FOREIGN_PAGES:
            self._give_up(f"lists {FOREIGN_PAGES} pages in a row without a memory of ours")
            return
        known += is_known and page.is_ours
        if known and self._is_in_known_part(page.oldest, is_short, is_known):
            self._end_pass(is_inconsistent=self._is_inconsistent, is_finished=True)
            return
        # A short page need not be the last page. Only an empty page marks the end.
        offset = request.offset + (listed if is_short else stride(request.limit))
        self._above = () if is_short or request.limit < 2 else page.ids
        if is_short:
            # The server lists fewer rows than requested. So the offset of the next page depends on
            # the length of this page, and no page can be requested ahead.
            self._ahead = 1
        if self._known is not None:
            self._following = min(PAGE_GROWTH * request.limit, max(self._page_size, request.limit))
        elif page.oldest == self.newest:
            # The order of the memories of one second is arbitrary, so the scan has to read all of
            # them. Read them in larger pages.
            self._following = min(2 * self._page_size, LARGEST_PAGE)
        size = page.size * self._following // listed
        width = max(1, min(self._ahead, PREFETCH_BYTES // max(1, size)))
        self.request = PageRequest(offset, self._following, self._following, width)

    def checkpoint(self) -> ListingCheckpoint | None:
        """Return the position where a later scan can resume; None if it must begin at the top."""
        if self.request is None or not (self.is_first and self._above):
            return None
        return ListingCheckpoint(
            self.request.offset,
            self.request.limit,
            self._above[-CHECKPOINT_IDS:],
            self.newest,
            self._is_inconsistent,
        )

    def _current(self) -> PageRequest:
        if self.request is None:
            raise RuntimeError("the scan is over")
        return self.request

    def _is_in_known_part(self, oldest: int, is_short: bool, is_known: bool) -> bool:
        """Return whether the listing below a page with a known operation is known as well.

        Args:
            is_known: whether the page contained no new operations and no new parts.
        """
        state = self._known
        if state is None or is_short:
            return state is not None and is_known
        if self.is_thorough:
            is_deep = oldest < state.newest_second - SAFETY_SECONDS or self._rows >= THOROUGH_ROWS
            return is_known and is_deep
        # A pull has listed every memory that is older than the newest memory it has listed. A newer
        # memory would prove nothing: this device may have stored it above memories of other devices
        # that the journal does not have yet.
        if oldest < state.newest_second:
            return True
        return oldest == state.newest_second == self._complete_second


def _continues(above: Sequence[str], below: Sequence[str]) -> bool:
    """Return whether a page begins with the last ids of the page above it, in the same order.

    The number of shared ids may vary, because new memories at the top move the listing down.
    """
    if not above:
        return True
    try:
        shared = below.index(above[-1]) + 1
    except ValueError:
        return False
    return tuple(above[-shared:]) == tuple(below[:shared])
