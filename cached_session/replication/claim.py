"""Confirmed pop: an item is ours only if the server says that we, and nobody else, deleted it.

Intent in the journal, ``forget`` by id, ``deleted_count == 1`` wins, tombstone, return. Exactly
one device gets an item as far as the server's ``forget`` is atomic, which Dakera does not document.
"""

from __future__ import annotations

from cached_session.errors import PopUnconfirmed
from cached_session.history.ids import session_key
from cached_session.history.ops import Dot
from cached_session.journal import claims
from cached_session.journal.claims import Claim
from cached_session.remote.naming import agent_id, memory_id
from cached_session.remote.verdicts import RemoteError, Verdict
from cached_session.replication.link import Link
from cached_session.replication.push import push

__all__ = ["pop_confirmed", "settle_claims"]


async def pop_confirmed(link: Link, session_id: str) -> tuple[str, int] | None:
    """The row of the latest item that the server gave to us alone; None if there is none.

    Raises:
        PopUnconfirmed: the server did not answer. Nothing is returned; whether the item is ours is
            settled when the server can be reached again.
        RemoteError: the server refused; nothing is in doubt.
    """
    lost: frozenset[tuple[Dot, int]] = frozenset()
    try:
        # What an earlier call could not settle comes first: it is the later item.
        await settle_claims(link, session_id)
    except RemoteError as error:
        raise _unconfirmed(session_id, error) from error
    while True:
        author = link.author()
        claim = await link.journal.write(
            lambda conn, author=author, lost=lost: claims.reserve(  # type: ignore[misc]
                conn, author, session_id, lost
            )
        )
        if claim is None:
            return None
        live = (session_id, claim.ref.dot, claim.ref.index)
        link.live_claims.add(live)
        try:
            won = await _won(link, session_id, claim)
            author = link.author()
            await link.journal.write(
                lambda conn, author=author, claim=claim, won=won: (  # type: ignore[misc]
                    claims.confirm(conn, author, session_id, claim)
                    if won
                    else claims.release(conn, session_id, claim)
                )
            )
        finally:
            link.live_claims.discard(live)
        if won:
            return claim.row
        lost |= {(claim.ref.dot, claim.ref.index)}


async def _won(link: Link, session_id: str, claim: Claim) -> bool:
    if claim.is_ours_already:
        return True
    try:
        if claim.is_in_flight:
            # The server may or may not hold it; only once it surely does can it be claimed there.
            await push(link, session_id)
        await link.journal.write(lambda conn: claims.asked(conn, session_id, claim))
        identity = memory_id(session_key(session_id), claim.ref.dot, claim.ref.index)
        return await link.remote.forget(agent_id(session_id), [identity]) == 1
    except RemoteError as error:
        if error.verdict in (Verdict.DENIED, Verdict.REFUSED):
            # The server has answered, and did not do it: nothing is in doubt.
            await link.journal.write(lambda conn: claims.release(conn, session_id, claim))
            raise
        raise _unconfirmed(session_id, error) from error


def _unconfirmed(session_id: str, error: RemoteError) -> PopUnconfirmed:
    return PopUnconfirmed(
        f"the server did not say whether the last item of {session_id!r} is ours "
        f"({error.reason}); nothing was popped here, and the claim is settled when the server "
        "answers again"
    )


async def settle_claims(link: Link, session_id: str) -> int:
    """Settle claims that got no answer, of this opening or of one that died; how many there were.

    Where the memory is gone, somebody claimed it, perhaps we: the item is popped, and returned to
    nobody. Where it is still there, it is nobody's and visible as before.

    Raises:
        RemoteError: the server cannot be asked yet.
    """
    found = await link.journal.read(lambda conn: claims.open_claims(conn, session_id))
    found = [claim for claim in found if not _may_be_live(link, session_id, claim)]
    for claim in found:
        identity = memory_id(session_key(session_id), claim.ref.dot, claim.ref.index)
        gone = claim.asked and await link.remote.fetch(agent_id(session_id), identity) is None
        author = link.author()
        if gone:
            await link.journal.write(
                lambda conn, claim=claim, author=author: claims.confirm(  # type: ignore[misc]
                    conn, author, session_id, claim
                )
            )
        else:
            await link.journal.write(
                lambda conn, claim=claim: claims.release(conn, session_id, claim)  # type: ignore[misc]
            )
    return len(found)


def _may_be_live(link: Link, session_id: str, claim: Claim) -> bool:
    """Whether somebody may still be waiting for the answer: a call here, or one in another process
    whose request has not run out of time yet."""
    if claim.claimer == link.writer:
        return (session_id, claim.ref.dot, claim.ref.index) in link.live_claims
    age = link.now_ms() - claim.since_ms
    return 0 <= age < 2000 * link.options.request_timeout
