"""A scan of a listing: the page to request next, and whether the listing has been read. Pure.

A server lists the memories of a session newest first. A scan reads this listing from the top down
to the part that an earlier pull has read, or to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.journal.tables.pull_state import PullState

__all__ = ["ListingCheckpoint", "ListingScan", "Page", "PageRequest", "stride"]

OVERLAP = 20
"""Rows that a page shares with the one above it. A deletion between two requests moves rows from
one page to the other."""
FOREIGN_PAGES = 20
"""Successive pages without a memory of this library after which a listing counts as endless."""
MAX_PAGES = 20_000
"""Limit on the pages of one pull: ten million memories. It stops a server that invents new ones."""
LARGEST_PAGE = 1000
"""The server's own limit."""
PREFETCH = 2
"""Pages per parallel request: some are applied while others are under way."""
PREFETCH_BYTES = 4 * 1024 * 1024
"""Limit on the payload of the pages that are requested ahead, if they are like the last one."""
MAX_PASSES = 4
"""Passes over a listing whose pages do not continue each other. Later pulls read the rest."""
SAFETY_SECONDS = 120
"""A pull reads this far into the known part. Memories may become visible late, and the clocks of
the server's nodes differ."""
CHECKPOINT_IDS = 100
"""Ids that a checkpoint keeps of the page above it."""


@dataclass
class Page:
    """Memories of a listing page, or memories that were fetched by id, decoded."""

    parts: list[Part] = field(default_factory=list)
    explained: list[Dot] = field(default_factory=list)
    """The operations that have a placeholder on this page."""
    unreadable: int = 0
    newest: int = 0
    """When the newest memory was stored, in seconds by the server's clock; 0 if unknown."""
    oldest: int = 0
    ids: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """True if the page holds a memory that this library has written."""
        return bool(self.parts or self.explained)

    @property
    def size(self) -> int:
        """Payload characters."""
        return sum(len(part.text) for part in self.parts)


@dataclass(frozen=True)
class PageRequest:
    """A page to request, and the pages that may be requested together with it."""

    offset: int
    limit: int
    following: int
    """The limit of the pages below it."""
    width: int = 1
    """The number of pages that may be requested, this one included."""


@dataclass(frozen=True)
class ListingCheckpoint:
    """The position at which the first listing of a session was interrupted."""

    offset: int
    limit: int
    above: tuple[str, ...] = ()
    """The ids right above, at most `CHECKPOINT_IDS`. The next page must continue them."""
    newest: int = 0
    """The newest second at the top of the listing."""
    is_inconsistent: bool = False
    """True if a page did not continue the one above it."""


