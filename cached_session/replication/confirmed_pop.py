"""Confirmed pop: return an item only if the server shows that this device alone has deleted it.

The steps are: store the claim in the journal, leave a *note* on the server, delete the item's
memory by id, check that the server has deleted a memory and that no other device has left a note,
store the pop, return the item.

A device leaves its note before it deletes the item, and the winner never deletes its note. A
deleted memory may be stored again, by a device whose first request got no answer, by an audit, or
by a network that delivers a request twice. A second winner is still impossible: a device that
deletes the memory again finds the note of the first winner. Since an item cannot be won twice, it
is safe to send an item again if its memory is missing and no operation removes the item.

The guarantee has three conditions. The server's ``forget`` must be atomic, which Dakera does not
document. The answer about the notes must not be older than the first winner's note; therefore the
answer has to show our own note. The server must store all notes. The guarantee does not cover
devices with an old version of this library that does not leave notes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import anyio

from cached_session.errors import JournalError, PopUnconfirmed
from cached_session.history.ops import Dot
from cached_session.history.session_name import quoted_name
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.claims import Claim, ClaimState
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.ids import READABLE_VERSIONS, claim_id, memory_id
from cached_session.remote.wire import EncodedMemory, claim_note, claim_tag, claimers
from cached_session.replication.claim_rules import (
    Contest,
    Resolution,
    ResolveRules,
    has_deleted,
    judge_notes,
    may_be_live,
)
from cached_session.replication.context import Context
from cached_session.replication.pull import pull
from cached_session.replication.push import push

__all__ = ["pop_confirmed", "resolve_claims"]

CONTEST_SECONDS = 5.0
"""The time in seconds that a device waits, after it has deleted an item, for other claimers to
withdraw their notes. A claimer that has not won withdraws its note after the server's answer."""
CONTEST_PAUSE = 0.05
"""The time in seconds before the second check of the notes. Each further wait is twice as long."""


async def pop_confirmed(context: Context, session: SessionRef) -> tuple[bytes, int] | None:
    """Pop the latest item that this device alone wins, and return its payload and codec.

    Returns:
        The payload and its codec; None if there is no item to claim.

    Raises:
        PopUnconfirmed: the outcome is in doubt, for example because the server did not answer. No
            item is returned. The claim is resolved when the server can be reached again.
        RemoteError: the server refused the request. The claim is released.
    """
    await _resolve_earlier(context, session)
    claims = context.journal.claims
    while True:
        # Hold the lock until the claim is in `live_claims`: otherwise `resolve_claims` would treat
        # the claim as abandoned.
        async with context.lock("claim", session.name):
            claim = await claims.reserve(context.author(), session, context.now_ms())
            if claim is None:
                return None
            if claim.is_ours:
                return claim.row
            live = _live(session, claim)
            context.live_claims.add(live)
        try:
            is_won = await _compete(context, session, claim)
            if is_won:
                await _confirm(context, session, claim)
            else:
                await claims.record(session, claim, ClaimState.LOST, context.now_ms())
        finally:
            context.live_claims.discard(live)
        if is_won:
            return claim.row


async def _resolve_earlier(context: Context, session: SessionRef) -> None:
    """Resolve the claims of earlier calls first: their items are later in the history than the item
    of a new claim.

    Raises:
        PopUnconfirmed: some of these claims are still in doubt.
    """
    try:
        await context.check_server(session.name)
        in_doubt = await resolve_claims(context, session, eager=True)
    except RemoteError as error:
        raise _unconfirmed(session, error.reason) from error
    if in_doubt:
        raise _unconfirmed(session, "an earlier pop is not resolved yet")


async def _confirm(context: Context, session: SessionRef, claim: Claim) -> None:
    """Store the pop of an item that this device has won.

    Raises:
        PopUnconfirmed: the journal cannot be written. The claim stays open and is resolved later.
    """
    try:
        await context.journal.claims.confirm(context.author(), session, claim)
    except JournalError as error:
        raise PopUnconfirmed(
            f"the server gave the last item of {quoted_name(session.name)} to this device, but "
            f"its pop cannot be stored ({error}); the item is not returned, and is popped as soon "
            "as the journal can be written"
        ) from error


def _unconfirmed(session: SessionRef, why: str) -> PopUnconfirmed:
    return PopUnconfirmed(
        f"the server did not confirm the pop of the last item of {quoted_name(session.name)} ({why}"
        "); nothing was popped, and the claim is resolved when the server answers again"
    )


def _live(session: SessionRef, claim: Claim) -> tuple[str, Dot, int]:
    """Return the key of a claim in `Context.live_claims`."""
    return session.name, claim.ref.dot, claim.ref.index


async def _compete(context: Context, session: SessionRef, claim: Claim) -> bool:
    """Compete for an item on the server; return whether this device has won it.

    Raises:
        PopUnconfirmed: the outcome is in doubt.
        RemoteError: the server refused a request. The claim is released.
    """
    claims = context.journal.claims
    try:
        if claim.is_in_flight:
            # The server may or may not hold the item. Push first: the device can claim the item
            # only after the server has acknowledged or refused it.
            await push(context, session)
            is_parked = await claims.is_parked(session, claim.ref.dot)
            claim = replace(claim, is_parked=is_parked)
        remote = _ClaimedItem(context, session, claim)
        await remote.leave_note()
        if not await claims.record(session, claim, ClaimState.ASKED, context.now_ms()):
            # Another process has resolved the claim, and may already have claimed the item again.
            return False
        if has_deleted(await remote.delete(), claim) and await _decide_contest(remote):
            return True
        await remote.withdraw_note()
    except RemoteError as error:
        if error.verdict in (Verdict.DENIED, Verdict.REFUSED):
            # The server has refused the request, and has deleted nothing.
            await claims.release(session, claim)
            raise
        raise _unconfirmed(session, error.reason) from error
    return False


