"""Following a session: what changes is told once, in turn, at once, and nothing is left behind."""

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
from tests.session.session_support import Child, said, words

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


def carry_out(changes: Sequence[Change], shown: list[Entry]) -> list[Entry]:
    """What the documentation tells a follower to do."""
    for change in changes:
        for entry in change.entries if change.kind != "removed" else reversed(change.entries):
            if change.kind == "removed":
                del shown[entry.rank]
            elif change.kind == "appended":
                shown.insert(entry.rank, entry)
            else:
                shown[entry.rank] = entry
    return shown


async def test_what_is_added_is_told_in_its_place(place: str) -> None:
    """One change for a batch: the entries as `entries` gives them, and how many wait."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(said("before"))
        changes = session.changes()
        await session.add_items(said("a", "b"))
        change = await anext(changes)
        assert (change.kind, change.operations, change.pending) == ("appended", 0, 2)
        assert list(change.entries) == (await session.entries())[1:]
        assert await is_quiet(changes)


async def test_what_is_removed_is_told_by_its_rank(place: str) -> None:
    """A pop, then a clear; the items themselves are gone."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(said("a", "b", "c"))
        seen = await session.entries()
        changes = session.changes(seen)
        await session.pop_item()
        popped = await anext(changes)
        assert (popped.kind, popped.pending) == ("removed", 2)
        assert popped.entries == (replace(seen[2], item=None),)
        await session.clear_session()
        cleared = await anext(changes)
        assert cleared.entries == tuple(replace(entry, item=None) for entry in seen[:2])
        assert carry_out([popped, cleared], seen) == []


