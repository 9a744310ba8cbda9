"""From the outbox to the server: in order, whole, acknowledged by nothing but its answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cached_session.history.ids import session_key
from cached_session.journal.tables import item_rows, outbox, pauses
from cached_session.journal.tables.outbox import Forget, Outgoing
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.ids import agent_id, memory_id, placeholder_id
from cached_session.remote.protocol import Encoded
from cached_session.remote.wire import memories_of, placeholder
from cached_session.replication.ahead import give_up
from cached_session.replication.context import Link, log
from cached_session.replication.tasks import Pace

__all__ = ["Parcel", "PushResult", "guard", "packed", "push", "store"]

FORGETS_A_REQUEST = 500
"""Ids in one forget request."""
GUARD_AGAIN_MS = 24 * 3600 * 1000
"""The namespace's policy is checked again after a day: a server may have been set up anew."""
EVERYTHING = 1 << 62
"""Above every `seq`."""
SAMPLES = 3
"""Memories that are looked for by id, and not found, before the rest counts as not kept."""
LISTED = 1000
"""Rows of the one listing that tells which of many memories are there already."""
RATE_LIMITED = 429
TAKE_OPS = 1000
TAKE_BYTES = 512 * 1024
"""Payload bytes taken from the outbox at a time: a few requests' worth, whatever the backlog."""
SLICE_BYTES = 8 * 1024
"""Memories encoded on the event loop at a time: some two hundred microseconds of work."""
LARGE_BYTES = 128 * 1024
"""An operation with more payload is cut and encoded in a thread: one item of it may be that large,
and cannot be done in slices."""


@dataclass
class PushResult:
    """What one push did."""

    acked: int = 0
    parked: int = 0
    forgotten: int = 0
    unsettled: int = 0
    """Confirmed pops whose outcome is still in doubt."""
    unkept: int = 0
    """Operations that the server took and did not keep: they stay in the outbox."""


@dataclass
class Parcel:
    """An operation and its memories, ready to be sent."""

    outgoing: Outgoing
    memories: list[Encoded]

    @property
    def size(self) -> int:
        """Encoded bytes."""
        return sum(len(memory.data) for memory in self.memories)


async def push(link: Link, session_id: str, *, upto: int | None = None) -> PushResult:
    """Send what waits in one session, then have the server forget what was removed.

    Args:
        upto: the `seq` to stop at; None goes on while there is something to send.

    Raises:
        RemoteError: the first failure; what was acknowledged before it stays acknowledged.
    """
    result = PushResult()
    last = EVERYTHING if upto is None else upto
    async with link.lock("push", session_id):
        if await link.journal.read(lambda conn: item_rows.has_unsent(conn, session_id)):
            await guard(link, session_id)
            waiting: list[Parcel] = []
            async with _taking(link, session_id, last) as following:
                while parcels := await following():
                    *full, waiting = _groups([*waiting, *parcels], link, session_id)
                    for group in full:
                        await _deliver(link, session_id, group, result)
                if waiting:
                    await _deliver(link, session_id, waiting, result)
        await _forget(link, session_id, result)
    if result.unkept:
        raise RemoteError(
            Verdict.UNREACHABLE,
            f"the server did not keep {result.unkept} operations of {agent_id(session_id)} "
            "(does it deduplicate on store?); they will be sent again",
            scope=Scope.SESSION,
        )
    return result


@asynccontextmanager
async def _taking(
    link: Link, session_id: str, last: int
) -> AsyncIterator[Callable[[], Awaitable[list[Parcel]]]]:
    """What is to be sent, some at a time, in order; nothing at the end. The next is taken and
    encoded while its caller sends."""

    async def take(after: int) -> tuple[int, list[Parcel]]:
        seqs = await link.journal.write(
            lambda conn: outbox.take(
                conn,
                session_id,
                after=after,
                upto=last,
                most_ops=TAKE_OPS,
                most_bytes=TAKE_BYTES,
            )
        )
        if not seqs:
            return after, []
        found = await link.journal.read_aside(lambda conn: outbox.whole(conn, seqs))
        return seqs[-1], await packed(link, found, session_id)

    ahead = asyncio.ensure_future(take(0))

    async def following() -> list[Parcel]:
        nonlocal ahead
        after, parcels = await ahead
        if parcels:
            ahead = asyncio.ensure_future(take(after))
        return parcels

    try:
        yield following
    finally:
        await give_up([ahead])


async def packed(link: Link, found: Sequence[Outgoing], session_id: str) -> list[Parcel]:
    """Operations with their memories."""
    pace = Pace(SLICE_BYTES)
    parcels = []
    for outgoing in found:
        pieces = _memories(outgoing, session_id)
        if sum(map(len, outgoing.op.payloads)) > LARGE_BYTES:
            memories: list[Encoded] = await link.journal.offload(list, pieces)
        else:
            memories = []
            for memory in pieces:
                memories.append(memory)
                await pace.spent(len(memory.data))
        parcels.append(Parcel(outgoing, memories))
    return parcels


