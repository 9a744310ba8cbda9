"""Confirmed pop: an item is ours only if the server says that we, and nobody else, deleted it.

Intent in the journal, a *note* on the server, ``forget`` by id, ``deleted_count >= 1``, no other
note, tombstone, return.

Whoever got an item has left a note on it before deleting it, and the note of a winner stays. So a
memory that was deleted and then stored again (by a device that had got no answer when it first sent
it, by an audit, by a network that delivers twice) makes no second winner: whoever deletes it anew
finds the first one's note. And as nobody can win an item twice, an item that is gone without an
operation that removes it can be put back.

Exactly one device gets an item as far as the server's ``forget`` is atomic, which Dakera does not
document; and as the answer about the notes is not older than the first winner's note (it has to
show our own), and no note has been lost. Versions before the notes leave none.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Literal

import anyio

from cached_session.errors import JournalError, PopUnconfirmed
from cached_session.history.ids import agent_id, session_key
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import claims
from cached_session.journal.tables.claims import Claim, Doubt
from cached_session.journal.tables.writes import Author
from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.ids import claim_id, memory_id
from cached_session.remote.wire import EncodedMemory, claim_note, claim_tag, claimers
from cached_session.replication.context import Context
from cached_session.replication.pull import pull
from cached_session.replication.push import push

__all__ = ["pop_confirmed", "settle_claims"]

CONTEST_SECONDS = 5.0
"""How long whoever has deleted an item waits for others that claim it too to say that they did
not: they do so as soon as the server has answered them."""
CONTEST_PAUSE = 0.05
"""Before the second look; each further one waits twice as long."""

Settled = Literal["ours", "free", "lost"]


async def pop_confirmed(context: Context, session_id: str) -> tuple[bytes, int] | None:
    """The row of the latest item that the server gave to us alone; None if there is none.

    Raises:
        PopUnconfirmed: the server did not answer. Nothing is returned; whether the item is ours is
            settled when the server can be reached again.
        RemoteError: the server refused; nothing is in doubt.
    """
    try:
        # What an earlier call could not settle comes first: it is the later item.
        await context.check_server(session_id)
        in_doubt = await settle_claims(context, session_id, eager=True)
    except RemoteError as error:
        raise _unconfirmed(session_id, error.reason) from error
    if in_doubt:
        raise _unconfirmed(session_id, "an earlier pop is still being settled")
    while True:
        # Not while somebody settles: until it is known to be alive here it would be taken for dead.
        async with context.lock("claim", session_id):
            author, now = context.author(), context.now_ms()
            claim = await context.journal.write(
                lambda conn, author=author, now=now: (  # type: ignore[misc]
                    claims.reserve(conn, author, session_id, now)
                )
            )
            if claim is None:
                return None
            if claim.is_ours:
                return claim.row
            live = (session_id, claim.ref.dot, claim.ref.index)
            context.live_claims.add(live)
        try:
            won = await _won(context, session_id, claim)
            author, now = context.author(), context.now_ms()
            try:
                await context.journal.write(
                    lambda conn, author=author, now=now, claim=claim, won=won: (  # type: ignore[misc]
                        claims.confirm(conn, author, session_id, claim)
                        if won
                        else claims.note(conn, session_id, claim, Doubt.LOST, now)
                    )
                )
            except JournalError as error:
                if not won:
                    raise
                # A yes that cannot be written down is no no: the intent stands, and is settled.
                raise PopUnconfirmed(
                    f"the last item of {session_id!r} is ours, and that cannot be written down "
                    f"({error}); it is given to nobody, and popped as soon as it can be"
                ) from error
        finally:
            context.live_claims.discard(live)
        if won:
            return claim.row


async def _won(context: Context, session_id: str, claim: Claim) -> bool:
    agent, key = agent_id(session_id), session_key(session_id)
    try:
        if claim.is_in_flight:
            # The server may or may not hold it; only once it surely does, or refuses it, can it be
            # claimed there.
            await push(context, SessionRef.of(session_id))
            claim = replace(
                claim,
                is_parked=await context.journal.read(
                    lambda conn: claims.is_parked(conn, session_id, claim.ref.dot)
                ),
            )
        await _leave_note(context, session_id, claim)
        now = context.now_ms()
        if not await context.journal.write(
            lambda conn: claims.note(conn, session_id, claim, Doubt.ASKED, now)
        ):
            # Nothing has been asked for, and another process may be claiming it by now.
            return False
        deleted = await context.remote.forget(
            agent, [memory_id(key, claim.ref.dot, claim.ref.index)]
        )
        # One memory may be several rows of the server's, its derived sentences. What the server
        # refused, it need not hold: then the notes alone tell.
        if (deleted >= 1 or claim.is_parked) and await _is_alone(context, session_id, claim):
            return True
        await _take_note_back(context, session_id, claim)
    except RemoteError as error:
        if error.verdict in (Verdict.DENIED, Verdict.REFUSED):
            # The server has answered, and did not do it: nothing is in doubt.
            await context.journal.write(lambda conn: claims.release(conn, session_id, claim))
            raise
        raise _unconfirmed(session_id, error.reason) from error
    return False


async def _leave_note(context: Context, session_id: str, claim: Claim) -> None:
    note = claim_note(
        session_id, claim.ref.dot, claim.ref.index, claim.claimer, context.runtime.wall_ms()
    )
    try:
        stored = await context.remote.store(agent_id(session_id), [EncodedMemory.of(note)])
    except RemoteError as error:
        if error.verdict is not Verdict.CONFLICT:  # it stands there already
            raise
        return
    if note["id"] not in stored:
        raise RemoteError(Verdict.UNREACHABLE, "the server did not keep the note of a claim")


async def _take_note_back(context: Context, session_id: str, claim: Claim) -> None:
    """We did not get it: nobody need wait for us."""
    key = session_key(session_id)
    note = claim_id(key, claim.ref.dot, claim.ref.index, claim.claimer)
    await context.remote.forget(agent_id(session_id), [note])


async def _is_alone(context: Context, session_id: str, claim: Claim) -> bool:
    """Whether nobody else can have got the item that we have deleted; False if somebody has.

    Raises:
        RemoteError: there is another note, and it does not turn out whose the item is.
    """
    agent, key, ref = agent_id(session_id), session_key(session_id), claim.ref
    until = context.runtime.monotonic() + CONTEST_SECONDS
    pause = CONTEST_PAUSE
    while True:
        notes = await context.remote.find_by_tag(agent, claim_tag(ref.dot, ref.index))
        found = claimers(notes, key, ref.dot, ref.index)
        # An answer without our own note is older than the claim, or of a server that keeps no tags.
        if found == {claim.claimer}:
            return True
        if found - {claim.claimer}:
            await pull(context, session_id)
            if not await context.journal.read(lambda conn: claims.is_open(conn, session_id, claim)):
                return False
        if context.runtime.monotonic() + pause > until:
            raise RemoteError(Verdict.UNREACHABLE, "another device claims it too, or has got it")
        await anyio.sleep(pause)
        pause *= 2


def _unconfirmed(session_id: str, why: str) -> PopUnconfirmed:
    return PopUnconfirmed(
        f"the server did not say whether the last item of {session_id!r} is ours ({why}); "
        "nothing was popped here, and the claim is settled when the server answers again"
    )


async def settle_claims(context: Context, session_id: str, *, eager: bool = False) -> int:
    """Settle what can be settled of claims without an answer, of this opening or of one that died;
    how many are still in doubt.

    - The memory is there: it is nobody's, and visible as before.
    - It is not there, now and `claim_patience` ago (one node may lag), and we had asked for it:
      somebody got it, perhaps we. It is popped, and returned to nobody.
    - It was not given to us, and no pop of it has come for `hole_patience`: the server has lost it,
      or whoever got it has not sent the pop yet. It is sent again; in the second case the pop, when
      it comes, removes it, and nobody else can get it, for the winner's note is there. ``eager``
      looks whether it is back already.

    Raises:
        RemoteError: the server cannot be asked yet.
    """
    async with context.lock("claim", session_id):
        return await _settle_all(context, session_id, eager)


async def _settle_all(context: Context, session_id: str, eager: bool) -> int:
    found = await context.journal.read(lambda conn: claims.open_claims(conn, session_id))
    in_doubt = 0
    for claim in found:
        if _may_be_live(context, session_id, claim):
            continue
        verdict = await _settled(context, session_id, claim, eager=eager)
        if verdict in ("free", "lost"):
            await _take_note_back(context, session_id, claim)
        author = context.author()
        now = context.now_ms()
        in_doubt += verdict is Doubt.ABSENT
        await context.journal.write(
            lambda conn, claim=claim, verdict=verdict, author=author, now=now: (  # type: ignore[misc]
                _record(conn, session_id, claim, verdict, author, now)
            )
        )
    return in_doubt


async def _settled(
    context: Context, session_id: str, claim: Claim, *, eager: bool
) -> Doubt | Settled:
    """What has become of a claim that nobody waits for."""
    age = context.now_ms() - claim.since_ms
    if not claim.is_visible or claim.doubt is Doubt.RESERVED:
        return "free"
    if claim.doubt is Doubt.LOST and not eager and 0 <= age < 1000 * context.options.hole_patience:
        return Doubt.LOST
    identity = memory_id(session_key(session_id), claim.ref.dot, claim.ref.index)
    if await context.remote.fetch(agent_id(session_id), identity) is not None:
        return "free"
    if claim.doubt is Doubt.LOST:
        return Doubt.LOST if 0 <= age < 1000 * context.options.hole_patience else "lost"
    patience = 1000 * context.options.claim_patience
    first = claim.doubt is Doubt.ASKED and patience > 0
    return Doubt.ABSENT if first or 0 <= age < patience else "ours"


def _record(
    conn: sqlite3.Connection,
    session_id: str,
    claim: Claim,
    verdict: Doubt | Settled,
    author: Author,
    now_ms: int,
) -> None:
    if verdict == "ours":
        claims.confirm(conn, author, session_id, claim)
    elif verdict == "free":
        claims.release(conn, session_id, claim)
    elif verdict == "lost":
        claims.put_back(conn, session_id, claim)
    elif verdict is not claim.doubt:
        claims.note(conn, session_id, claim, Doubt(verdict), now_ms)


def _may_be_live(context: Context, session_id: str, claim: Claim) -> bool:
    """Whether somebody may still be waiting for the answer: a call here, or one in another process
    whose request has not run out of time yet."""
    if claim.claimer == context.writer:
        return (session_id, claim.ref.dot, claim.ref.index) in context.live_claims
    age = context.now_ms() - claim.since_ms
    return 0 <= age < 2000 * context.options.request_timeout
