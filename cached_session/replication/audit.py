"""Audit a session: send lost operations again, and delete removed items from the server.

Any replica can restore any operation: the operation's memories have identical ids and bytes on
every replica.
A removed item is never restored, because only a recorded operation removes an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cached_session.history.session_name import quoted_name
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables.audit_plan import AuditPlan, ServerListing
from cached_session.journal.tables.outbox import Forget
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.wire import EncodedMemory, placeholder
from cached_session.replication.context import Context
from cached_session.replication.encode_memories import encode
from cached_session.replication.ingest import read_page
from cached_session.replication.listing import fetch_page
from cached_session.replication.listing_scan import MAX_PAGES
from cached_session.replication.pull import pull
from cached_session.replication.push import push
from cached_session.replication.retention_guard import guard_retention
from cached_session.replication.store import store

__all__ = ["AuditReport", "audit"]

RESEND_OPS = 200
"""The number of operations that are loaded and sent again together."""


@dataclass(frozen=True)
class AuditReport:
    """The differences that an audit has found between the server and the journal, and removed."""

    listed: int
    """The number of undamaged memories that the server listed for the session, without
    placeholders."""
    healed: int
    """The number of operations sent again because the server had lost all or a part of them, plus
    the number of placeholders of parked operations sent again because the server had lost them."""
    applied: int
    """The number of operations on the server that the journal did not have."""
    forgotten: int
    """The number of removed items whose memories the server still held and has deleted."""


async def audit(context: Context, session: SessionRef) -> AuditReport:
    """Compare one session on the server with the journal, and make them agree.

    Raises:
        RemoteError: the first failure. The next audit repeats the comparison.
    """
    await push(context, session)
    listing = ServerListing(session.key)
    # Hold the push lock: an operation that is acknowledged after its page was listed would look
    # lost.
    async with context.lock("push", session.name):
        pulled = await pull(context, session, whole=True, all_gaps=True, on_page=listing.add)
        plan = await context.journal.audits.plan(session, listing)
        await _guard(context, session, plan)
        await _resend(context, session, plan.resend)
        await _explain(context, session, plan.explain)
        forgets = await _forgets(context, session, plan)
        if forgets:
            await context.journal.audits.queue_forgets(session, forgets)
    pushed = await push(context, session)
    await context.journal.audits.record(session, context.runtime.wall_ms())
    return AuditReport(
        listed=len(listing),
        healed=len(plan.resend) + len(plan.explain),
        applied=pulled.new,
        forgotten=pushed.forgotten,
    )


async def _guard(context: Context, session: SessionRef, plan: AuditPlan) -> None:
    """Set the retention policy again if the server has lost something, or has refused it before.

    A server that has lost memories may also have lost the policy. After a refusal, the server may
    allow the policy now, for example because the user has changed the key. If the server has
    neither lost nor refused anything, send no request.
    """
    was_refused = await context.journal.retention.is_unguarded(session)
    if plan.resend or was_refused:
        await guard_retention(context, session, anew=True)


async def _resend(context: Context, session: SessionRef, seqs: Sequence[int]) -> None:
    """Store operations on the server again.

    Raises:
        RemoteError: a request has failed, or the server did not keep the memories.
    """
    for start in range(0, len(seqs), RESEND_OPS):
        found = await context.journal.outbox.load(seqs[start : start + RESEND_OPS])
        encoded = await encode(context, session, found)
        memories = [memory for operation in encoded for memory in operation.memories]
        unkept = await store(context, session, memories)
        if unkept:
            raise RemoteError(
                Verdict.UNREACHABLE,
                f"the server did not keep {len(unkept)} memories that were sent again",
                scope=Scope.SESSION,
            )


async def _explain(context: Context, session: SessionRef, seqs: Sequence[int]) -> None:
    """Store the placeholders of parked operations: without them, other devices report gaps."""
    if seqs:
        parked = await context.journal.outbox.load(seqs)
        notes = [EncodedMemory.of(placeholder(found.op, session.name)) for found in parked]
        await store(context, session, notes)


async def _forgets(context: Context, session: SessionRef, plan: AuditPlan) -> list[Forget]:
    """Return the memories that the server should delete.

    Another device may have popped an item since the first pull, and have deleted its memory before
    the listing. In that case, the audit has restored a removed item by mistake. So if the audit has
    restored anything, pull and compare once more.
    """
    if not plan.resend:
        return plan.forget
    await pull(context, session)
    listing = await _list_all(context, session)
    return (await context.journal.audits.plan(session, listing)).forget


async def _list_all(context: Context, session: SessionRef) -> ServerListing:
    """Return the listing of the server, without applying its memories to the journal.

    Raises:
        RemoteError: a request has failed, or the listing has more than `MAX_PAGES` pages.
    """
    listing = ServerListing(session.key)
    offset, before = 0, ""
    for _ in range(MAX_PAGES):
        memories = await fetch_page(context, session, offset, context.options.page_size)
        if not memories or (offset and str(memories[0].get("id")) == before):
            return listing
        before = str(memories[0].get("id"))
        page = await read_page(memories, session.key)
        listing.add(page.parts, page.explained)
        offset += len(memories)
    raise RemoteError(
        Verdict.UNREACHABLE,
        f"the server lists more than {MAX_PAGES} pages for {quoted_name(session.name)}",
        scope=Scope.SESSION,
    )
