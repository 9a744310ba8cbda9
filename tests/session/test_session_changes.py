"""Following a session: each change is reported once, in order and immediately."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached_session import (
    CachedSession,
    Change,
    Changes,
    Entry,
    SessionCache,
    SessionClosed,
    SyncOptions,
)
from cached_session.devserver import DevServer, Modes
from cached_session.journal.tables import change_cursor
from cached_session.runtime import Runtime
from tests.journal_rows import change_payloads
from tests.session.session_support import Child, contents, messages

WOKEN = SyncOptions(
    watch_interval=3600.0,
    poll_interval=3600.0,
    poll_interval_idle=3600.0,
    listen=False,
    push_delay=0.0,
)
"""Who follows does not look by itself in the time of a test: it has to be woken."""
LOOKING = SyncOptions(watch_interval=0.02)


async def step_to_wait(changes: Changes) -> asyncio.Task[Any]:
    """Start a step, and return it when it has ended or has found nothing and waits for news."""
    looked, look = asyncio.Event(), changes._look

    async def observed() -> None:
        await look()
        looked.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changes, "_look", observed)
        step = asyncio.ensure_future(anext(changes, None))
        step.add_done_callback(lambda _: looked.set())
        await looked.wait()
    return step


async def is_quiet(changes: Changes) -> bool:
    """Return whether a step finds nothing to report."""
    step = await step_to_wait(changes)
    if step.done():
        await step
        return False
    step.cancel()
    await asyncio.wait([step])
    return True


def apply_changes(changes: Sequence[Change], shown: list[Entry]) -> list[Entry]:
    """Apply changes to a list of entries as the documentation describes."""
    for change in changes:
        for entry in change.entries if change.kind != "removed" else reversed(change.entries):
            if change.kind == "removed":
                del shown[entry.rank]
            elif change.kind == "appended":
                shown.insert(entry.rank, entry)
            else:
                shown[entry.rank] = entry
    return shown


async def test_added_items_are_reported_with_their_entries(place: str) -> None:
    """A batch is one change, with the entries that `entries` returns and the pending count."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(messages("before"))
        changes = session.changes()
        await session.add_items(messages("a", "b"))
        change = await anext(changes)
        assert (change.kind, change.operations, change.pending) == ("appended", 0, 2)
        assert list(change.entries) == (await session.entries())[1:]
        assert await is_quiet(changes)


async def test_removed_items_are_reported_by_rank(place: str) -> None:
    """A pop and then a clear are reported without the items themselves."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(messages("a", "b", "c"))
        seen = await session.entries()
        changes = session.changes(seen)
        await session.pop_item()
        popped = await anext(changes)
        assert (popped.kind, popped.pending) == ("removed", 2)
        assert popped.entries == (replace(seen[2], item=None),)
        await session.clear_session()
        cleared = await anext(changes)
        assert cleared.entries == tuple(replace(entry, item=None) for entry in seen[:2])
        assert apply_changes([popped, cleared], seen) == []


async def test_appends_and_pops_are_found_without_a_scan(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operations name the items that they change, so the cost does not grow with the
    history."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(messages("a", "b", "c"))
        shown = await session.entries()
        changes = session.changes(shown)
        assert await is_quiet(changes)

        def passed_over(_: object) -> list[Any]:
            raise AssertionError("all places were looked at")

        monkeypatch.setattr(change_cursor._Step, "_all", passed_over)
        await session.pop_item()
        await session.pop_item()
        await session.add_items(messages("d"))
        while len(shown) != 2 or shown != await session.entries():
            apply_changes([await anext(changes)], shown)
        # Appended and popped between two steps: nothing to report.
        await session.add_items(messages("e"))
        await session.pop_item()
        assert (await anext(changes)).kind == "synced"
        assert await is_quiet(changes)


async def test_changes_of_other_sessions_are_not_reported(place: str) -> None:
    """A follower of one session gets no changes of another one."""
    async with SessionCache(place, options=LOOKING) as cache:
        changes = cache.session("mine").changes()
        assert await is_quiet(changes)
        await cache.session("other").add_items(messages("a"))
        assert await is_quiet(changes)


@pytest.mark.parametrize("opener", ["add", "status", "read"])
async def test_items_added_before_the_first_step_are_reported(journal: Path, opener: str) -> None:
    """If the journal was not open at the call, its earlier content is not reported and later items
    are."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages("old"))
    session = CachedSession("s", journal=journal, options=WOKEN)
    try:
        changes = session.changes()
        if opener == "status":
            assert session.status().items == 1
        elif opener == "read":
            assert len(await session.get_items()) == 1
        await session.add_items(messages("a"))
        await session.add_items(messages("b"))
        reported = (await anext(changes)).entries
        assert [entry.rank for entry in reported] == [1, 2]
        assert contents([entry.item for entry in reported]) == ["a", "b"]
        assert await is_quiet(changes)
    finally:
        await session.close()