def stride(limit: int) -> int:
    """Return the distance from the offset of a full page to that of the next one."""
    return limit - min(OVERLAP, limit // 2)


class ListingScan:
    """One reading of a listing, as a state machine.

    Fetch the page that `request` names and pass its ids to `receive`. If that returns True, apply
    the page and call `advance`. Repeat until `request` is None.

    A listing may change its order between two requests: within one second, or because a device
    has deleted a memory. A memory that this moves from one page to another leaves a gap, unless
    it is the last operation of its writer. So if a page does not continue the one above it, the
    listing is read again in the largest pages, one after the other. This ends when the pages
    continue each other, when a pass brings nothing new, or after `MAX_PASSES`.
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
        pages: int = 0,
    ) -> None:
        """Prepare a scan.

        Args:
            state: how far earlier pulls of the session have read.
            whole: read down to the end, not only to the known part.
            checkpoint: where an earlier first listing was interrupted.
            pages: pages that this pull has read already, for the limit.
        """
        self.is_first = not state.is_hydrated
        """True if nearly all of the listing is new."""
        self._known = None if whole or self.is_first else state
        self._page_size = page_size
        self._is_resumed = self.is_first and not whole and checkpoint is not None
        self._pass = 0
        self.pages = pages
        self.newest = 0
        """The newest second listed so far."""
        self.is_finished = False
        """True if a pass has reached the known part or the end."""
        self.has_resumed = False
        """True if the scan went on at the checkpoint, and came to the end."""
        self.problem: str | None = None
        """The fault of the server that has ended the scan early; None if there is none."""
        self.request: PageRequest | None = None
        """The page to fetch next; None when the scan is over."""
        # The known part is likely to be near the top: pages below it would be fetched for nothing.
        ahead = PREFETCH * parallel_requests if self.is_first else 1
        top = ListingCheckpoint(0, first_page_size)
        start = checkpoint if self._is_resumed and checkpoint else top
        self._begin_pass(start, page_size, ahead)

    def _begin_pass(self, start: ListingCheckpoint, following: int, ahead: int) -> None:
        self._pass += 1
        self._start = start.offset
        self._above = start.above
        self._previous: tuple[str, ...] = ()
        self._is_inconsistent = start.is_inconsistent
        self._following, self._ahead = following, ahead
        self._foreign = self._new = 0
        self.newest = max(self.newest, start.newest)
        # Most listings end on the first page: it is requested alone.
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
            self._begin_pass(ListingCheckpoint(0, LARGEST_PAGE), LARGEST_PAGE, ahead=1)

    def _give_up(self, problem: str, *, is_finished: bool | None = None) -> None:
        self.problem = problem
        self._end_pass(is_inconsistent=False, is_finished=is_finished)

    def receive(self, ids: tuple[str, ...]) -> bool:
        """Take the ids of the requested page; return whether the page is to be applied."""
        request = self._current()
        self.pages += 1
        if self.pages > MAX_PAGES:
            self._give_up(f"lists more than {MAX_PAGES} pages for one session")
            return False
        if not ids:
            # At the start of a resumed scan this means that the listing has become shorter.
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
        """Take the same page for another offset: the server is older than offsets.

        Its largest page is all that it can list. Memories below are found by the gaps that they
        leave. If they leave none, the history does not count as hydrated.
        """
        if listed == request.limit < LARGEST_PAGE:
            # A smaller page after the largest one would differ from it, and so on without end.
            self._previous, self._following = (), LARGEST_PAGE
            self.request = PageRequest(request.offset, LARGEST_PAGE, LARGEST_PAGE)
        else:
            self._give_up("ignores offsets in listings", is_finished=listed < request.limit)

    def advance(self, page: Page, *, is_known: bool, new: int, now_ms: int) -> None:
        """Choose the next page after one that was applied.

        Args:
            is_known: whether the page brought nothing.
            new: the number of operations that it brought.
        """
        request = self._current()
        listed = len(page.ids)
        is_short = listed < request.limit
        self.newest = max(self.newest, page.newest)
        self._new += new
        self._foreign = 0 if page.is_ours else self._foreign + 1
        if self._foreign >= FOREIGN_PAGES:
            self._give_up(f"lists {FOREIGN_PAGES} pages in a row without a memory of ours")
            return
        if is_known and page.is_ours and self._is_in_known_part(page.oldest, is_short, now_ms):
            self._end_pass(is_inconsistent=self._is_inconsistent, is_finished=True)
            return
        # A short page need not be the last one: only an empty page is.
        offset = request.offset + (listed if is_short else stride(request.limit))
        self._above = () if is_short or request.limit < 2 else page.ids
        if is_short:
            # The server lists less than requested. Only the length of a page shows where the next
            # one begins.
            self._ahead = 1
        if page.oldest == self.newest:
            # The order within one second is arbitrary. No end is certain before all of it is here.
            self._following = min(2 * self._page_size, LARGEST_PAGE)
        size = page.size * self._following // listed
        width = max(1, min(self._ahead, PREFETCH_BYTES // max(1, size)))
        self.request = PageRequest(offset, self._following, self._following, width)

    def checkpoint(self) -> ListingCheckpoint | None:
        """Return where a later scan can resume; None if it has to begin at the top."""
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

    def _is_in_known_part(self, oldest: int, is_short: bool, now_ms: int) -> bool:
        """Return whether nothing new can lie below a page that brought nothing."""
        known = self._known
        if known is None or is_short:
            return known is not None
        age_ms = now_ms - known.since_ms
        if self.newest <= known.newest_second and age_ms > 1000 * SAFETY_SECONDS:
            # Nothing was stored for so long that late memories are visible by now. This does not
            # hold if something newer is listed: this device may have stored it above memories of
            # other devices that are not here yet.
            return True
        return oldest < known.newest_second - SAFETY_SECONDS


def _continues(above: Sequence[str], below: Sequence[str]) -> bool:
    """Return whether a page begins with the end of the one above it, in the same order.

    New memories may have moved that end down: then the page begins with more of it.
    """
    if not above:
        return True
    try:
        shared = below.index(above[-1]) + 1
    except ValueError:
        return False
    return tuple(above[-shared:]) == tuple(below[:shared])
