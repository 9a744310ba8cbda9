"""Tests of the open turn of a task and a session object. A list replaces the journal."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from typing import Any

import pytest

from cached_session.engine import open_turns
from cached_session.engine.open_turns import RECORDS, OpenTurns
from cached_session.history.ops import TurnKey
from cached_session.history.tool_calls import read_batch

USER = {"role": "user", "content": "?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "pay", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "paid"}
ANSWER = {"role": "assistant", "content": "."}
SCOPE = (-1, "s")


class Session:
    """A session object over a list of (item, turn); `append` stores as the journal does."""

    def __init__(self, history: list[tuple[Any, TurnKey]] | None = None) -> None:
        self.history = [] if history is None else history
        self.turns = OpenTurns(SCOPE)
        self.gate: asyncio.Event | None = None
        """If set, an append waits for it before it is stored."""
        self.fails = False

    async def append(self, *items: Any) -> TurnKey:
        async with self.turns.append(read_batch(items)) as joined:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if self.fails:
                raise OSError("the disk is full")
            choice = joined.choice
            key = choice.block or self._turn_of(choice.answers) or choice.open
            if key is None:
                key = TurnKey(len(self.history), "writer", len(self.history))
            self.history += [(item, key) for item in items]
            joined.stored(key)
            return key

    async def exchange(self) -> set[TurnKey]:
        """Store a question, a call, its output and an answer; return their turns."""
        found = set()
        for step in (USER, CALL, OUTPUT, ANSWER):
            found.add(await self.append(step))
            await asyncio.sleep(0)  # let the tasks side by side take a step each
        return found

    async def pop(self) -> None:
        item, key = self.history.pop()
        self.turns.popped(key, read_batch([item]))

    def _turn_of(self, answers: tuple[str, ...]) -> TurnKey | None:
        for item, key in reversed(self.history):
            if not set(read_batch([item]).made).isdisjoint(answers):
                return key
        return None


async def test_an_exchange_is_one_turn() -> None:
    """A second exchange over the same object is another turn."""
    session = Session()
    (one,), (other,) = await session.exchange(), await session.exchange()
    assert one != other


async def test_tasks_side_by_side_keep_their_turns_apart() -> None:
    """Ten exchanges over one object are ten turns, although all ids are the same."""
    session = Session()
    await session.append(USER)
    found = await asyncio.gather(*(session.exchange() for _ in range(10)))
    assert all(len(turns) == 1 for turns in found)
    assert len(set.union(*found)) == 10


async def test_a_child_task_goes_on_with_the_turn_of_its_parent() -> None:
    """This holds even while another task has opened a turn over the same object."""
    session = Session()
    mine = await session.append(USER)
    theirs = await asyncio.create_task(session.append(USER))
    assert await asyncio.create_task(session.append(ANSWER)) == mine != theirs


async def test_a_new_context_goes_on_with_the_latest_turn_of_the_object() -> None:
    """Each call runs in its own task, as in a bridge or in a web request."""
    session = Session()

    async def call(*items: Any) -> TurnKey:
        return await contextvars.Context().run(asyncio.create_task, session.append(*items))

    turns = {await call(step) for step in (USER, CALL, OUTPUT, ANSWER)}
    assert len(turns) == 1
    assert await call(ANSWER) not in turns, "the turn has its answer"


async def test_a_context_whose_turn_is_closed_goes_on_with_the_latest_open_one() -> None:
    """A library makes each call in a child task of a task that has finished an exchange."""
    session = Session()
    await session.exchange()
    turn = await asyncio.create_task(session.append(USER))
    assert await asyncio.create_task(session.append(ANSWER)) == turn


async def test_another_object_does_not_go_on_with_an_open_turn() -> None:
    """An exception is a batch that answers a call, as after a restart."""
    session = Session()
    turn = await session.append(USER, CALL)
    restarted = Session(session.history)
    assert await Session(session.history).append(ANSWER) != turn
    assert await restarted.append(OUTPUT) == turn
    assert await restarted.append(ANSWER) == turn


async def test_a_corrected_answer_joins_the_turn_of_the_popped_one() -> None:
    """The turn is open again after the pop, here and in another object."""
    session = Session()
    (turn,) = await session.exchange()
    await session.pop()
    assert await session.append(ANSWER) == turn
    restarted = Session(session.history)
    await restarted.pop()
    assert await restarted.append(ANSWER) == turn


async def test_nothing_joins_a_turn_from_before_a_clear() -> None:
    """No context of the object has an open turn after the clear."""
    session = Session()
    turn = await session.append(USER)
    session.turns.cleared()
    later = await session.append(ANSWER)
    assert later != turn
    assert await session.append(USER) != later


async def test_a_block_is_one_turn() -> None:
    """The block applies to all items and all child tasks, and ends at its end."""
    session = Session()
    before = await session.append(USER)
    async with session.turns.block():
        inside = [await session.append(ANSWER), await session.append(USER)]
        inside += await asyncio.gather(*(session.append(USER) for _ in range(3)))
        async with session.turns.block():
            inside.append(await session.append(USER))
        inside.append(await session.append(USER))
    assert len(set(inside)) == 1
    assert before not in inside
    assert await session.append(USER) not in inside


async def test_a_block_covers_other_objects_of_the_same_session() -> None:
    """An adapter makes session objects as it needs them."""
    session = Session()
    other, stranger = Session(session.history), Session(session.history)
    stranger.turns = OpenTurns((-1, "another session"))
    async with session.turns.block():
        turn = await session.append(USER)
        assert await other.append(USER) == turn
        assert await stranger.append(USER) != turn


async def test_a_block_that_begins_with_an_output_joins_the_call() -> None:
    """An approved call and its output therefore stay together."""
    session = Session()
    turn = await session.append(USER, CALL)
    restarted = Session(session.history)
    async with restarted.turns.block():
        assert await restarted.append(OUTPUT) == turn
        assert await restarted.append(USER) == turn


async def test_a_task_that_outlives_its_block_is_outside() -> None:
    """The block ends for all tasks at once."""
    session, ended = Session(), asyncio.Event()

    async def late() -> TurnKey:
        await ended.wait()
        return await session.append(USER)

    async with session.turns.block():
        turn = await session.append(USER)
        task = asyncio.create_task(late())
    ended.set()
    assert await task != turn


@pytest.mark.parametrize("ending", ["error", "cancelled"])
async def test_a_block_survives_an_append_that_is_not_stored(ending: str) -> None:
    """The next append becomes the head. Appends that waited for the failed append continue."""
    session = Session()
    async with session.turns.block():
        session.gate, session.fails = asyncio.Event(), ending == "error"
        first = asyncio.create_task(session.append(USER))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(session.append(USER)) for _ in range(3)]
        cancelled = waiting.pop()
        await asyncio.sleep(0)
        cancelled.cancel()
        if ending == "cancelled":
            first.cancel()
        session.gate.set()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await first
        session.fails = False
        if ending == "error":
            [await asyncio.gather(each, return_exceptions=True) for each in waiting]
        else:
            assert len(set(await asyncio.gather(*waiting))) == 1
        turn = await session.append(USER)
        assert await session.append(USER) == turn
    assert len({key for _, key in session.history}) == 1


async def test_an_error_in_a_block_ends_it() -> None:
    """The items that were stored in the block stay."""
    session = Session()

    async def interrupted() -> None:
        async with session.turns.block():
            await session.append(USER)
            raise OSError

    with pytest.raises(OSError, match=r"^$"):
        await interrupted()
    ((_, turn),) = session.history
    assert await session.append(USER) != turn
    assert len(session.history) == 2


async def test_the_head_of_a_block_is_stored_once_by_several_threads() -> None:
    """Each thread has an event loop of its own, and a copy of the context."""
    session = Session()
    found: list[TurnKey] = []

    def work() -> None:
        found.extend(asyncio.run(session.append(USER)) for _ in range(20))

    async with session.turns.block():
        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
    assert len(found) == 80
    assert len(set(found)) == 1


async def test_an_append_keeps_a_head_that_was_just_stored() -> None:
    """Another thread stores the head between two steps of this one, which then fails."""

    class Raced(dict[str, Any]):
        def setdefault(self, key: str, default: Any = None) -> Any:
            block.key = TurnKey(7, "writer", 7)
            return super().setdefault(key, default)

    session = Session()
    async with session.turns.block():
        found = session.turns.current_block()
        assert found is not None
        block = found
        block._writing = Raced()
        session.fails = True
        with pytest.raises(OSError, match="full"):
            await session.append(USER)
        session.fails = False
        block._writing = {}
        assert await session.append(USER) == TurnKey(7, "writer", 7)


async def test_a_cancelled_append_that_is_stored_joins_all_the_same() -> None:
    """The journal reports the turn after the commit, from any context."""
    session = Session()
    key = TurnKey(7, "writer", 7)

    async def cancelled() -> None:
        async with session.turns.append(read_batch([USER])) as joined:
            thread = threading.Thread(target=joined.stored, args=(key,))
            thread.start()
            thread.join()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await cancelled()
    assert await session.append(ANSWER) == key


async def test_a_context_holds_a_bounded_number_of_turns_and_no_session() -> None:
    """A task that uses a thousand objects keeps the latest turns, and frees every object."""
    sessions = [Session() for _ in range(1_000)]
    for session in sessions:
        await session.append(USER)
    assert len(open_turns._records.get()) == RECORDS
    refs = [weakref.ref(session.turns) for session in sessions]
    turns = [session.history[0][1] for session in sessions]
    assert [await session.append(ANSWER) for session in sessions] == turns
    async with sessions[0].turns.block():
        await sessions[0].append(USER)
    del session, sessions
    gc.collect()
    assert not [ref for ref in refs if ref() is not None]
    assert open_turns._blocks.get() == ()