@pytest.mark.parametrize("behind", [0, 1, 3, 4])
async def test_a_follower_is_brought_up_to_date(place: str, behind: int) -> None:
    """Changes lead from any older list of entries to the current one."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        for word in "abcd":
            await session.add_items(messages(word))
        seen = (await session.entries())[:behind]
        await session.pop_item()
        await session.add_items(messages("e"))
        changes, reported = session.changes(seen), []
        while apply_changes(reported[-1:], seen) != await session.entries():
            reported.append(await anext(changes))
        assert await is_quiet(changes)
        assert [change.kind for change in reported] == ["removed", "appended"][behind < 4 :]


async def test_a_slow_follower_gets_many_changes_as_one(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers do not wait for a follower, and the size of one change is limited."""
    monkeypatch.setattr(change_cursor, "MOST", 10)
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        changes, shown = session.changes(), []
        for number in range(45):
            await session.add_items(messages(number))
        await session.pop_item()
        reported = []
        while len(shown) < 44:
            reported.append(await anext(changes))
            # More comes while it is behind.
            if len(reported) == 2:
                await session.pop_item()
                await session.add_items(messages("late"))
            apply_changes(reported[-1:], shown)
        assert [len(change.entries) for change in reported] == [10, 10, 10, 10, 3, 1]
        assert shown == await session.entries()
        assert await is_quiet(changes)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda s: s.add_items(messages("x")), id="add_items"),
        pytest.param(lambda s: s.pop_item(), id="pop_item"),
        pytest.param(lambda s: s.clear_session(), id="clear_session"),
        pytest.param(lambda s: s.import_items(messages("x"), source="test"), id="import_items"),
    ],
)
async def test_every_write_wakes_a_follower(place: str, write: Any) -> None:
    """A write through another session object wakes it too, without polling."""
    async with SessionCache(place, options=WOKEN) as cache:
        await cache.session("s").add_items(messages("a"))
        changes = cache.session("s").changes()
        assert await is_quiet(changes)
        waiting = await step_to_wait(changes)
        await write(cache.session("s"))
        assert (await waiting).entries


async def test_followers_on_several_loops_get_every_change(journal: Path) -> None:
    """Each iteration gets everything, and one in another thread is woken from here."""
    async with SessionCache(journal, options=WOKEN) as cache:
        session, heard, ready = cache.session("s"), list[str](), threading.Barrier(2)

        async def follow() -> None:
            changes = cache.session("s").changes()
            ready.wait()
            while len(heard) < 3:
                heard.extend(contents([e.item for e in (await anext(changes)).entries]))

        thread = threading.Thread(target=lambda: asyncio.run(follow()))
        thread.start()
        await asyncio.to_thread(ready.wait)
        here = [session.changes() for _ in range(2)]
        for word in "abc":
            await session.add_items(messages(word))
        for changes in here:
            found: list[str] = []
            while len(found) < 3:
                found += contents([e.item for e in (await anext(changes)).entries])
            assert found == ["a", "b", "c"]
        await asyncio.to_thread(thread.join)
        assert heard == ["a", "b", "c"]


async def test_changes_by_another_process_are_found(journal: Path) -> None:
    """A follower looks at the file and finds what another process adds and removes."""
    async with CachedSession("s", journal=journal, options=LOOKING) as session:
        await session.add_items(messages("a"))
        changes, shown = session.changes(await session.entries()), await session.entries()
        with Child(
            """
            async def main():
                async with CachedSession("s", journal=sys.argv[1]) as session:
                    await session.add_items(messages("b", "c"))
                    report("added")
                    wait()
                    await session.pop_item()
            asyncio.run(main())
            """,
            journal,
        ) as child:
            apply_changes([await anext(changes)], shown)
            assert contents([entry.item for entry in shown]) == ["a", "b", "c"]
            child.resume()
            apply_changes([await anext(changes)], shown)
            assert contents([entry.item for entry in shown]) == ["a", "b"]