def _memories(outgoing: Outgoing, session_id: str) -> Iterator[Encoded]:
    return map(Encoded.of, memories_of(outgoing.op, outgoing.digest, session_id))


def _groups(parcels: Sequence[Parcel], link: Link, session_id: str) -> list[list[Parcel]]:
    """Neighbours that fit one request; an operation too large for one goes alone."""
    groups: list[list[Parcel]] = []
    size = count = 0
    most = link.batch_most(session_id)
    for parcel in parcels:
        fits = size + parcel.size <= link.body.most and count + len(parcel.memories) <= most
        if groups and fits:
            groups[-1].append(parcel)
        else:
            groups.append([parcel])
            size = count = 0
        size += parcel.size
        count += len(parcel.memories)
    return groups


async def _deliver(
    link: Link, session_id: str, group: Sequence[Parcel], result: PushResult
) -> None:
    """Send a group and settle it; a refusal is bisected down to the operation at fault.

    An operation of which everything was removed before it was sent has no memories: its removal
    explains its dot, and nobody ever needs it.
    """
    try:
        unkept = await store(
            link, session_id, [memory for parcel in group for memory in parcel.memories]
        )
    except RemoteError as error:
        if error.verdict is not Verdict.REFUSED:
            raise
        if len(group) == 1:
            await _park(link, session_id, group[0], error, result)
            return
        middle = len(group) // 2
        await _deliver(link, session_id, group[:middle], result)
        await _deliver(link, session_id, group[middle:], result)
        return
    kept = [
        parcel.outgoing.seq
        for parcel in group
        if not any(memory.id in unkept for memory in parcel.memories)
    ]
    now = link.runtime.wall_ms()

    def settle(conn: sqlite3.Connection) -> None:
        outbox.ack(conn, kept)
        pauses.note_success(conn, now)
        if kept:
            pauses.note_progress(conn, now)

    await link.journal.write(settle)
    result.acked += len(kept)
    result.unkept += len(group) - len(kept)


async def store(link: Link, session_id: str, memories: Sequence[Encoded]) -> set[str]:
    """Store memories, in requests of legal size; the ids of those that the server did not keep.

    Where a server takes only so many a minute, what it has taken of a large operation is not sent
    again after the pause: it would use up the next minute, and the next. In the end it is asked for
    the last of that, because it may have been restarted meanwhile, without it.

    Raises:
        RemoteError: REFUSED if even one of them alone is refused.
    """
    taken = link.taken.setdefault(session_id, set())
    relied = None
    if session_id not in link.doubted:
        relied = next((memory for memory in reversed(memories) if memory.id in taken), None)
    unkept: set[str] = set()
    for batch in _batches(memories, link, session_id, taken):
        ids = {memory.id for memory in batch}
        size, began = sum(len(memory.data) for memory in batch), link.runtime.monotonic()
        try:
            missing = await _store_batch(link, session_id, batch)
        except RemoteError as error:
            link.body.failed(size, error)
            if error.status == RATE_LIMITED:
                link.batch_refused(session_id, len(batch))
            raise
        link.body.answered(size, link.runtime.monotonic() - began)
        link.batch_taken(session_id, len(batch))
        taken |= ids - missing
        unkept |= missing
    if relied is not None:
        found = await link.remote.fetch(agent_id(session_id), relied.id)
        if not relied.is_held(found):
            # Once for an operation: a server whose reads lag would be sent it again without end.
            link.doubted.add(session_id)
            taken.clear()
            return await store(link, session_id, memories)
    link.doubted.discard(session_id)
    del link.taken[session_id]
    return unkept


def _batches(
    memories: Sequence[Encoded], link: Link, session_id: str, taken: set[str]
) -> list[list[Encoded]]:
    batches: list[list[Encoded]] = []
    size = 0
    most = link.batch_most(session_id)
    for memory in memories:
        if memory.id in taken:
            continue
        full = not batches or len(batches[-1]) >= most
        if full or size + len(memory.data) > link.body.most:
            batches.append([])
            size = 0
        batches[-1].append(memory)
        size += len(memory.data)
    return batches


