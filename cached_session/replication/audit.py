"""What the server lost is put back; what it should have forgotten is forgotten.

Any replica may heal any operation: its memories have the same ids and bytes wherever they come
from. What is removed is never put back, because a deletion is only what a recorded operation says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot
from cached_session.history.parts import Part, is_intact
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import audit_state
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.wire import EncodedMemory, Placeholder, Unreadable, decode, placeholder
from cached_session.replication.context import Context
from cached_session.replication.encode import encode
from cached_session.replication.listing import page
from cached_session.replication.pull import MOST_PAGES, pull
from cached_session.replication.push import push
from cached_session.replication.retention_guard import guard_retention
from cached_session.replication.store import store

__all__ = ["AuditReport", "audit"]

HEAL_OPS = 200
"""Operations sent again in one go."""


@dataclass(frozen=True)
class AuditReport:
    """What the server and the journal were found to hold, and what was done about it."""

    listed: int
    """Memories of ours on the server."""
    healed: int
    """Operations that the server had lost in whole or in part, or the placeholders of parked ones,
    sent again."""
    applied: int
    """Operations that the journal had missed."""
    forgotten: int
    """Removed items that the server still held."""


async def audit(context: Context, session_id: str) -> AuditReport:
    """Compare one session on the server with the journal, and make them agree.

    Raises:
        RemoteError: the first failure; running it again goes on.
    """
    session = SessionRef.of(session_id)
    await push(context, session)
    present: dict[Dot, dict[tuple[int, int], int]] = {}
    explained: set[Dot] = set()
    key = session_key(session_id)
    # Pushing waits meanwhile: what is acknowledged after its page was listed would look lost.
    async with context.lock("push", session_id):
        pulled = await pull(
            context,
            session_id,
            whole=True,
            all_holes=True,
            seen=lambda parts, voids: _note(present, explained, parts, voids, key),
        )
        plan = await context.journal.read_aside(
            lambda conn: audit_state.compare(conn, session_id, present, explained)
        )
        # A server that has lost something may have lost the policy, too, before it is put back;
        # and a key that may set it can have come since. Where all is well nothing is asked.
        unguarded = await context.journal.retention.is_unguarded(session_id)
        if plan.resend or unguarded:
            await guard_retention(context, session, anew=True)
        for start in range(0, len(plan.resend), HEAL_OPS):
            seqs = plan.resend[start : start + HEAL_OPS]
            found = await context.journal.outbox.load(seqs)
            parcels = await encode(context, session, found)
            memories = [memory for parcel in parcels for memory in parcel.memories]
            unkept = await store(context, session, memories)
            if unkept:
                raise RemoteError(
                    Verdict.UNREACHABLE,
                    f"the server did not keep {len(unkept)} memories that were sent again",
                    scope=Scope.SESSION,
                )
        if plan.explain:
            # Others would report as absent what its writer has parked.
            parked = await context.journal.outbox.load(plan.explain)
            notes = [EncodedMemory.of(placeholder(outgoing.op, session_id)) for outgoing in parked]
            await store(context, session, notes)
        forget = plan.forget
        if plan.resend:
            # Another device may have removed some of it since the first pull and had it forgotten
            # before the listing: then it was missing for good reason, and must go again.
            await pull(context, session_id)
            again, noted = await _present(context, session_id)
            later = await context.journal.read_aside(
                lambda conn: audit_state.compare(conn, session_id, again, noted)
            )
            forget = later.forget
        if forget:
            await context.journal.write(
                lambda conn: audit_state.queue_forgets(conn, session_id, forget)
            )
    pushed = await push(context, session)
    now = context.runtime.wall_ms()
    await context.journal.write(lambda conn: audit_state.note_audit(conn, session_id, now))
    return AuditReport(
        listed=sum(len(places) for places in present.values()),
        healed=len(plan.resend) + len(plan.explain),
        applied=pulled.new,
        forgotten=pushed.forgotten,
    )


async def _present(
    context: Context, session_id: str
) -> tuple[dict[Dot, dict[tuple[int, int], int]], set[Dot]]:
    """What the server lists: of each operation the parts, and how many their payload has; and the
    operations that have a placeholder."""
    key = session_key(session_id)
    present: dict[Dot, dict[tuple[int, int], int]] = {}
    explained: set[Dot] = set()
    offset, before = 0, ""
    for _ in range(MOST_PAGES):
        memories = await page(context, session_id, offset, context.options.page_size)
        if not memories or (offset and str(memories[0].get("id")) == before):
            return present, explained
        before = str(memories[0].get("id"))
        for memory in memories:
            try:
                part = decode(memory, key)
            except Unreadable:
                continue
            if isinstance(part, Placeholder):
                explained.add(part.dot)
            elif isinstance(part, Part):
                _note(present, explained, [part], (), key)
        offset += len(memories)
    raise RemoteError(
        Verdict.UNREACHABLE,
        f"the server lists more than {MOST_PAGES} pages of {session_id!r}: no history has so many",
        scope=Scope.SESSION,
    )


def _note(
    present: dict[Dot, dict[tuple[int, int], int]],
    explained: set[Dot],
    parts: Sequence[Part],
    voids: Sequence[Dot],
    key: str,
) -> None:
    explained.update(voids)
    for part in parts:
        if is_intact(part, key):
            present.setdefault(part.dot, {})[part.index, part.part] = part.parts
