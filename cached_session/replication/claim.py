"""Confirmed pop: an item is ours only if the server says that we, and nobody else, deleted it.

Intent in the journal, ``forget`` by id, ``deleted_count == 1`` wins, tombstone, return. Exactly
one device gets an item as far as the server's ``forget`` is atomic, which Dakera does not document;
and as nobody stores the memory again before the tombstone has arrived: a device that got no answer
when it first sent the item may, or an audit that puts back what the server seems to have lost.
Without a conditional write on the server no client can fence that off.
"""

from __future__ import annotations

import sqlite3
from typing import Literal

from cached_session.errors import PopUnconfirmed
from cached_session.history.ids import session_key
from cached_session.journal import claims
from cached_session.journal.claims import Claim, Doubt
from cached_session.journal.writes import Author
from cached_session.remote.naming import agent_id, memory_id
from cached_session.remote.verdicts import RemoteError, Verdict
from cached_session.replication.link import Link
from cached_session.replication.push import push

__all__ = ["pop_confirmed", "settle_claims"]


async def pop_confirmed(link: Link, session_id: str) -> tuple[bytes, int] | None:
    """The row of the latest item that the server gave to us alone; None if there is none.

    Raises:
        PopUnconfirmed: the server did not answer. Nothing is returned; whether the item is ours is
            settled when the server can be reached again.
        RemoteError: the server refused; nothing is in doubt.
    """
    try:
        # What an earlier call could not settle comes first: it is the later item.
        await link.meet_server(session_id)
        in_doubt = await settle_claims(link, session_id, eager=True)
    except RemoteError as error:
        raise _unconfirmed(session_id, error.reason) from error
    if in_doubt:
        raise _unconfirmed(session_id, "an earlier pop is still being settled")
    while True:
        author = link.author()
        claim = await link.journal.write(
            lambda conn, author=author: claims.reserve(conn, author, session_id)  # type: ignore[misc]
        )
        if claim is None:
            return None
        if claim.is_ours:
            return claim.row
        live = (session_id, claim.ref.dot, claim.ref.index)
        link.live_claims.add(live)
        try:
            won = await _won(link, session_id, claim)
            author, now = link.author(), link.now_ms()
            await link.journal.write(
                lambda conn, author=author, now=now, claim=claim, won=won: (  # type: ignore[misc]
                    claims.confirm(conn, author, session_id, claim)
                    if won
                    else claims.note(conn, session_id, claim, Doubt.LOST, now)
                )
            )
        finally:
            link.live_claims.discard(live)
        if won:
            return claim.row


async def _won(link: Link, session_id: str, claim: Claim) -> bool:
    try:
        if claim.is_in_flight:
            # The server may or may not hold it; only once it surely does can it be claimed there.
            await push(link, session_id)
        now = link.now_ms()
        await link.journal.write(
            lambda conn: claims.note(conn, session_id, claim, Doubt.ASKED, now)
        )
        identity = memory_id(session_key(session_id), claim.ref.dot, claim.ref.index)
        return await link.remote.forget(agent_id(session_id), [identity]) == 1
    except RemoteError as error:
        if error.verdict in (Verdict.DENIED, Verdict.REFUSED):
            # The server has answered, and did not do it: nothing is in doubt.
            await link.journal.write(lambda conn: claims.release(conn, session_id, claim))
            raise
        raise _unconfirmed(session_id, error.reason) from error


def _unconfirmed(session_id: str, why: str) -> PopUnconfirmed:
    return PopUnconfirmed(
        f"the server did not say whether the last item of {session_id!r} is ours ({why}); "
        "nothing was popped here, and the claim is settled when the server answers again"
    )


async def settle_claims(link: Link, session_id: str, *, eager: bool = False) -> int:
    """Settle what can be settled of claims without an answer, of this opening or of one that died;
    how many are still in doubt.

    - The memory is there: it is nobody's, and visible as before.
    - It is not there, now and `claim_patience` ago (one node may lag): somebody claimed it,
      perhaps we. It is popped, and returned to nobody.
    - Another device won it, and its pop has not come for `hole_patience`: that device is lost, or
      the server has lost the memory. It is popped as well, so that it does not stand at the end of
      the history for ever. ``eager`` looks whether it has been put back.

    Raises:
        RemoteError: the server cannot be asked yet.
    """
    found = await link.journal.read(lambda conn: claims.open_claims(conn, session_id))
    in_doubt = 0
    for claim in found:
        if _may_be_live(link, session_id, claim):
            continue
        verdict = await _settled(link, session_id, claim, eager=eager)
        author = link.author()
        now = link.now_ms()
        in_doubt += verdict is Doubt.ABSENT
        await link.journal.write(
            lambda conn, claim=claim, verdict=verdict, author=author, now=now: (  # type: ignore[misc]
                _record(conn, session_id, claim, verdict, author, now)
            )
        )
    return in_doubt


async def _settled(
    link: Link, session_id: str, claim: Claim, *, eager: bool
) -> Doubt | Literal["ours", "free"]:
    """What has become of a claim that nobody waits for."""
    age = link.now_ms() - claim.since_ms
    if not claim.is_visible or claim.doubt is Doubt.RESERVED:
        return "free"
    if claim.doubt is Doubt.LOST and not eager and 0 <= age < 1000 * link.options.hole_patience:
        return Doubt.LOST
    identity = memory_id(session_key(session_id), claim.ref.dot, claim.ref.index)
    if await link.remote.fetch(agent_id(session_id), identity) is not None:
        return "free"
    if claim.doubt is Doubt.LOST:
        return Doubt.LOST if 0 <= age < 1000 * link.options.hole_patience else "ours"
    patience = 1000 * link.options.claim_patience
    first = claim.doubt is Doubt.ASKED and patience > 0
    return Doubt.ABSENT if first or 0 <= age < patience else "ours"


def _record(
    conn: sqlite3.Connection,
    session_id: str,
    claim: Claim,
    verdict: Doubt | Literal["ours", "free"],
    author: Author,
    now_ms: int,
) -> None:
    if verdict == "ours":
        claims.confirm(conn, author, session_id, claim)
    elif verdict == "free":
        claims.release(conn, session_id, claim)
    elif verdict is not claim.doubt:
        claims.note(conn, session_id, claim, Doubt(verdict), now_ms)


def _may_be_live(link: Link, session_id: str, claim: Claim) -> bool:
    """Whether somebody may still be waiting for the answer: a call here, or one in another process
    whose request has not run out of time yet."""
    if claim.claimer == link.writer:
        return (session_id, claim.ref.dot, claim.ref.index) in link.live_claims
    age = link.now_ms() - claim.since_ms
    return 0 <= age < 2000 * link.options.request_timeout
