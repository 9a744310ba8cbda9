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
    items_on,
    one_history,
    said,
    until,
)

pytestmark = pytest.mark.promise(number=8)

DAY_MS = 86_400_000
OFTEN = replace(QUICK, audit_interval=0.3, poll_interval=3600.0, poll_interval_idle=3600.0)
DAILY = replace(QUICK, audit_interval=86_400.0)


async def test_what_the_server_lost_comes_back_unasked(device: Devices, server: DevServer) -> None:
    """A device that merely stays open puts back what the server lost, and leaves what was removed
    where it is."""
    a = device.new("a", options=OFTEN)
    for number in range(40):
        await a.add_items([said(str(number))])
    await a.pop_item()
    await a.sync(timeout=PATIENCE)
    before = items_on(server)
    assert server.evict(AGENT, lambda m: m["metadata"]["cs_c"] % 3 == 0)
    await until(lambda: items_on(server) == before)
    assert server.evict(AGENT, lambda _: True) == 40
    await until(lambda: items_on(server) == before)
    assert await one_history(device.new("late"), a) == [str(number) for number in range(39)]


async def test_a_server_that_restarts_empty_is_filled_at_once(
    device: Devices, server: DevServer
) -> None:
    """A listing that ends below what an earlier one showed does not wait for the day's audit."""
    a = device.new("a", options=DAILY)
    for number in range(5):
        await a.add_items([said(str(number))])
    await a.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    with sqlite3.connect(a._engine.path) as conn:  # the last audit is two hours old
        now = a._engine.runtime.wall_ms()
        audit_state.record_audit(conn, SessionRef.of("talk"), now - 7_200_000)
    conn.close()
    server.evict(AGENT, lambda _: True)
    await until(lambda: items_on(server) == ["0", "1", "2", "3", "4"])


async def test_a_sync_that_finds_less_than_before_has_it_put_back(
    device: Devices, server: DevServer
) -> None:
    """What a sync lists is held against what was seen before, as by any other pull."""
    a = device.new("a", options=replace(MANUAL, audit_interval=86_400.0))
    await a.add_items([said("one")])
    await a.sync(timeout=PATIENCE)
    await a.sync(timeout=PATIENCE)
    server.evict(AGENT, lambda _: True)
    await a.sync(timeout=PATIENCE)
    await until(lambda: items_on(server) == ["one"])


async def test_an_audit_of_a_whole_server_is_cheap(device: Devices, server: DevServer) -> None:
    """Where nothing is wrong an audit lists the memories once and asks nothing else: one page of
    100, pages of 500 that share 20 rows, and the empty one that ends the list."""
    a = await device("a")
    for number in range(0, 1000, 100):
        await a.add_items([said(str(n)) for n in range(number, number + 100)])
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
            await cache.session(f"s{number}").add_items([said("x")])
        await cache.flush(timeout=PATIENCE)


async def test_audits_are_spread_and_neither_repeated_nor_starved(
    server: DevServer, journal: Path
) -> None:
    """Over a day each session of a journal is audited once, a few an hour, however often the
    process restarts; in the second day each once again."""
    await _filled(journal, server.url, 48)
    with sqlite3.connect(journal) as conn:
        now = 1_700_000_000_000
        for day in range(3):
            hours = []
            for hour in range(24):
                # A restart: nothing is known but what stands in the file.
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
        # A clock that was moved back must not put the audits off for years.
        earlier = now - 365 * DAY_MS
        name, wait = audit_state.next_due(conn, earlier, DAY_MS, "w", ())
        assert name is not None or wait <= 1.1 * DAY_MS
        assert not [key for key in read_meta(conn) if key.startswith("audit:")]
    conn.close()


async def test_a_session_that_cannot_be_audited_holds_up_no_other(
    server: DevServer, journal: Path
) -> None:
    """Where one session's audits fail, the others are made."""
    await _filled(journal, server.url, 3)
    agents = [agent_id(f"s{number}") for number in range(3)]
    server.faults.status(403, route=f"GET /v1/agents/{agents[0]}/memories")
    for agent in agents[1:]:
        server.evict(agent, lambda _: True)
    async with SessionCache(journal, url=server.url, options=OFTEN) as cache:
        cache.session("s1")
        await cache.session("s1").get_items()
        await until(lambda: all(items_on(server, agent) == ["x"] for agent in agents[1:]))


async def test_a_suspicion_does_not_wait_for_the_rest_between_audits(
    server: DevServer, journal: Path
) -> None:
    """While a cache rests, nobody's turn comes, except that of a session which the server seems to
    have lost something of."""
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
