from __future__ import annotations

import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from cached_session import SessionCache
from cached_session.devserver import DevServer
from cached_session.history.ids import agent_id
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import audit_state
from cached_session.journal.tables.meta import read_meta
from tests.replication.devices import (
    AGENT,
    BATCH,
    LISTING,
    MANUAL,
    PATIENCE,
    QUICK,
    Devices,
    assert_one_history,
    items_on_server,
    text_message,
    wait_until,
)

pytestmark = pytest.mark.promise(number=8)

DAY_MS = 86_400_000
OFTEN = replace(QUICK, audit_interval=0.3, poll_interval=3600.0, poll_interval_idle=3600.0)
DAILY = replace(QUICK, audit_interval=86_400.0)


async def test_a_background_audit_restores_what_the_server_lost(
    device: Devices, server: DevServer
) -> None:
    """An open device stores again what the server lost, without any call, and does not store what
    was removed."""
    a = device.new("a", options=OFTEN)
    for number in range(40):
        await a.add_items([text_message(str(number))])
    await a.pop_item()
    await a.sync(timeout=PATIENCE)
    before = items_on_server(server)
    assert server.evict(AGENT, lambda m: m["metadata"]["cs_c"] % 3 == 0)
    await wait_until(lambda: items_on_server(server) == before)
    assert server.evict(AGENT, lambda _: True) == 40
    await wait_until(lambda: items_on_server(server) == before)
    assert await assert_one_history(device.new("late"), a) == [str(number) for number in range(39)]


async def test_a_server_that_restarts_empty_is_filled_immediately(
    device: Devices, server: DevServer
) -> None:
    """A listing that is shorter than an earlier one starts an audit before the daily one is due."""
    a = device.new("a", options=DAILY)
    for number in range(5):
        await a.add_items([text_message(str(number))])
    await a.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    with sqlite3.connect(a._engine.path) as conn:  # the last audit is two hours old
        now = a._engine.runtime.wall_ms()
        audit_state.record_audit(conn, SessionRef.of("talk"), now - 7_200_000)
    conn.close()
    server.evict(AGENT, lambda _: True)
    await wait_until(lambda: items_on_server(server) == ["0", "1", "2", "3", "4"])


async def test_a_sync_that_lists_fewer_memories_starts_an_audit(
    device: Devices, server: DevServer
) -> None:
    """A sync compares its listing with earlier ones, as every pull does."""
    a = device.new("a", options=replace(MANUAL, audit_interval=86_400.0))
    await a.add_items([text_message("one")])
    await a.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    server.evict(AGENT, lambda _: True)
    await a.sync(timeout=PATIENCE)
    await wait_until(lambda: items_on_server(server) == ["one"])


async def test_an_audit_of_a_complete_server_only_lists(device: Devices, server: DevServer) -> None:
    """An audit of a complete server lists the memories once and requests nothing else: one page of
    100, pages of 500 that share 20 rows, and the empty page that ends the list."""
    a = await device("a")
    for number in range(0, 1000, 100):
        await a.add_items([text_message(str(n)) for n in range(number, number + 100)])
    await a.sync(timeout=PATIENCE)
    server.requests.clear()
    assert (await a.audit()).healed == 0
    pages = 1 + math.ceil((1000 - 80) / 480) + 1
    assert server.requests.count() == server.requests.count(LISTING) <= pages
    assert server.requests.count(BATCH) == 0


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "j.db"


async def _filled(journal: Path, url: str, sessions: int) -> None:
    async with SessionCache(journal, url=url, options=QUICK) as cache:
        for number in range(sessions):
            await cache.session(f"s{number}").add_items([text_message("x")])
        await cache.flush(timeout=PATIENCE)


async def test_audits_are_spread_over_the_day_and_not_repeated(
    server: DevServer, journal: Path
) -> None:
    """In one day each session of a journal is audited once, a few an hour, however often the
    process restarts, and in the second day each once again."""
    await _filled(journal, server.url, 48)
    with sqlite3.connect(journal) as conn:
        now = 1_700_000_000_000
        for day in range(3):
            hours = []
            for hour in range(24):
                # A restart: only what is stored in the file is known.
                done = 0
                for _ in range(60):
                    now += 60_000
                    name, _ = audit_state.next_due(conn, now, DAY_MS, f"w{hour}", ())
                    if name is not None:
                        audit_state.record_audit(conn, SessionRef.of(name), now)
                        done += 1
                hours.append(done)
            assert 40 <= sum(hours) <= 56, (day, hours)
            assert max(hours) <= 12, (day, hours)
        # A clock that was moved back must not delay the audits for years.
        earlier = now - 365 * DAY_MS
        name, wait = audit_state.next_due(conn, earlier, DAY_MS, "w", ())
        assert name is not None or wait <= 1.1 * DAY_MS
        assert not [key for key in read_meta(conn) if key.startswith("audit:")]
    conn.close()


async def test_a_session_whose_audit_fails_delays_no_other(
    server: DevServer, journal: Path
) -> None:
    """When the audits of one session fail, the others are made."""
    await _filled(journal, server.url, 3)
    agents = [agent_id(f"s{number}") for number in range(3)]
    server.faults.status(403, route=f"GET /v1/agents/{agents[0]}/memories")
    for agent in agents[1:]:
        server.evict(agent, lambda _: True)
    async with SessionCache(journal, url=server.url, options=OFTEN) as cache:
        cache.session("s1")
        await cache.session("s1").get_items()
        await wait_until(
            lambda: all(items_on_server(server, agent) == ["x"] for agent in agents[1:])
        )


async def test_a_suspected_loss_is_audited_while_the_cache_is_idle(
    server: DevServer, journal: Path
) -> None:
    """While a cache is idle no audit is due, except of a session of which the server seems to have
    lost memories."""
    await _filled(journal, server.url, 3)
    with sqlite3.connect(journal) as conn:
        later = 4_000_000_000_000
        for number in range(3):
            audit_state.record_audit(conn, SessionRef.of(f"s{number}"), later - 3 * DAY_MS)
        assert audit_state.next_due(conn, later, DAY_MS, "w", ())[0] is not None
        assert audit_state.next_due(conn, later, DAY_MS, "w", (), suspects_only=True)[0] is None
        audit_state.suspect(conn, SessionRef.of("s1"), later, 1000)
        assert audit_state.next_due(conn, later, DAY_MS, "w", (), suspects_only=True) == ("s1", 0)
    conn.close()
