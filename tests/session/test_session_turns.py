"""Tests of the turn that an append joins, and of the blocks of `CachedSession.turn`."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path

import pytest

from cached_session import CachedSession, InvalidArgument, SessionCache, SessionClosed
from tests.session.turn_support import answer, call, output, shape, turns_of, user

pytestmark = pytest.mark.promise(number=5)


async def test_an_exchange_in_several_batches_is_one_turn(place: str) -> None:
    """Question, call, output and answer; the next question opens a turn."""
    async with CachedSession("s", journal=place) as session:
        for item in (user(), call("1"), output("1"), answer(), user(), answer()):
            await session.add_items([item])
        assert await shape(session) == [
            "user function_call function_call_output assistant",
            "user assistant",
        ]


async def test_an_item_after_the_answer_opens_a_turn(place: str) -> None:
    """The answer has closed the turn, unless a call waits for its output."""
    async with CachedSession("s", journal=place) as session:
        for items in ([user(), answer()], [answer()], [user(), call("1")], [answer()], [answer()]):
            await session.add_items(items)
        assert await shape(session) == [
            "user assistant",
            "assistant",
            "user function_call assistant assistant",
        ]


async def test_an_output_joins_its_call_after_a_restart(journal: Path) -> None:
    """The call may be before a later turn. Batches after the output join the turn of the call."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([user(), call("1"), call("2")])
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([user(), answer()])
        await session.add_items([output("1")])
        await session.add_items([output("2"), answer()])
    async with CachedSession("s", journal=journal) as session:
        assert await shape(session) == [
            "user function_call function_call function_call_output function_call_output assistant",
            "user assistant",
        ]
        assert [item.get("role") for item in await session.get_items(1)] == ["assistant"]


async def test_an_output_joins_the_newest_call_of_its_id(journal: Path) -> None:
    """A model that numbers its calls from one in each turn uses an id again."""
    for _ in range(2):
        async with CachedSession("s", journal=journal) as session:
            await session.add_items([user(), call("1")])
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([output("1")])
        assert await shape(session) == [
            "user function_call",
            "user function_call function_call_output",
        ]


async def test_an_output_prefers_the_call_of_its_own_task(journal: Path) -> None:
    """Another session object uses the same call id later."""
    async with CachedSession("s", journal=journal) as one:
        await one.add_items([user("one"), call("1")])
        async with CachedSession("s", journal=journal) as other:
            await other.add_items([user("other"), call("1")])
            await one.add_items([output("1")])
            await other.add_items([output("1")])
        assert await shape(one) == ["user function_call function_call_output"] * 2


async def test_an_output_without_its_call_joins_the_open_turn(place: str) -> None:
    """The call was popped; without an open turn, the output opens one."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items([user()])
        await session.add_items([call("1")])
        await session.pop_item()
        await session.add_items([output("1")])
        await session.add_items([answer()])
        await session.add_items([output("1")])
        assert await shape(session) == [
            "user function_call_output assistant",
            "function_call_output",
        ]


async def test_exchanges_side_by_side_keep_their_turns_apart(place: str) -> None:
    """The runs use one session object and the same call ids."""

    async def exchange(name: str) -> None:
        for item in (user(name), call("1"), output("1"), answer(name)):
            await session.add_items([item])
            await asyncio.sleep(0)

    async with CachedSession("s", journal=place) as session:
        await exchange("first")
        await asyncio.gather(*(exchange(str(n)) for n in range(5)))
        found = await turns_of(session)
        assert len(found) == 6
        for turn in found:
            assert len(turn) == 4
            assert turn[0].item["content"] == turn[-1].item["content"]


async def test_a_corrected_answer_takes_the_place_of_the_popped_one(journal: Path) -> None:
    """This holds after a restart, too."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([user("1"), answer("wrong")])
        await session.pop_item()
        await session.add_items([answer("also wrong")])
    async with CachedSession("s", journal=journal) as session:
        await session.pop_item()
        await session.add_items([answer("right")])
        assert await shape(session) == ["user assistant"]
        assert (await session.get_items())[-1] == answer("right")


async def test_a_turn_ends_with_a_clear(place: str) -> None:
    """The first append after the clear opens a turn."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items([user(), call("1")])
        await session.clear_session()
        await session.add_items([output("1")])
        await session.add_items([answer()])
        assert await shape(session) == ["function_call_output assistant"]


async def test_replaced_items_stay_in_the_current_turn(place: str) -> None:
    """A call, a question and an answer are replaced; each new item joins the turn."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items([user("wrong"), call("1")])
        question, wrong = await session.entries()
        await session.replace_items([wrong], [call("2")])
        await session.replace_items([question], [user("right")])
        await session.add_items([output("2"), answer("wrong")])
        await session.replace_items((await session.entries())[-1:], [answer("right")])
        await session.add_items([answer("later")])
        assert await shape(session) == [
            "function_call user function_call_output assistant",
            "assistant",
        ]


async def test_replaced_items_of_an_earlier_turn_move_to_the_end(place: str) -> None:
    """The new items follow the rules of appends: a summary of several turns is its own turn."""
    async with CachedSession("s", journal=place) as session:
        for _ in range(3):
            await session.add_items([user(), answer()])
        entries = await session.entries()
        await session.replace_items(entries[:1], [user("first")])
        await session.replace_items(entries[1:4], [user("summary"), answer()])
        assert await shape(session) == ["user assistant", "user", "user assistant"]


