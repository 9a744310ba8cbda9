"""The session calls that wait for the server. They run steps of the replicator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from cached_session.engine.engine import Engine
from cached_session.errors import PopUnconfirmed, SyncError, SyncTimeout, Unauthorized
from cached_session.history.parts import Part
from cached_session.history.session_name import quoted_name
from cached_session.history.session_ref import SessionRef
from cached_session.humanize import count
from cached_session.models import Recall, SyncReport
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.wire import Unreadable, decode
from cached_session.replication import confirmed_pop
from cached_session.replication.audit import AuditReport
from cached_session.replication.replicator import Replicator

__all__ = ["audit", "drain", "flush", "listing", "pop_confirmed", "recall", "sync"]

LONGEST_PAUSE = 2.0
"""Maximum number of seconds between two attempts, because a caller waits. The time is longer if the
server has requested a longer pause."""
RECALL_MORE = 3
"""Number of memories to request for each wanted item. Some memories are only a part of an item, or
not an item."""


@dataclass
class _Tally:
    pushed: int = 0
    pulled: int = 0
    last: RemoteError | None = None
    done: set[str] = field(default_factory=set)


async def sync(engine: Engine, sessions: Sequence[str], timeout: float | None) -> SyncReport:
    """Push and pull these sessions; see `CachedSession.sync`."""
    started = engine.runtime.monotonic()
    tally = _Tally()
    upto = await engine.journal.outbox.newest_seq()

    async def step(replicator: Replicator, session_id: str) -> None:
        pushed = await replicator.pusher.push_now(session_id, upto=upto)
        tally.pushed += pushed.acked
        pulled = await replicator.puller.pull_since(session_id, started)
        tally.pulled += pulled.new
        await engine.hydration.finish(session_id)

    await _until_done(engine, sessions, step, tally, timeout, "sync")
    facts = [engine.status(session_id, is_closed=False) for session_id in sessions]
    return SyncReport(
        pushed=tally.pushed,
        pulled=tally.pulled,
        pending=sum(status.pending for status in facts),
        parked=sum(status.parked for status in facts),
        absent=sum(status.absent for status in facts),
        seconds=engine.runtime.monotonic() - started,
    )


async def flush(engine: Engine, sessions: Sequence[str], timeout: float | None) -> None:
    """Push these sessions; see `CachedSession.flush`."""
    upto = await engine.journal.outbox.newest_seq()

    async def step(replicator: Replicator, session_id: str) -> None:
        await replicator.pusher.push_now(session_id, upto=upto)

    await _until_done(engine, sessions, step, _Tally(), timeout, "flush")
    parked = sum(engine.status(session_id, is_closed=False).parked for session_id in sessions)
    if parked:
        raise SyncError(
            f"{count(parked, 'operation')} parked after a permanent refusal by the server; all "
            "others were sent. See parked(), then call retry_parked() or drop_parked()"
        )


async def _until_done(
    engine: Engine,
    sessions: Sequence[str],
    step: Callable[[Replicator, str], Awaitable[None]],
    tally: _Tally,
    timeout: float | None,
    what: str,
) -> None:
    """Run ``step`` for each session in order, and repeat it for a session until it succeeds."""

    async def work(replicator: Replicator) -> None:
        for session_id in sessions:
            while session_id not in tally.done:
                await _pause(replicator, session_id, tally.last)
                try:
                    await step(replicator, session_id)
                except RemoteError as error:
                    if error.status in (401, 403):
                        raise
                    tally.last = error
                else:
                    tally.done.add(session_id)
                    tally.last = None

    try:
        with anyio.fail_after(timeout):
            await engine.loop_host.run(work)
    except TimeoutError as error:
        why = f": {tally.last.reason}" if tally.last else ""
        raise SyncTimeout(
            f"{what} did not finish in {round(timeout or 0.0, 1):g} s{why}. Unsent operations "
            "stay in the journal, and syncing continues while the session is open"
        ) from (tally.last or error)
    except RemoteError as error:
        raise _denied(error) from error


async def _pause(replicator: Replicator, session_id: str, last: RemoteError | None) -> None:
    """Wait before an attempt.

    Before the first attempt, wait only as long as the server has requested. Before a retry, when
    ``last`` is the error of the last attempt, also wait for the session's pause, at most
    `LONGEST_PAUSE`.
    """
    asked = await replicator.context.pauses.wait_ms(session_id, asked_only=True) / 1000
    waited = 0.0
    if last is not None:
        waited = min(LONGEST_PAUSE, await replicator.context.pauses.wait_ms(session_id) / 1000)
    await anyio.sleep(max(asked, waited))


def _denied(error: RemoteError) -> SyncError:
    if error.status in (401, 403):
        return Unauthorized(
            f"{error.reason}: check the API key and its scope. Unsent operations stay in the "
            "journal"
        )
    return SyncError(error.reason)


async def drain(engine: Engine, is_closing: Callable[[str], bool]) -> None:
    """Push unsent operations before a close, for at most ``close_timeout``.

    Push the sessions for whose name ``is_closing`` returns True. Skip paused sessions. Do not raise
    errors of the server.
    """
    if not engine.journal.is_open or engine.spec is None:
        return
    with anyio.move_on_after(engine.options.close_timeout):
        waiting = await engine.journal.outbox.pending_sessions()
        names = [name for name in waiting if is_closing(name)]
        if not names:
            return

        async def work(replicator: Replicator) -> None:
            for name in names:
                if await replicator.context.pauses.wait_ms(name):
                    continue
                try:
                    await replicator.pusher.push_now(name)
                except RemoteError:
                    # The recorded pause reports the error. The operations stay in the outbox.
                    continue

        await engine.loop_host.run(work)


async def audit(engine: Engine, session_id: str) -> AuditReport:
    """Audit a session; see `CachedSession.audit`."""

    async def work(replicator: Replicator) -> AuditReport:
        return await replicator.auditor.audit_now(session_id)

    try:
        return await engine.loop_host.run(work)
    except RemoteError as error:
        raise _denied(error) from error


async def listing(engine: Engine, agent: str, offset: int, limit: int) -> list[dict[str, Any]]:
    """Return a page of an agent's memories, newest first, including those of other programs.

    Raises:
        Unauthorized, SyncError: the request failed.
    """
    try:
        return await engine.loop_host.run(
            lambda replicator: replicator.context.remote.list_memories(
                agent, offset=offset, limit=limit
            )
        )
    except RemoteError as error:
        raise _denied(error) from error


async def pop_confirmed(engine: Engine, session_id: str) -> tuple[bytes, int] | None:
    """Pop an item after the server has confirmed it; see `CachedSession.pop_item`."""
    try:
        return await engine.loop_host.run(
            lambda replicator: confirmed_pop.pop_confirmed(
                replicator.context, SessionRef.of(session_id)
            ),
            in_doubt=PopUnconfirmed(
                f"the connection of {quoted_name(session_id)} was closed during this call; no "
                "item is returned, and the claim is resolved when the server answers again"
            ),
        )
    except RemoteError as error:
        raise _denied(error) from error


async def recall(
    engine: Engine, session_id: str, query: str, words: list[str], limit: int
) -> Recall:
    """Return the items nearest in meaning; see `CachedSession.recall`."""
    found: list[tuple[str, int, int]] | None = None
    if engine.spec is not None:
        try:
            with anyio.move_on_after(engine.options.request_timeout):
                found = await engine.loop_host.run(
                    lambda replicator: _ask(replicator, session_id, query, limit)
                )
        except RemoteError:
            found = None
    if found is None:
        entries = await engine.journal.history.search(session_id, words, limit)
        return Recall(entries, "local")
    entries = await engine.journal.history.entries_at(session_id, found[:limit])
    return Recall(entries, "server")


async def _ask(
    replicator: Replicator, session_id: str, query: str, limit: int
) -> list[tuple[str, int, int]]:
    """Return the positions of the items that the server recalls, best first, without duplicates.

    Raises:
        RemoteError: the request failed, or the server is known to be out of reach.
    """
    if await replicator.context.pauses.wait_ms(session_id):
        raise RemoteError(Verdict.UNREACHABLE, "the server cannot be reached")
    ref, context = SessionRef.of(session_id), replicator.context

    async def work() -> list[dict[str, Any]] | None:
        try:
            return await context.remote.recall(ref.agent, query, limit * RECALL_MORE)
        except RemoteError as error:
            if error.status is None or error.verdict is Verdict.BUSY:
                raise
            # The server cannot recall, or refuses recall for this key. Other requests may work, so
            # do not raise the error: it would set a pause and delay the outbox.
            return None

    memories = await context.attempt(session_id, work)
    if memories is None:
        raise RemoteError(Verdict.DENIED, "the server cannot recall", scope=Scope.SESSION)
    positions: dict[tuple[str, int, int], None] = {}
    for memory in memories:
        try:
            part = decode(memory, ref.key)
        except Unreadable:
            continue
        if isinstance(part, Part) and part.kind.value == "append":
            positions[part.dot.writer, part.dot.counter, part.index] = None
    return list(positions)