async def _decide_contest(remote: _ClaimedItem) -> bool:
    """Return whether this device has won an item that it has deleted.

    Raises:
        RemoteError: a request has failed, or the notes do not show within `CONTEST_SECONDS` which
            device has won.
    """
    context, session, claim = remote.context, remote.session, remote.claim
    until = context.runtime.monotonic() + CONTEST_SECONDS
    pause = CONTEST_PAUSE
    while True:
        contest = judge_notes(await remote.note_writers(), claim.claimer)
        if contest is Contest.WON:
            return True
        if contest is Contest.DISPUTED:
            await pull(context, session)
            if not await context.journal.claims.is_open(session, claim):
                return False
        if context.runtime.monotonic() + pause > until:
            raise RemoteError(Verdict.UNREACHABLE, "another device has claimed it")
        await anyio.sleep(pause)
        pause *= 2


@dataclass(frozen=True)
class _ClaimedItem:
    """The requests about one claimed item: its memory on the server, and the notes on it."""

    context: Context
    session: SessionRef
    claim: Claim

    @property
    def _memories(self) -> list[str]:
        """The ids that the item's memory may have: one for each wire version."""
        ref = self.claim.ref
        return [
            memory_id(self.session.key, ref.dot, ref.index, version=version)
            for version in READABLE_VERSIONS
        ]

    async def leave_note(self) -> None:
        """Store our note; do nothing if the server already holds it."""
        ref, now = self.claim.ref, self.context.runtime.wall_ms()
        note = claim_note(self.session.name, ref.dot, ref.index, self.claim.claimer, now)
        try:
            stored = await self.context.remote.store(self.session.agent, [EncodedMemory.of(note)])
        except RemoteError as error:
            if error.verdict is not Verdict.CONFLICT:  # the server already holds the note
                raise
            return
        if note["id"] not in stored:
            raise RemoteError(Verdict.UNREACHABLE, "the server did not keep the note of a claim")

    async def withdraw_note(self) -> None:
        """Delete our note, so that other claimers need not wait for it."""
        ref = self.claim.ref
        note = claim_id(self.session.key, ref.dot, ref.index, self.claim.claimer)
        await self.context.remote.forget(self.session.agent, [note])

    async def note_writers(self) -> set[str]:
        """Return the writer ids of the devices that have left a note."""
        ref = self.claim.ref
        tag = claim_tag(ref.dot, ref.index)
        notes = await self.context.remote.find_by_tag(self.session.agent, tag)
        return claimers(notes, self.session.key, ref.dot, ref.index)

    async def delete(self) -> int:
        """Delete the item's memory; return the number of memories that the server has deleted."""
        return await self.context.remote.forget(self.session.agent, self._memories)

    async def is_there(self) -> bool:
        """Return whether the server shows the item's memory."""
        for memory in self._memories:
            if await self.context.remote.fetch(self.session.agent, memory) is not None:
                return True
        return False


async def resolve_claims(context: Context, session: SessionRef, *, eager: bool = False) -> int:
    """Resolve the claims for which no call waits; `Resolution` lists the outcomes.

    These claims were made by this opening of the journal, or by an opening that has ended.

    Args:
        eager: look up now the items that other devices may have won, without waiting for
            `SyncOptions.hole_patience`.

    Returns:
        The number of claims that have to be looked up again.

    Raises:
        RemoteError: the first failed request. The later claims are not resolved.
    """
    async with context.lock("claim", session.name):
        in_doubt = 0
        for claim in await context.journal.claims.open(session):
            if not _may_be_live(context, session, claim):
                resolution = await _resolve(context, session, claim, eager=eager)
                in_doubt += resolution is Resolution.LOOK_AGAIN
        return in_doubt


def _may_be_live(context: Context, session: SessionRef, claim: Claim) -> bool:
    return may_be_live(
        is_own=claim.claimer == context.writer,
        is_waiting=_live(session, claim) in context.live_claims,
        age_ms=context.now_ms() - claim.since_ms,
        timeout=context.options.request_timeout,
    )


async def _resolve(
    context: Context, session: SessionRef, claim: Claim, *, eager: bool
) -> Resolution:
    """Decide how a claim ends, store the decision, and return it."""
    remote = _ClaimedItem(context, session, claim)
    rules = ResolveRules.of(context.options, is_eager=eager)
    age_ms = context.now_ms() - claim.since_ms
    resolution = rules.before_lookup(claim, age_ms)
    if resolution is None:
        is_there = await remote.is_there()
        resolution = rules.after_lookup(claim, age_ms, is_on_server=is_there)
    if resolution.ends_without_pop:
        await remote.withdraw_note()
    await _record(context, session, claim, resolution)
    return resolution


async def _record(
    context: Context, session: SessionRef, claim: Claim, resolution: Resolution
) -> None:
    claims = context.journal.claims
    if resolution is Resolution.CONFIRM:
        await claims.confirm(context.author(), session, claim)
    elif resolution is Resolution.RELEASE:
        await claims.release(session, claim)
    elif resolution is Resolution.REQUEUE:
        await claims.requeue(session, claim)
    elif resolution is Resolution.LOOK_AGAIN and claim.state is not ClaimState.ABSENT:
        await claims.record(session, claim, ClaimState.ABSENT, context.now_ms())