async def test_acknowledged_operations_are_reported(server: DevServer, journal: Path) -> None:
    """The change has the entries that are now acked, and counts pops and clears."""
    async with CachedSession.from_url(
        "s", url=server.url, journal=journal, options=WOKEN
    ) as session:
        await session.sync(60)
        server.faults.down()
        changes, shown = session.changes(()), list[Entry]()
        await session.add_items(messages("a", "b"))
        apply_changes([await anext(changes)], shown)
        assert {entry.sync_state for entry in shown} <= {"pending", "sent"}
        await session.pop_item()
        apply_changes([await anext(changes)], shown)
        waiting = await step_to_wait(changes)
        server.faults.clear()
        await session.flush(60)
        reported = [await waiting]
        while sum(change.operations for change in reported) < 2:
            reported.append(await anext(changes))
        apply_changes(reported, shown)
        assert {change.kind for change in reported} == {"synced"}
        assert reported[-1].pending == 0
        assert shown == await session.entries()
        assert [entry.sync_state for entry in shown] == ["acked"]
        assert await is_quiet(changes)


async def test_an_operation_acknowledged_between_two_steps_is_reported_twice(
    server: DevServer, journal: Path
) -> None:
    """A follower that takes no step between the write and the answer gets both changes."""
    async with CachedSession.from_url(
        "s", url=server.url, journal=journal, options=WOKEN
    ) as session:
        changes = session.changes()
        await session.sync(60)
        assert await is_quiet(changes)
        await session.add_items(messages("a"))
        await session.flush(60)
        reported = [await anext(changes), await anext(changes)]
        assert [(c.kind, c.operations, c.pending) for c in reported] == [
            ("appended", 0, 0),
            ("synced", 1, 0),
        ]
        assert [entry.sync_state for entry in reported[0].entries] == ["acked"]


async def test_items_of_another_device_wake_a_follower(server: DevServer, tmp_path: Path) -> None:
    """A pull wakes the follower, and the items are at their position in the shared history."""
    url = server.url
    before = Runtime(wall_ms=lambda: 1_700_000_000_000)  # two writes of one millisecond may swap
    async with (
        CachedSession.from_url("s", url=url, journal=tmp_path / "a.db", options=WOKEN) as here,
        CachedSession.from_url(
            "s", url=url, journal=tmp_path / "b.db", options=WOKEN, runtime=before
        ) as there,
    ):
        await there.add_items(messages("earlier"))
        await here.add_items(messages("mine"))
        await there.flush(60)
        shown = await here.entries()
        changes = here.changes(shown)
        waiting = await step_to_wait(changes)
        await here.sync(60)
        apply_changes([await waiting], shown)
        while len(shown) < 2:
            apply_changes([await anext(changes)], shown)
        assert contents([entry.item for entry in shown]) == ["earlier", "mine"]


async def test_parked_and_dropped_operations_are_reported(server: DevServer, journal: Path) -> None:
    """A parked operation is no longer pending. A dropped one is removed and never counts as
    acknowledged."""
    async with CachedSession.from_url(
        "s", url=server.url, journal=journal, options=WOKEN
    ) as session:
        await session.sync(60)
        changes, shown = session.changes(), list[Entry]()
        server.modes = Modes(metadata_max_bytes=2000)
        await session.add_items(messages("a" * 5000))
        while not shown or shown[0].sync_state != "parked":
            change = await anext(changes)
            apply_changes([change], shown)
        assert (change.kind, change.operations, change.pending) == ("synced", 0, 0)
        waiting = await step_to_wait(changes)
        (parked,) = await session.parked()
        assert await session.drop_parked(parked.dot) == 1
        change = await waiting
        assert (change.kind, [e.sync_state for e in change.entries]) == ("removed", ["acked"])
        assert apply_changes([change], shown) == []
        assert await is_quiet(changes)


@pytest.mark.parametrize("closer", ["session", "cache"])
@pytest.mark.parametrize("opened", [True, False])
async def test_closing_ends_the_iteration(place: str, closer: str, opened: bool) -> None:
    """A close ends a step that waits or opens the journal, immediately and without an error."""
    cache = SessionCache(place, options=WOKEN)
    session = cache.session("s")
    changes = session.changes()
    assert not opened or await is_quiet(changes)
    if opened:
        waiting = await step_to_wait(changes)
        assert not waiting.done()
    else:
        waiting = asyncio.ensure_future(anext(changes, None))
        await asyncio.sleep(0)
    await (session if closer == "session" else cache).close()
    assert await waiting is None
    assert await anext(changes, None) is None
    with pytest.raises(SessionClosed):
        session.changes()
    await cache.close()


