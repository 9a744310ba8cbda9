"""Auditing one session."""

from __future__ import annotations

import pytest

from cached_session.history.ops import ItemRef, Kind, encode_pop
from cached_session.journal.tables import writes
from cached_session.remote.errors import RemoteError
from cached_session.remote.ids import memory_id, placeholder_id
from cached_session.replication import audit as audit_module
from cached_session.replication.audit import AuditReport, audit
from cached_session.replication.context import Context
from cached_session.replication.push import push
from tests.unit.replication.devices import items, operation, put
from tests.unit.replication.fakes import SESSION, WRITER, FakeServer, add, context_of, dot


async def synced(server: FakeServer, *texts: str) -> Context:
    """Return a context whose operations the server has acknowledged."""
    context = context_of(server)
    add(context.journal, *texts)
    await push(context, SESSION)
    server.requests.clear()
    return context


def identity(counter: int) -> str:
    return memory_id(SESSION.key, dot(counter), 0)


async def test_an_audit_of_a_whole_session_changes_nothing() -> None:
    """It lists the session once, and does not ask for the policy."""
    server = FakeServer()
    context = await synced(server, "one", "two")
    assert await audit(context, SESSION) == AuditReport(2, 0, 0, 0)
    assert set(server.requests) == {"list"}


async def test_a_lost_operation_is_sent_again() -> None:
    """Under the same id, after the retention policy, which may be lost as well."""
    server = FakeServer()
    context = await synced(server, "one", "two")
    lost = server.rows.pop(identity(1))
    assert await audit(context, SESSION) == AuditReport(1, 1, 0, 0)
    assert server.rows[identity(1)] == lost
    assert "guard" in server.requests


async def test_many_operations_are_sent_again_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long history is not loaded at one time."""
    monkeypatch.setattr(audit_module, "RESEND_OPS", 2)
    server = FakeServer()
    context = await synced(server, *"abcde")
    server.rows.clear()
    assert (await audit(context, SESSION)).healed == 5
    assert len(server.rows) == 5
    assert server.requests.count("store") == 3


async def test_a_server_that_keeps_nothing_is_reported() -> None:
    """Sending the same again and again would not help."""
    server = FakeServer()
    context = await synced(server, "one")
    server.rows.clear()
    server.loses = {identity(1)}
    with pytest.raises(RemoteError, match="did not keep 1 memories"):
        await audit(context, SESSION)


async def test_a_missing_operation_of_another_device_is_applied() -> None:
    """An audit pulls as well."""
    server = FakeServer()
    context = await synced(server, "one")
    put(server, operation(1))
    assert (await audit(context, SESSION)).applied == 1
    assert items(context.journal) == ["t1", "one"]


async def test_a_removed_item_that_is_there_is_deleted() -> None:
    """An audit of another device may have sent it again."""
    server = FakeServer()
    context = await synced(server, "one", "two")
    stored = server.rows[identity(2)]
    context.journal.write_blocking(
        writes.pop, writes.Author(WRITER, 2000, 1000), SESSION.session_id
    )
    await push(context, SESSION)
    assert identity(2) not in server.rows
    server.rows[identity(2)] = stored
    assert (await audit(context, SESSION)).forgotten == 1
    assert identity(2) not in server.rows


async def test_the_placeholder_of_a_parked_operation_is_restored() -> None:
    """Other devices would report a gap."""
    server = FakeServer()
    context = context_of(server)
    server.refuses = {'\\"bad\\"'}
    add(context.journal, "bad")
    await push(context, SESSION)
    del server.rows[placeholder_id(SESSION.key, dot(1))]
    assert (await audit(context, SESSION)).healed == 1
    assert placeholder_id(SESSION.key, dot(1)) in server.rows


async def test_an_item_that_is_removed_during_an_audit_does_not_stay() -> None:
    """Another device had it popped and deleted before the audit listed it as lost."""
    server = FakeServer()
    context = await synced(server, "one", "two")
    del server.rows[identity(2)]
    removal = operation(1, encode_pop(ItemRef(dot(2), 0, 1)), kind=Kind.POP)
    store = server.store

    async def store_late(agent: str, memories: object) -> set[str]:
        put(server, removal)
        return await store(agent, memories)  # type: ignore[arg-type]

    server.store = store_late  # type: ignore[method-assign]
    report = await audit(context, SESSION)
    assert (report.healed, report.forgotten) == (1, 1)
    assert identity(2) not in server.rows
    assert items(context.journal) == ["one"]


async def test_an_audit_is_recorded() -> None:
    """The next one is due an interval later."""
    server = FakeServer()
    context = await synced(server, "one")
    await audit(context, SESSION)
    due = await context.journal.audits.next_due(
        now_ms=context.runtime.wall_ms(),
        interval_ms=1000,
        writer=WRITER,
        excluded=(),
        suspects_only=False,
    )
    assert due.session_id is None
    assert due.wait_ms >= 900
