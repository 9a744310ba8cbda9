"""When audits are made."""

from __future__ import annotations

import anyio
import pytest

from cached_session import SyncOptions
from cached_session.journal.tables.audit_state import DueAudit
from cached_session.remote.errors import RemoteError
from cached_session.replication.audit_loop import AUDITS_PER_INTERVAL, Auditor, AuditPace
from cached_session.replication.context import Context
from cached_session.replication.leader import Leader
from cached_session.replication.push import push
from tests.unit.replication.fakes import (
    SESSION,
    UNREACHABLE,
    Clock,
    FakeServer,
    add,
    context_of,
)

TALK = SESSION.session_id
DAY = 86_400.0


def pace(**options: float) -> AuditPace:
    return AuditPace(SyncOptions(audit_interval=DAY, **options))  # type: ignore[arg-type]


def test_a_failed_audit_is_put_off_for_the_grace() -> None:
    """Other sessions are audited meanwhile."""
    made = pace()
    made.failed("a", 100.0)
    assert made.grace == 3600.0
    assert made.excluded(100.0 + 3599.0) == {"a"}
    assert made.excluded(100.0 + 3600.0) == frozenset()


def test_a_failed_audit_is_put_off_for_the_longest_pause_at_least() -> None:
    """A short interval does not make a failing server busier."""
    made = AuditPace(SyncOptions(audit_interval=1.0, backoff_max=60.0))
    made.failed("a", 0.0)
    assert made.excluded(59.0) == {"a"}


def test_a_rest_follows_an_audit() -> None:
    """The requests of an idle cache do not grow with its sessions."""
    made = pace()
    assert not made.suspects_only(0.0)
    made.succeeded(0.0)
    rest = DAY / AUDITS_PER_INTERVAL
    assert made.suspects_only(rest - 1)
    assert not made.suspects_only(rest)


@pytest.mark.parametrize(("wait_ms", "seconds"), [(0, 0.5), (7000, 7.0), (10**9, 60.0)])
def test_the_journal_is_asked_again_in_time(wait_ms: int, seconds: float) -> None:
    """Another process may have made an audit, or suspect a session."""
    assert pace(watch_interval=0.5).wait(DueAudit(None, wait_ms)) == seconds


async def lossy(server: FakeServer, clock: Clock | None = None, **options: float) -> Context:
    """Return a context whose operation the server has acknowledged and lost."""
    context = context_of(server, clock=clock, **options)
    add(context.journal, "one")
    await push(context, SESSION)
    server.rows.clear()
    return context


def leading(context: Context, audited: list[str]) -> Auditor:
    leader = Leader(None)
    leader.is_leader = True
    return Auditor(context, leader, audited.append)


async def test_a_suspected_session_is_audited_soon(caplog: pytest.LogCaptureFixture) -> None:
    """By the loop, without a wait for its interval."""
    server, audited = FakeServer(), list[str]()
    clock = Clock()
    clock.wall = 1_700_000_000_000  # a suspected session is due since 1970
    context = await lossy(server, clock)
    done = anyio.Event()
    auditor = leading(context, audited)
    auditor._on_audited = lambda name: (audited.append(name), done.set())  # type: ignore[assignment]
    async with anyio.create_task_group() as group:
        group.start_soon(auditor.run)
        await auditor.suspect(TALK)
        with anyio.fail_after(10):
            await done.wait()
        group.cancel_scope.cancel()
    assert audited == [TALK]
    assert len(server.rows) == 1
    assert "had lost 1 operation" in caplog.text


async def test_no_session_is_suspected_without_audits() -> None:
    """An interval of 0 turns them off."""
    context = await lossy(FakeServer(), audit_interval=0)
    await leading(context, []).suspect(TALK)
    due = await context.journal.audits.next_due(
        now_ms=context.runtime.wall_ms(),
        interval_ms=1000,
        writer="w",
        excluded=(),
        suspects_only=True,
    )
    assert due.session_id is None


async def test_a_failed_audit_pauses_its_session() -> None:
    """The loop puts it off, and the caller of an audit gets the error."""
    server, audited = FakeServer(), list[str]()
    context = await lossy(server)
    server.failures["list"] = [UNREACHABLE, UNREACHABLE]
    auditor = leading(context, audited)
    with pytest.raises(RemoteError):
        await auditor.audit_now(TALK)
    assert await context.pauses.wait_ms(TALK) > 0
    requests = len(server.requests)
    await auditor._audit_due(TALK)
    assert len(server.requests) == requests
    assert auditor._pace.excluded(context.runtime.monotonic()) == {TALK}
    assert audited == []