async def test_an_answer_takes_the_place_of_a_removed_one(place: str) -> None:
    """`replace_items` without new items reopens the turn, like a pop."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items([user(), answer("wrong")])
        await session.replace_items((await session.entries())[1:])
        await session.add_items([answer("right")])
        assert await shape(session) == ["user assistant"]


async def test_unknown_items_do_not_make_an_endless_turn(place: str) -> None:
    """Each batch of a program that stores other items is a turn."""
    async with CachedSession("s", journal=place) as session:
        for item in ({"note": 1}, {"type": "note"}, {"__enc__": 1, "payload": "x"}):
            await session.add_items([item])
        assert [len(turn) for turn in await turns_of(session)] == [1, 1, 1]


# -- blocks of `turn` ----------------------------------------------------------------------------


async def test_a_block_makes_one_turn(place: str) -> None:
    """The kinds of the items do not matter, and a nested block has no effect."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items([user()])
        async with session.turn():
            await session.add_items([user(), answer()])
            async with session.turn():
                await session.add_items([user()])
            await session.add_items([user()])
        await session.add_items([user()])
        assert await shape(session) == ["user", "user assistant user user", "user"]


async def test_concurrent_appends_in_a_block_are_one_turn(place: str) -> None:
    """Their tasks begin before the block has a turn."""
    async with CachedSession("s", journal=place) as session:
        async with session.turn():
            await asyncio.gather(*(session.add_items([user(str(n))]) for n in range(20)))
        assert [len(turn) for turn in await turns_of(session)] == [20]


async def test_a_block_applies_to_every_object_of_the_session(journal: Path) -> None:
    """An adapter makes its own objects. Other sessions and other tasks are not affected."""
    async with SessionCache(journal) as cache:
        session, other = cache.session("s"), cache.session("other")
        go = asyncio.Event()

        async def outside() -> None:
            await go.wait()
            await session.add_items([user("outside")])

        task = asyncio.create_task(outside())
        async with session.turn():
            await session.add_items([user()])
            await cache.session("s").add_items([user()])
            for _ in range(2):
                await other.add_items([user()])
            go.set()
            await task
            await session.add_items([user()])
        assert [len(turn) for turn in await turns_of(session)] == [3, 1]
        assert [len(turn) for turn in await turns_of(other)] == [1, 1]


async def test_a_block_survives_a_cancelled_append(place: str) -> None:
    """The cancelled append is stored and is the head of the turn."""
    async with CachedSession("s", journal=place) as session:
        async with session.turn():
            task = asyncio.create_task(session.add_items([user("first")]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await session.add_items([user("second")])
        stored = [len(turn) for turn in await turns_of(session)]
        assert stored == [len(await session.get_items())], "one turn"


async def test_a_cancelled_question_is_joined_by_its_answer(place: str) -> None:
    """A caller that limits the time of an append does not tear the turn."""
    async with CachedSession("s", journal=place) as session:
        await session.add_items([user(), answer()])

        async def cancelled() -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            try:
                await session.add_items([user("cancelled")])
            except asyncio.CancelledError:
                await session.add_items([answer("all the same")])

        await asyncio.create_task(cancelled())
        assert await shape(session) == ["user assistant", "user assistant"]


async def test_a_block_survives_a_refused_append(place: str) -> None:
    """Nothing of it is stored; the next append opens the turn. An error ends the block."""

    async def fail() -> None:
        async with session.turn():
            with pytest.raises(InvalidArgument):
                await session.add_items([{"role": "user", "content": object()}])
            await session.add_items([user()])
            await session.add_items([user()])
            raise OSError("boom")

    async with CachedSession("s", journal=place) as session:
        with pytest.raises(OSError, match="boom"):
            await fail()
        await session.add_items([user()])
        assert [len(turn) for turn in await turns_of(session)] == [2, 1]


async def test_pops_and_clears_do_not_end_a_block(place: str) -> None:
    """Later items join the turn, although its head is removed."""
    async with CachedSession("s", journal=place) as session:
        async with session.turn():
            await session.add_items([user("popped")])
            (head,) = await session.entries()
            await session.pop_item()
            await session.add_items([user("cleared")])
            await session.clear_session()
            await session.add_items([user("a")])
            await session.add_items([user("b")])
        ((one, other),) = await turns_of(session)
        assert one.turn == other.turn == head.turn


async def test_a_block_that_answers_a_call_joins_its_turn(journal: Path) -> None:
    """An approved call and its output therefore stay together."""
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([user(), call("1")])
    async with CachedSession("s", journal=journal) as session:
        await session.add_items([user("between")])
        async with session.turn():
            await session.add_items([output("1")])
            await session.add_items([user("and more")])
        assert await shape(session) == ["user function_call function_call_output user", "user"]


async def test_a_closed_session_has_no_block(place: str) -> None:
    """`turn` raises before the block is entered."""
    session = CachedSession("s", journal=place)
    await session.close()
    with pytest.raises(SessionClosed):
        session.turn()


async def test_turns_keep_no_session_alive(journal: Path) -> None:
    """A task that uses many sessions frees each of them."""
    async with SessionCache(journal) as cache:
        refs = []
        for number in range(50):
            session = cache.session(f"s{number}")
            async with session.turn():
                await session.add_items([user()])
            refs.append(weakref.ref(session))
        del session
        gc.collect()
        assert not [ref for ref in refs if ref() is not None]