async def _store_batch(link: Link, session_id: str, batch: list[Encoded]) -> set[str]:
    """Store a batch; the ids that the server did not keep. What it holds already, whether it
    refuses to hear of it again or keeps silent, is looked up by one listing, not one by one."""
    agent = agent_id(session_id)
    link.sent.add(memory.id for memory in batch)
    try:
        stored = await link.remote.store(agent, batch)
    except RemoteError as error:
        # Too large together, or one id there already: smaller requests tell.
        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):
            raise
        conflict = error.verdict is Verdict.CONFLICT
        stored = await _listed(link, agent, batch) if conflict and len(batch) > SAMPLES else set()
        rest = [memory for memory in batch if memory.id not in stored]
        if stored:
            return await _store_batch(link, session_id, rest) if rest else set()
        if len(batch) > 1 and (conflict or _is_one_operation(batch)):
            middle = len(batch) // 2
            unkept = await _store_batch(link, session_id, batch[:middle])
            return unkept | await _store_batch(link, session_id, batch[middle:])
        if not conflict:
            raise
    unsaid = [memory for memory in batch if memory.id not in stored]
    if len(unsaid) > SAMPLES:
        held = await _listed(link, agent, unsaid)
        unsaid = [memory for memory in unsaid if memory.id not in held]
    unkept = set()
    for memory in unsaid:
        if len(unkept) >= SAMPLES:
            # A server that keeps nothing is not asked a thousand times. All of it is sent again.
            return {memory.id for memory in unsaid}
        if not memory.is_held(await link.remote.fetch(agent, memory.id)):
            unkept.add(memory.id)
    return unkept


async def _listed(link: Link, agent: str, memories: Sequence[Encoded]) -> set[str]:
    """Those of these memories that stand, as they are, among the newest on the server."""
    found = await link.remote.page(agent, offset=0, limit=LISTED)
    theirs = {memory["id"]: memory for memory in found if isinstance(memory.get("id"), str)}
    return {memory.id for memory in memories if memory.is_held(theirs.get(memory.id))}


def _is_one_operation(batch: list[Encoded]) -> bool:
    return len({memory.dot for memory in batch}) == 1


async def _park(
    link: Link, session_id: str, parcel: Parcel, error: RemoteError, result: PushResult
) -> None:
    """Set one operation aside. The placeholder proves that it is the operation that is at fault:
    a server that refuses even that refuses everything."""
    op = parcel.outgoing.op
    note = Encoded.of(placeholder(op, session_id))
    link.sent.add([note.id])
    try:
        await link.remote.store(agent_id(session_id), [note])
    except RemoteError as refusal:
        if refusal.verdict is Verdict.REFUSED:
            raise RemoteError(
                Verdict.DENIED,
                f"the server refuses everything of this session: {error.reason}",
                scope=Scope.SESSION,
                status=error.status,
            ) from refusal
        if refusal.verdict is not Verdict.CONFLICT:  # it stands there already
            raise
    if not await link.journal.write(
        lambda conn: outbox.park(conn, parcel.outgoing.seq, error.reason)
    ):
        return
    result.parked += 1
    log.error(
        "operation %d of writer %s in session %r is parked: %s",
        op.dot.counter,
        op.dot.writer,
        session_id,
        error.reason,
        extra={"session": session_id, "writer": op.dot.writer, "counter": op.dot.counter},
    )


async def _forget(link: Link, session_id: str, result: PushResult) -> None:
    agent, key = agent_id(session_id), session_key(session_id)
    while True:
        due = await link.journal.read(
            lambda conn: outbox.forgets_due(conn, session_id, FORGETS_A_REQUEST)
        )
        if not due:
            return
        ids = [identity for forget in due for identity in _ids(forget, key)]
        for start in range(0, len(ids), FORGETS_A_REQUEST):
            await link.remote.forget(agent, ids[start : start + FORGETS_A_REQUEST])
        await link.journal.write(
            lambda conn, due=due: outbox.forgotten(conn, session_id, due)  # type: ignore[misc]
        )
        result.forgotten += len(due)


def _ids(forget: Forget, key: str) -> list[str]:
    if forget.index < 0:
        return [placeholder_id(key, forget.dot)]
    return [memory_id(key, forget.dot, forget.index, part) for part in range(forget.parts)]


async def guard(link: Link, session_id: str, *, anew: bool = False) -> None:
    """The lifecycle guard, on first contact and once a day; ``anew``: also now.

    Raises:
        RemoteError: the server could not be asked.
    """
    now = link.runtime.wall_ms()
    guarded_ms = await link.journal.read(lambda conn: pauses.guarded_ms(conn, session_id))
    if 0 <= now - guarded_ms < GUARD_AGAIN_MS and guarded_ms and not anew:
        return
    report = await link.remote.guard(agent_id(session_id))
    if report.unguarded:
        log.warning(
            "session %r is not guarded on the server: %s",
            session_id,
            report.unguarded,
            extra={"session": session_id},
        )
    await link.journal.write(
        lambda conn: pauses.note_guard(conn, session_id, now, report.unguarded)
    )