@pytest.mark.parametrize("turns", range(12))
async def test_closing_in_the_middle_of_a_step_ends_the_iteration(place: str, turns: int) -> None:
    """At whichever point the step is, the close raises no error in it."""
    session = CachedSession("s", journal=place, options=WOKEN)
    await session.add_items(messages("a"))
    changes = session.changes(())
    task = asyncio.ensure_future(anext(changes, None))
    for _ in range(turns):
        await asyncio.sleep(0)
    await session.close()
    reported = await task
    assert reported is None or reported.kind == "appended"
    assert await anext(changes, None) is None


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_step_loses_nothing(place: str, turns: int, threaded: bool) -> None:
    """At whichever point a step is cancelled, the next one returns the same change, and no waiter
    remains. Without threads, each turn of the event loop is another point."""
    runtime = Runtime(threaded=threaded)
    async with CachedSession("s", journal=place, options=WOKEN, runtime=runtime) as session:
        changes = session.changes(())
        await session.add_items(messages("a"))
        task = asyncio.ensure_future(anext(changes))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert len(session._engine.news) == 0
        if isinstance(outcome, BaseException):
            outcome = await anext(changes)
        assert contents([entry.item for entry in outcome.entries]) == ["a"]
        assert await is_quiet(changes)


async def test_a_loop_that_is_left_leaves_nothing(place: str) -> None:
    """No task, no waiter and no reference to the iteration remains."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(messages("a"))
        before = asyncio.all_tasks()
        changes = session.changes(())
        left = weakref.ref(changes)
        async for change in changes:
            assert change.kind == "appended"
            break
        assert asyncio.all_tasks() == before
        assert len(session._engine.news) == 0
        del changes
        gc.collect()
        assert left() is None


async def test_one_iteration_is_for_one_task(place: str) -> None:
    """A second task gets an error, and the first one goes on."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        changes = session.changes()
        first = await step_to_wait(changes)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(changes)
        await session.add_items(messages("a"))
        assert (await first).kind == "appended"
        await changes.aclose()
        assert [change async for change in changes] == []


async def test_a_replaced_file_is_reported(journal: Path) -> None:
    """A follower continues in the new file, with the copied items and without the ones that are
    gone."""
    before = Runtime(wall_ms=lambda: 1_700_000_000_000)  # reported items keep their rank
    async with CachedSession("s", journal=journal, options=LOOKING, runtime=before) as session:
        await session.add_items(messages("a", "b"))
        shown = await session.entries()
        changes = session.changes(shown)
        assert await is_quiet(changes)
        with CachedSessionFile(journal.with_name("other.db")) as other:
            await other.fill("x")
        journal.with_name("other.db").replace(journal)
        for left in ("-wal", "-shm"):
            journal.with_name(journal.name + left).unlink(missing_ok=True)
        await session.add_items(messages("c"))
        while shown != await session.entries():
            apply_changes([await anext(changes)], shown)
        assert await is_quiet(changes)
        assert {"x", "c"} <= set(contents([entry.item for entry in shown]))


class CachedSessionFile:
    """A journal that another program has made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> CachedSessionFile:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def fill(self, *said_: object) -> None:
        async with CachedSession("s", journal=self.path) as session:
            await session.add_items(messages(*said_))


async def test_an_unreadable_item_does_not_hide_others(journal: Path) -> None:
    """It is not reported, the items around it are, in order, and no later step repeats them."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(messages("a", "b", "c"))
    with sqlite3.connect(journal) as conn:
        assert change_payloads(conn, lambda at, text: b"{broken" if at == 1 else text) == 1
    conn.close()
    async with CachedSession("s", journal=journal, options=WOKEN) as session:
        changes, shown = session.changes(()), list[Entry]()
        apply_changes([await anext(changes)], shown)
        assert contents([entry.item for entry in shown]) == ["a", "c"]
        assert await is_quiet(changes)
        await session.add_items(messages("d"))
        apply_changes([await anext(changes)], shown)
        assert contents([entry.item for entry in shown]) == ["a", "c", "d"]
