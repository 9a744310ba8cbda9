"""Which page of a listing comes next, and when a listing has been read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cached_session.history.ops import Dot
from cached_session.journal.tables.pull_state import PullState
from cached_session.replication import listing_scan
from cached_session.replication.listing_progress import ListingProgress
from cached_session.replication.listing_scan import (
    FEW,
    LARGEST_PAGE,
    OVERLAP,
    PAGE_GROWTH,
    PREFETCH,
    ListingCheckpoint,
    ListingScan,
    Page,
    PageRequest,
    stride,
)

NOW_MS = 2_000_000_000
KNOWN = PullState(is_known=True, is_hydrated=True, newest_second=1000, since_ms=NOW_MS)
"""The state of a session that an earlier pull has read to the end, just now."""


def scan(state: PullState = KNOWN, **more: object) -> ListingScan:
    return ListingScan(state, first_page_size=10, page_size=50, parallel_requests=4, **more)  # type: ignore[arg-type]


def page(ids: Sequence[int], newest: int = 1000, oldest: int = 0, *, is_ours: bool = True) -> Page:
    return Page(
        explained=[Dot("w", 1)] if is_ours else [],
        newest=newest,
        oldest=oldest,
        ids=tuple(map(str, ids)),
    )


def take(made: ListingScan, found: Page, *, is_known: bool = False, known: int = 0) -> None:
    """Have a page applied that the scan has requested."""
    assert made.receive(found.ids)
    made.advance(found, is_known=is_known, new=0 if is_known else 1, known=known)


def full(request: PageRequest | None, **more: int) -> Page:
    """Return a full page of a listing whose ids are its offsets."""
    assert request is not None
    return page(range(request.offset, request.offset + request.limit), **more)


def test_a_page_overlaps_the_one_above_it() -> None:
    """Full pages share some rows, or half of them if they are small."""
    assert stride(500) == 500 - OVERLAP
    assert stride(10) == 5
    assert stride(1) == 1


def test_a_scan_begins_with_a_small_page_alone() -> None:
    """Most listings end on their first page: nothing is requested ahead of it."""
    assert scan(PullState()).request == PageRequest(0, 10, 50, 1)
    assert scan().request == PageRequest(0, FEW, PAGE_GROWTH * FEW, 1)


def test_a_scan_begins_with_the_memories_that_events_have_named() -> None:
    """And the newest known memory, and one below it; a flood of events does not raise the limit."""
    assert scan(expected=7).request == PageRequest(0, 7 + FEW - 1, 4 * (7 + FEW - 1), 1)
    assert scan(expected=9000).request == PageRequest(0, 50, 50, 1)


def test_an_empty_listing_is_finished() -> None:
    """A session without memories has been read after one page."""
    made = scan()
    assert not made.receive(())
    assert made.request is None
    assert made.is_finished
    assert made.pages == 1


def test_a_first_scan_goes_to_the_end_and_requests_ahead() -> None:
    """Known pages do not end the first listing of a session; only an empty page does."""
    made = scan(PullState())
    take(made, full(made.request, oldest=1))
    assert made.request == PageRequest(stride(10), 50, 50, PREFETCH * 4)
    take(made, full(made.request, oldest=1), is_known=True)
    assert made.request is not None
    assert not made.is_finished
    assert not made.receive(())
    assert made.is_finished


def test_large_payloads_limit_the_pages_requested_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages that are under way hold no more than the limit, if they are like the last one."""
    monkeypatch.setattr(Page, "size", property(lambda _: 2 * 1024 * 1024 // 5))
    made = scan(PullState())
    take(made, full(made.request, oldest=1))
    assert made.request is not None
    assert made.request.width == 2


@pytest.mark.parametrize(("oldest", "ends"), [(999, True), (1000, False), (1001, False)])
def test_a_scan_ends_at_a_memory_that_is_older_than_the_newest_known_one(
    oldest: int, ends: bool
) -> None:
    """A new memory above it costs no further page. Memories of one second have no order, and a
    newer known memory may be one of this device, above memories of others."""
    made = scan()
    take(made, full(made.request, newest=1002, oldest=oldest), known=1)
    assert (made.request is None) is ends


def test_a_complete_second_is_not_read_again() -> None:
    """Nothing new can be among memories of a second of which all memories were listed."""
    made = scan(progress=ListingProgress(complete_second=1000))
    take(made, full(made.request, newest=1002, oldest=1000), known=1)
    assert made.request is None


def test_a_scan_grows_while_everything_is_new() -> None:
    """A page without a known memory shows that the known part is further down."""
    made = scan()
    limits = []
    for _ in range(4):
        assert made.request is not None
        limits.append(made.request.limit)
        take(made, full(made.request, newest=1002, oldest=999))
    assert limits == [FEW, 12, 48, 50]


@pytest.mark.parametrize(("oldest", "ends"), [(879, True), (880, False)])
def test_a_thorough_scan_ends_below_the_safety_distance(oldest: int, ends: bool) -> None:
    """It goes two minutes into the known part."""
    made = scan(is_thorough=True)
    take(made, full(made.request, oldest=oldest), is_known=True)
    assert (made.request is None) is ends


def test_a_thorough_scan_ends_after_many_known_memories() -> None:
    """In a busy session two minutes hold thousands of memories."""
    made = scan(is_thorough=True)
    while made.request is not None:
        take(made, full(made.request, oldest=1000), is_known=True)
    assert made._rows == FEW + 12 + 48


def test_a_short_known_page_ends_a_scan() -> None:
    """A page that is not full and brings nothing is the last of a known listing."""
    made = scan()
    take(made, page([1, 2, 3]), is_known=True)
    assert made.request is None
    assert made.is_finished


def test_a_page_that_brings_something_does_not_end_a_scan() -> None:
    """However old its memories are, there may be more below it."""
    made = scan()
    take(made, full(made.request, oldest=1))
    assert made.request is not None


def test_a_short_page_is_followed_by_its_own_length() -> None:
    """A server may list less than requested: the next page begins right below, requested alone."""
    made = scan(PullState())
    take(made, page([1, 2, 3]))
    assert made.request == PageRequest(3, 50, 50, 1)


def test_pages_of_one_second_grow() -> None:
    """The order within one second is arbitrary: larger pages bring it here sooner."""
    made = scan(PullState())
    take(made, full(made.request, newest=7, oldest=7))
    assert made.request is not None
    assert made.request.limit == 100


def test_pages_that_do_not_continue_each_other_are_read_again() -> None:
    """The listing is read once more in the largest pages, as long as that brings something."""
    made = scan(PullState())
    take(made, full(made.request, oldest=1))
    take(made, page(range(500, 550), oldest=1))
    assert not made.receive(())
    assert made.request == PageRequest(0, LARGEST_PAGE, LARGEST_PAGE, 1)
    take(made, page(range(20)))
    take(made, page(range(100, 120)), is_known=True)
    assert not made.receive(())
    assert made.request is None
    assert made.is_finished


def test_a_pass_that_brings_nothing_is_the_last() -> None:
    """A listing that changes its order at each request is not read without end."""
    made = scan(PullState())
    passes = 0
    while made.request is not None:
        passes += made.request.offset == 0
        take(made, page(range(500, 510 if passes == 1 else 1500), oldest=1), is_known=passes > 1)
        take(made, page(range(1, 40), oldest=1), is_known=passes > 1)
        assert not made.receive(())
    assert passes == 2


def test_passes_are_limited() -> None:
    """A listing whose pages never continue each other is read so often and no more."""
    made = scan(PullState())
    passes = 0
    while made.request is not None:
        passes += made.request.offset == 0
        take(made, full(made.request, oldest=1))
        take(made, page([-1, -2]))
        assert not made.receive(())
    # A short page is no check for the one below it, so the full one above it is.
    assert passes == listing_scan.MAX_PASSES


def test_new_memories_on_top_do_not_break_the_order() -> None:
    """They push the page down: it then begins with more of the one above it."""
    made = scan(PullState())
    take(made, full(made.request, oldest=1))
    take(made, page(range(2, 52), oldest=1))
    assert not made.receive(())
    assert made.request is None


def test_a_repeated_page_is_requested_in_the_largest_size() -> None:
    """A server without offsets lists no more than its largest page, and gaps find the rest."""
    made = scan(PullState())
    take(made, page(range(10), oldest=1))
    take(made, page(range(50), oldest=1))
    assert not made.receive(tuple(map(str, range(50))))
    assert made.request is not None
    assert made.request.limit == LARGEST_PAGE
    assert made.receive(tuple(map(str, range(60))))
    made.advance(page(range(60)), is_known=False, new=1)
    assert not made.receive(tuple(map(str, range(60))))
    assert made.problem is not None
    assert "offsets" in made.problem
    assert made.is_finished


def test_a_server_without_offsets_may_have_more_than_its_largest_page() -> None:
    """Then the history does not count as hydrated."""
    made = scan(PullState())
    take(made, page(range(10), oldest=1))
    take(made, page(range(50), oldest=1))
    assert not made.receive(tuple(map(str, range(50))))
    largest = page(range(LARGEST_PAGE), oldest=1)
    take(made, largest)
    assert made.request is not None
    assert not made.receive(largest.ids)
    assert made.request is None
    assert not made.is_finished


@pytest.mark.parametrize(("memories", "is_finished"), [(300, True), (700, True), (3000, False)])
def test_a_server_without_offsets_is_read_in_few_pages(memories: int, is_finished: bool) -> None:
    """It lists its newest memories for every offset."""
    made = ListingScan(PullState(), first_page_size=100, page_size=500, parallel_requests=8)
    while made.request is not None:
        found = page(range(min(memories, made.request.limit)), oldest=1)
        if made.receive(found.ids):
            made.advance(found, is_known=False, new=1)
    assert made.pages <= 5
    assert made.is_finished is is_finished


def test_pages_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that invents memories is left after so many pages, also over several scans."""
    monkeypatch.setattr(listing_scan, "MAX_PAGES", 3)
    made = scan(PullState(), pages=2)
    take(made, full(made.request, oldest=1))
    assert not made.receive(("new",))
    assert made.request is None
    assert made.problem is not None
    assert not made.is_finished


def test_foreign_pages_are_limited() -> None:
    """Pages without a memory of ours end a scan after a while; one of ours restarts the count."""
    made = scan(PullState())
    for number in range(listing_scan.FOREIGN_PAGES - 1):
        take(made, page([number], is_ours=False))
    take(made, page([-1]))
    for number in range(listing_scan.FOREIGN_PAGES):
        assert made.request is not None
        take(made, page([number + 100], is_ours=False))
    assert made.request is None
    assert not made.is_finished


def test_a_first_scan_resumes_at_its_checkpoint() -> None:
    """It goes on below what an interrupted scan has read, and tells that it did."""
    first = scan(PullState())
    take(first, full(first.request, newest=9, oldest=1))
    checkpoint = first.checkpoint()
    assert checkpoint == ListingCheckpoint(5, 50, tuple(map(str, range(10))), 9)
    second = scan(PullState(), checkpoint=checkpoint)
    assert second.request == PageRequest(5, 50, 50, 1)
    take(second, page(range(5, 55), newest=5, oldest=1))
    assert not second.receive(())
    assert second.request is None
    assert second.has_resumed
    assert second.newest == 9


def test_a_resumed_scan_has_to_continue_the_interrupted_one() -> None:
    """Otherwise the listing is read from the top."""
    checkpoint = ListingCheckpoint(5, 50, ("8", "9"), 9)
    made = scan(PullState(), checkpoint=checkpoint)
    take(made, page(range(20, 70), oldest=1))
    assert not made.receive(())
    assert not made.has_resumed
    assert made.request == PageRequest(0, LARGEST_PAGE, LARGEST_PAGE, 1)


def test_a_listing_that_has_become_shorter_is_read_again() -> None:
    """An empty page at the checkpoint shows that memories were deleted above it."""
    made = scan(PullState(), checkpoint=ListingCheckpoint(50, 50, ("49",), 9))
    assert not made.receive(())
    assert made.request == PageRequest(0, LARGEST_PAGE, LARGEST_PAGE, 1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_counts_for_a_first_scan_alone(whole: bool) -> None:
    """A scan of a known session, or of a whole listing, begins at the top."""
    checkpoint = ListingCheckpoint(5, 50, ("8", "9"), 9)
    made = scan(PullState() if whole else KNOWN, whole=whole, checkpoint=checkpoint)
    assert made.request is not None
    assert made.request.offset == 0


def test_only_a_first_scan_leaves_checkpoints() -> None:
    """Other scans end soon. A short page leaves none, because nothing can continue it."""
    made = scan()
    take(made, full(made.request, oldest=999))
    assert made.checkpoint() is None
    first = scan(PullState())
    take(first, page([1, 2]))
    assert first.checkpoint() is None


def test_a_whole_scan_passes_over_the_known_part() -> None:
    """An audit lists everything."""
    made = scan(whole=True)
    take(made, full(made.request, oldest=1), is_known=True)
    assert made.request is not None


def test_a_finished_scan_takes_no_page() -> None:
    """A page that nobody has requested is a mistake of the caller."""
    made = scan()
    assert not made.receive(())
    with pytest.raises(RuntimeError):
        made.receive(())
