"""Confirmed pops: what is asked of the server, and what is done about its answer."""

from __future__ import annotations

import pytest

from cached_session.errors import JournalError, PopUnconfirmed
from cached_session.journal.tables.claims import ClaimState
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.ids import memory_id
from cached_session.remote.wire import claim_note
from cached_session.replication import confirmed_pop
from cached_session.replication.confirmed_pop import pop_confirmed, resolve_claims
from cached_session.replication.context import Context
from cached_session.replication.push import push
from tests.unit.replication.devices import items
from tests.unit.replication.fakes import (
    REFUSED,
    SESSION,
    UNREACHABLE,
    WRITER,
    Clock,
    FakeServer,
    add,
    context_of,
    dot,
)

DENIED = RemoteError(Verdict.DENIED, "no", scope=Scope.SESSION, status=403)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every context; a pause between two looks at the notes moves it."""
    made = Clock()

    async def sleep(seconds: float) -> None:
        made.advance(seconds)

    monkeypatch.setattr(confirmed_pop.anyio, "sleep", sleep)
    return made


async def with_items(server: FakeServer, clock: Clock, *texts: str, **options: float) -> Context:
    """Return a context whose items are on the server."""
    context = context_of(server, clock=clock, **options)
    add(context.journal, *texts)
    await push(context, SESSION)
    server.requests.clear()
    return context


def claim_by(server: FakeServer, counter: int, claimer: str) -> None:
    """Leave the note of another device on an item."""
    note = claim_note(SESSION.session_id, dot(counter), 0, claimer, 1)
    server.rows[note["id"]] = note


async def states(context: Context) -> list[ClaimState]:
    return [claim.state for claim in await context.journal.claims.open(SESSION)]


async def in_doubt(context: Context, server: FakeServer, *, is_deleted: bool) -> None:
    """Make a claim whose answer is lost."""
    server.failures["forget"] = [UNREACHABLE]
    with pytest.raises(PopUnconfirmed):
        await pop_confirmed(context, SESSION)
    if is_deleted:
        claimed = (await context.journal.claims.open(SESSION))[0].ref.dot
        del server.rows[memory_id(SESSION.key, claimed, 0)]
    server.requests.clear()


async def test_the_latest_item_is_returned_when_the_server_has_deleted_it(clock: Clock) -> None:
    """The note is left before the deletion and read after it."""
    server = FakeServer()
    context = await with_items(server, clock, "one", "two")
    row = await pop_confirmed(context, SESSION)
    assert row is not None
    assert row[0] == b'"two"'
    assert server.requests == ["store", "forget", "find"]
    assert items(context.journal) == ["one"]
    assert await states(context) == []
    assert context.live_claims == set()


async def test_an_empty_session_has_nothing_to_pop(clock: Clock) -> None:
    """The server is not asked."""
    server = FakeServer()
    context = await with_items(server, clock)
    assert await pop_confirmed(context, SESSION) is None
    assert server.requests == []


async def test_an_item_that_was_never_sent_needs_no_server(clock: Clock) -> None:
    """No other device can have it."""
    server = FakeServer()
    context = await with_items(server, clock)
    add(context.journal, "one")
    row = await pop_confirmed(context, SESSION)
    assert row is not None
    assert server.requests == []


async def test_an_item_under_way_is_sent_first(clock: Clock) -> None:
    """It can be claimed only when the server surely holds it."""
    server = FakeServer()
    context = await with_items(server, clock)
    add(context.journal, "one")
    server.failures["store"] = [UNREACHABLE]
    with pytest.raises(RemoteError):
        await push(context, SESSION)
    assert await pop_confirmed(context, SESSION) is not None
    assert items(context.journal) == []


async def test_an_item_that_is_gone_goes_to_another_device(clock: Clock) -> None:
    """The next one is tried, and the note on the first is withdrawn."""
    server = FakeServer()
    context = await with_items(server, clock, "one", "two")
    del server.rows[memory_id(SESSION.key, dot(2), 0)]
    row = await pop_confirmed(context, SESSION)
    assert row is not None
    assert row[0] == b'"one"'
    assert await states(context) == [ClaimState.LOST]
    assert len([row for row in server.rows.values() if row["metadata"]["cs_op"] == "claim"]) == 1


async def test_a_disputed_item_is_in_doubt(clock: Clock) -> None:
    """Another device has left a note, and may have got it: nobody can tell in time."""
    server = FakeServer()
    context = await with_items(server, clock, "one")
    claim_by(server, 1, "x" * 24)
    with pytest.raises(PopUnconfirmed, match="another device has claimed it"):
        await pop_confirmed(context, SESSION)
    assert await states(context) == [ClaimState.ASKED]
    assert items(context.journal) == ["one"]


@pytest.mark.parametrize("error", [DENIED, REFUSED])
@pytest.mark.parametrize("request_", ["store", "forget"])
async def test_a_refusal_leaves_nothing_in_doubt(
    clock: Clock, error: RemoteError, request_: str
) -> None:
    """The server has answered, and deleted nothing."""
    server = FakeServer()
    context = await with_items(server, clock, "one")
    server.failures[request_] = [error]
    with pytest.raises(RemoteError):
        await pop_confirmed(context, SESSION)
    assert await states(context) == []
    assert items(context.journal) == ["one"]


async def test_a_lost_answer_leaves_the_claim_in_doubt(clock: Clock) -> None:
    """The item is neither returned nor popped, and the next pop waits for the outcome."""
    server = FakeServer()
    context = await with_items(server, clock, "one", "two", claim_patience=10)
    await in_doubt(context, server, is_deleted=True)
    assert items(context.journal) == ["one", "two"]
    with pytest.raises(PopUnconfirmed, match="an earlier pop is not resolved yet"):
        await pop_confirmed(context, SESSION)
    assert await states(context) == [ClaimState.ABSENT]


async def test_a_note_that_the_server_does_not_keep_is_no_claim(clock: Clock) -> None:
    """Nothing is deleted without it."""
    server = FakeServer()
    context = await with_items(server, clock, "one")
    note = claim_note(SESSION.session_id, dot(1), 0, WRITER, 1)
    server.loses = {note["id"]}
    with pytest.raises(PopUnconfirmed, match="did not keep the note"):
        await pop_confirmed(context, SESSION)
    assert server.requests == ["store"]


async def test_a_pop_that_cannot_be_stored_is_unconfirmed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim stays, and is resolved later."""
    server = FakeServer()
    context = await with_items(server, clock, "one")

    async def confirm(*_: object) -> None:
        raise JournalError("disk full")

    monkeypatch.setattr(context.journal.claims, "confirm", confirm)
    with pytest.raises(PopUnconfirmed, match="disk full"):
        await pop_confirmed(context, SESSION)
    assert await states(context) == [ClaimState.ASKED]


