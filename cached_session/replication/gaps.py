"""What the frontier misses, fetched by id: what a listing has not shown, and may never show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import anyio

from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import Dot
from cached_session.history.parts import Part
from cached_session.journal.tables.gaps import Hole, holes_due, note_hole_tries, note_holes
from cached_session.remote.ids import memory_id, placeholder_id
from cached_session.remote.wire import Unreadable, decode
from cached_session.replication.context import Context
from cached_session.replication.ingest import apply_page, read_page
from cached_session.replication.results import PullResult

__all__ = ["look_for_holes", "repair"]

HOLES_A_PULL = 200
"""Holes that one pull looks for, the longest unseen first."""
FETCHES_A_LOOK = 1000
"""Memories fetched by id in one look for one operation, and held before they are applied: a count
that somebody made up bounds nothing. What is left of a longer operation is for the next look."""


async def repair(context: Context, session_id: str) -> PullResult:
    """Look for everything that is known to be missing, by id.

    Raises:
        RemoteError: the first failure; what came before it is applied.
    """
    async with context.lock("pull", session_id):
        result = PullResult()
        await look_for_holes(context, session_id, result, all_holes=True)
        return result


async def look_for_holes(
    context: Context, session_id: str, result: PullResult, all_holes: bool
) -> None:
    """Fetch what the frontier misses, by id; what is not there is looked for later again."""
    now = context.now_ms()
    if not await context.journal.write(lambda conn: note_holes(conn, session_id, now)):
        return
    due = await context.journal.read(
        lambda conn: holes_due(
            conn,
            session_id,
            now,
            HOLES_A_PULL,
            longest_ms=int(1000 * context.options.poll_interval_idle),
            everything=all_holes,
        )
    )
    if not due:
        return
    limiter = anyio.CapacityLimiter(context.options.parallel_requests)
    found: list[dict[str, Any]] = []
    tried: list[tuple[Dot, int, bool]] = []

    async def look(hole: Hole) -> None:
        async with limiter:
            memories, explained = await _fetch(context, session_id, hole)
            found.extend(memories)
            # Whether it is whole is decided by applying it; if it is, its row is gone.
            tried.append((hole.dot, now + _next_look_ms(context, hole, len(memories)), explained))
            if len(found) >= FETCHES_A_LOOK:
                await apply()

    async def apply() -> None:
        held, found[:] = found[:], ()
        page = await read_page(held, session_key(session_id))
        await apply_page(context, session_id, page, result)

    failure = await _all(look, due)
    # What was found is found, whatever became of the others.
    await apply()
    await context.journal.write(lambda conn: note_hole_tries(conn, session_id, tried))
    if failure is not None:
        raise failure


async def _all(look: Callable[[Hole], Any], due: Sequence[Hole]) -> Exception | None:
    """Every look side by side; the first failure, after which none begins."""
    failures: list[Exception] = []

    async def one(hole: Hole) -> None:
        if failures:
            return
        try:
            await look(hole)
        except Exception as error:  # noqa: BLE001 - returned below
            failures.append(error)

    async with anyio.create_task_group() as group:
        for hole in due:
            group.start_soon(one, hole)
    return failures[0] if failures else None


def _next_look_ms(context: Context, hole: Hole, found: int) -> int:
    """Eagerly at first, as for a lagging replica; then as rarely as an idle session is polled. Of
    what was too much for one look, the rest at once."""
    if found >= FETCHES_A_LOOK:
        return 0
    eager = context.options.backoff_base * 2.0 ** min(hole.tries, 16)
    return int(1000 * min(eager, context.options.poll_interval_idle))


async def _fetch(
    context: Context, session_id: str, hole: Hole
) -> tuple[list[dict[str, Any]], bool]:
    """The memories of an operation that can be had by id; and whether its writer parked it, which
    says nothing against some of it being there."""
    agent, key = agent_id(session_id), session_key(session_id)
    have, heads = set(hole.have), dict(hole.heads)
    got: list[dict[str, Any]] = []

    async def get(index: int, part: int) -> Part | None:
        if len(got) >= FETCHES_A_LOOK:
            return None
        memory = await context.remote.fetch(agent, memory_id(key, hole.dot, index, part))
        try:
            decoded = decode(memory, key) if memory is not None else None
        except Unreadable:
            decoded = None
        if not isinstance(decoded, Part) or memory is None:
            return None
        got.append(memory)
        have.add((decoded.index, decoded.part))
        heads[decoded.index] = decoded.parts
        return decoded

    async def is_explained() -> bool:
        if len(got) >= FETCHES_A_LOOK:
            return False  # the look ended, not what is there
        note = await context.remote.fetch(agent, placeholder_id(key, hole.dot))
        return note is not None

    count = hole.count
    if not count:
        first = await get(0, 0)
        if first is None:
            return [], await is_explained()
        count = first.count
    for index in range(count):
        if index in hole.popped:
            continue
        if index not in heads and await get(index, 0) is None:
            # One part that is not there keeps the whole from being shown: no use asking on.
            return got, await is_explained()
        for part in range(heads.get(index, 1)):
            if (index, part) not in have and await get(index, part) is None:
                return got, await is_explained()
    # What is left of it has been popped: it may still be refused, and comes if that is mended.
    return got, not got and await is_explained()