async def test_words_and_pops_cost_no_pass_over_the_history(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they change is found by what they say, however long the session is."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(said("a", "b", "c"))
        shown = await session.entries()
        changes = session.changes(shown)
        assert await is_quiet(changes)

        def passed_over(_: object) -> list[Any]:
            raise AssertionError("all places were looked at")

        monkeypatch.setattr(change_cursor._Step, "_all", passed_over)
        await session.pop_item()
        await session.pop_item()
        await session.add_items(said("d"))
        while len(shown) != 2 or shown != await session.entries():
            carry_out([await anext(changes)], shown)
        # Said and taken back between two looks: nothing to tell.
        await session.add_items(said("e"))
        await session.pop_item()
        assert (await anext(changes)).kind == "synced"
        assert await is_quiet(changes)


async def test_words_of_other_sessions_are_nobodys_news(place: str) -> None:
    """Who follows one session hears nothing of its neighbours."""
    async with SessionCache(place, options=LOOKING) as cache:
        changes = cache.session("mine").changes()
        assert await is_quiet(changes)
        await cache.session("other").add_items(said("a"))
        assert await is_quiet(changes)


@pytest.mark.parametrize("opener", ["add", "status", "read"])
async def test_what_is_added_before_the_first_step_is_told(journal: Path, opener: str) -> None:
    """Also where the journal had not been opened yet at the call: what it held then is no news, and
    what was written since is."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("old"))
    session = CachedSession("s", journal=journal, options=WOKEN)
    try:
        changes = session.changes()
        if opener == "status":
            assert session.status().items == 1
        elif opener == "read":
            assert len(await session.get_items()) == 1
        await session.add_items(said("a"))
        await session.add_items(said("b"))
        told = (await anext(changes)).entries
        assert [entry.rank for entry in told] == [1, 2]
        assert words([entry.item for entry in told]) == ["a", "b"]
        assert await is_quiet(changes)
    finally:
        await session.close()


@pytest.mark.parametrize("behind", [0, 1, 3, 4])
async def test_a_follower_is_brought_up_to_date(place: str, behind: int) -> None:
    """From what it shows, all or some or nothing of it, to what there is."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        for word in "abcd":
            await session.add_items(said(word))
        seen = (await session.entries())[:behind]
        await session.pop_item()
        await session.add_items(said("e"))
        changes, told = session.changes(seen), []
        while carry_out(told[-1:], seen) != await session.entries():
            told.append(await anext(changes))
        assert await is_quiet(changes)
        assert [change.kind for change in told] == ["removed", "appended"][behind < 4 :]


async def test_a_slow_follower_is_told_of_many_changes_as_one(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for it, and what it is told at a time is bounded."""
    monkeypatch.setattr(change_cursor, "MOST", 10)
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        changes, shown = session.changes(), []
        for number in range(45):
            await session.add_items(said(number))
        await session.pop_item()
        told = []
        while len(shown) < 44:
            told.append(await anext(changes))
            # More comes while it is behind.
            if len(told) == 2:
                await session.pop_item()
                await session.add_items(said("late"))
            carry_out(told[-1:], shown)
        assert [len(change.entries) for change in told] == [10, 10, 10, 10, 3, 1]
        assert shown == await session.entries()
        assert await is_quiet(changes)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda s: s.add_items(said("x")), id="add_items"),
        pytest.param(lambda s: s.pop_item(), id="pop_item"),
        pytest.param(lambda s: s.clear_session(), id="clear_session"),
        pytest.param(lambda s: s.import_items(said("x"), source="test"), id="import_items"),
    ],
)
async def test_every_write_wakes_who_follows(place: str, write: Any) -> None:
    """Also one by another session object; without a look in between."""
    async with SessionCache(place, options=WOKEN) as cache:
        await cache.session("s").add_items(said("a"))
        changes = cache.session("s").changes()
        assert await is_quiet(changes)
        waiting = await step_to_wait(changes)
        await write(cache.session("s"))
        assert (await waiting).entries


async def test_several_follow_on_several_loops(journal: Path) -> None:
    """Each iteration is told everything; one in another thread is woken from here."""
    async with SessionCache(journal, options=WOKEN) as cache:
        session, heard, ready = cache.session("s"), list[str](), threading.Barrier(2)

        async def follow() -> None:
            changes = cache.session("s").changes()
            ready.wait()
            while len(heard) < 3:
                heard.extend(words([e.item for e in (await anext(changes)).entries]))

        thread = threading.Thread(target=lambda: asyncio.run(follow()))
        thread.start()
        await asyncio.to_thread(ready.wait)
        here = [session.changes() for _ in range(2)]
        for word in "abc":
            await session.add_items(said(word))
        for changes in here:
            found: list[str] = []
            while len(found) < 3:
                found += words([e.item for e in (await anext(changes)).entries])
            assert found == ["a", "b", "c"]
        await asyncio.to_thread(thread.join)
        assert heard == ["a", "b", "c"]


async def test_the_words_of_another_process_are_found(journal: Path) -> None:
    """By looking at the file: what it adds and removes."""
    async with CachedSession("s", journal=journal, options=LOOKING) as session:
        await session.add_items(said("a"))
        changes, shown = session.changes(await session.entries()), await session.entries()
        with Child(
            """
            async def main():
                async with CachedSession("s", journal=sys.argv[1]) as session:
                    await session.add_items(said("b", "c"))
                    tell("added")
                    wait()
                    await session.pop_item()
            asyncio.run(main())
            """,
            journal,
        ) as child:
            carry_out([await anext(changes)], shown)
            assert words([entry.item for entry in shown]) == ["a", "b", "c"]
            child.go()
            carry_out([await anext(changes)], shown)
            assert words([entry.item for entry in shown]) == ["a", "b"]


async def test_acknowledged_operations_are_told(server: DevServer, journal: Path) -> None:
    """With the entries they brought, now acked; pops and clears count as well."""
    async with CachedSession.from_url(
        "s", url=server.url, journal=journal, options=WOKEN
    ) as session:
        await session.sync(60)
        server.faults.down()
        changes, shown = session.changes(()), list[Entry]()
        await session.add_items(said("a", "b"))
        carry_out([await anext(changes)], shown)
        assert {entry.sync_state for entry in shown} <= {"pending", "sent"}
        await session.pop_item()
        carry_out([await anext(changes)], shown)
        waiting = await step_to_wait(changes)
        server.faults.clear()
        await session.flush(60)
        told = [await waiting]
        while sum(change.operations for change in told) < 2:
            told.append(await anext(changes))
        carry_out(told, shown)
        assert {change.kind for change in told} == {"synced"}
        assert told[-1].pending == 0
        assert shown == await session.entries()
        assert [entry.sync_state for entry in shown] == ["acked"]
        assert await is_quiet(changes)


async def test_what_was_acknowledged_unseen_counts(server: DevServer, journal: Path) -> None:
    """A follower that sleeps from the write to the answer hears of both."""
    async with CachedSession.from_url(
        "s", url=server.url, journal=journal, options=WOKEN
    ) as session:
        changes = session.changes()
        await session.sync(60)
        assert await is_quiet(changes)
        await session.add_items(said("a"))
        await session.flush(60)
        told = [await anext(changes), await anext(changes)]
        assert [(c.kind, c.operations, c.pending) for c in told] == [
            ("appended", 0, 0),
            ("synced", 1, 0),
        ]
        assert [entry.sync_state for entry in told[0].entries] == ["acked"]


async def test_another_devices_words_wake_who_follows(server: DevServer, tmp_path: Path) -> None:
    """As soon as a pull has brought them, in the place that they have in the one history."""
    url = server.url
    before = Runtime(wall_ms=lambda: 1_700_000_000_000)  # two writes of one millisecond may swap
    async with (
        CachedSession.from_url("s", url=url, journal=tmp_path / "a.db", options=WOKEN) as here,
        CachedSession.from_url(
            "s", url=url, journal=tmp_path / "b.db", options=WOKEN, runtime=before
        ) as there,
    ):
        await there.add_items(said("earlier"))
        await here.add_items(said("mine"))
        await there.flush(60)
        shown = await here.entries()
        changes = here.changes(shown)
        waiting = await step_to_wait(changes)
        await here.sync(60)
        carry_out([await waiting], shown)
        while len(shown) < 2:
            carry_out([await anext(changes)], shown)
        assert words([entry.item for entry in shown]) == ["earlier", "mine"]


async def test_what_is_refused_and_given_up_is_told(server: DevServer, journal: Path) -> None:
    """Parked: it waits no longer. Dropped: it is removed, and never counts as acknowledged."""
    async with CachedSession.from_url(
        "s", url=server.url, journal=journal, options=WOKEN
    ) as session:
        await session.sync(60)
        changes, shown = session.changes(), list[Entry]()
        server.modes = Modes(metadata_max_bytes=2000)
        await session.add_items(said("a" * 5000))
        while not shown or shown[0].sync_state != "parked":
            change = await anext(changes)
            carry_out([change], shown)
        assert (change.kind, change.operations, change.pending) == ("synced", 0, 0)
        waiting = await step_to_wait(changes)
        (parked,) = await session.parked()
        assert await session.drop_parked(parked.dot) == 1
        change = await waiting
        assert (change.kind, [e.sync_state for e in change.entries]) == ("removed", ["acked"])
        assert carry_out([change], shown) == []
        assert await is_quiet(changes)


@pytest.mark.parametrize("closer", ["session", "cache"])
@pytest.mark.parametrize("opened", [True, False])
async def test_closing_ends_the_iteration(place: str, closer: str, opened: bool) -> None:
    """At once, in the middle of waiting or of opening the journal, without an error; for good."""
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
    """Wherever the step is, the file vanishes under it without an error."""
    session = CachedSession("s", journal=place, options=WOKEN)
    await session.add_items(said("a"))
    changes = session.changes(())
    task = asyncio.ensure_future(anext(changes, None))
    for _ in range(turns):
        await asyncio.sleep(0)
    await session.close()
    told = await task
    assert told is None or told.kind == "appended"
    assert await anext(changes, None) is None


@pytest.mark.parametrize("threaded", [True, False])
@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_step_loses_nothing(place: str, turns: int, threaded: bool) -> None:
    """Wherever it is cut: the next step tells it, and nobody waits any more. Without threads each
    turn of the event loop is another place."""
    runtime = Runtime(threaded=threaded)
    async with CachedSession("s", journal=place, options=WOKEN, runtime=runtime) as session:
        changes = session.changes(())
        await session.add_items(said("a"))
        task = asyncio.ensure_future(anext(changes))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert len(session._engine.news) == 0
        if isinstance(outcome, BaseException):
            outcome = await anext(changes)
        assert words([entry.item for entry in outcome.entries]) == ["a"]
        assert await is_quiet(changes)


async def test_a_loop_that_is_left_leaves_nothing(place: str) -> None:
    """No task, nobody who waits, and nothing that keeps the iteration alive."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        await session.add_items(said("a"))
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
    """The second is told so, and the first goes on."""
    async with CachedSession("s", journal=place, options=WOKEN) as session:
        changes = session.changes()
        first = await step_to_wait(changes)
        with pytest.raises(RuntimeError, match="two tasks"):
            await anext(changes)
        await session.add_items(said("a"))
        assert (await first).kind == "appended"
        await changes.aclose()
        assert [change async for change in changes] == []


async def test_a_file_that_takes_the_journals_place_is_told_of(journal: Path) -> None:
    """Who follows goes on in the new file, with what was carried over and what is gone."""
    before = Runtime(wall_ms=lambda: 1_700_000_000_000)  # what is told already keeps its rank
    async with CachedSession("s", journal=journal, options=LOOKING, runtime=before) as session:
        await session.add_items(said("a", "b"))
        shown = await session.entries()
        changes = session.changes(shown)
        assert await is_quiet(changes)
        with CachedSessionFile(journal.with_name("other.db")) as other:
            await other.fill("x")
        journal.with_name("other.db").replace(journal)
        for left in ("-wal", "-shm"):
            journal.with_name(journal.name + left).unlink(missing_ok=True)
        await session.add_items(said("c"))
        while shown != await session.entries():
            carry_out([await anext(changes)], shown)
        assert await is_quiet(changes)
        assert {"x", "c"} <= set(words([entry.item for entry in shown]))


class CachedSessionFile:
    """A journal of somebody else's making."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> CachedSessionFile:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    async def fill(self, *said_: object) -> None:
        async with CachedSession("s", journal=self.path) as session:
            await session.add_items(said(*said_))


async def test_an_item_that_cannot_be_read_hides_no_other(journal: Path) -> None:
    """It is not told of, its neighbours are, in their order, and no look repeats them."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items(said("a", "b", "c"))
    with sqlite3.connect(journal) as conn:
        conn.execute("UPDATE items SET payload = '{broken' WHERE idx = 1")
    conn.close()
    async with CachedSession("s", journal=journal, options=WOKEN) as session:
        changes, shown = session.changes(()), list[Entry]()
        carry_out([await anext(changes)], shown)
        assert words([entry.item for entry in shown]) == ["a", "c"]
        assert await is_quiet(changes)
        await session.add_items(said("d"))
        carry_out([await anext(changes)], shown)
        assert words([entry.item for entry in shown]) == ["a", "c", "d"]