async def test_a_claim_whose_item_is_there_is_released(clock: Clock) -> None:
    """The request was lost, so nobody has the item, and our note is withdrawn."""
    server = FakeServer()
    context = await with_items(server, clock, "one")
    await in_doubt(context, server, is_deleted=False)
    assert await resolve_claims(context, SESSION) == 0
    assert server.requests == ["fetch", "forget"]
    assert await states(context) == []
    assert items(context.journal) == ["one"]


async def test_a_claim_whose_item_is_gone_is_confirmed_after_a_while(clock: Clock) -> None:
    """Somebody got it, perhaps we: it is popped, and returned to nobody."""
    server = FakeServer()
    context = await with_items(server, clock, "one", claim_patience=10)
    await in_doubt(context, server, is_deleted=True)
    for _ in range(2):
        assert await resolve_claims(context, SESSION) == 1
    clock.advance(10)
    assert await resolve_claims(context, SESSION) == 0
    assert await states(context) == []
    assert items(context.journal) == []


async def test_a_lost_item_is_sent_again_after_a_while(clock: Clock) -> None:
    """No pop of another device has come, so the server has lost it."""
    server = FakeServer()
    context = await with_items(server, clock, "one", "two", hole_patience=60)
    del server.rows[memory_id(SESSION.key, dot(2), 0)]
    await pop_confirmed(context, SESSION)
    assert await resolve_claims(context, SESSION) == 0
    assert await states(context) == [ClaimState.LOST]
    clock.advance(60)
    assert await resolve_claims(context, SESSION) == 0
    assert await states(context) == []
    assert await context.journal.outbox.has_unsent(SESSION)
    assert items(context.journal) == ["two"]


async def test_a_live_claim_is_left_alone(clock: Clock) -> None:
    """A call of this opening waits for its answer; one of another opening may."""
    server = FakeServer()
    context = await with_items(server, clock, "one", "two", request_timeout=30)
    claim = await context.journal.claims.reserve(context.author(), SESSION, context.now_ms())
    assert claim is not None
    context.live_claims.add((SESSION.session_id, claim.ref.dot, claim.ref.index))
    await resolve_claims(context, SESSION)
    assert len(await states(context)) == 1
    context.live_claims.clear()
    context.writer = "other"
    await resolve_claims(context, SESSION)
    assert len(await states(context)) == 1
    clock.advance(60)
    await resolve_claims(context, SESSION)
    assert await states(context) == []
