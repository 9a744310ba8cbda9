"""`diagnose` over real journals and a real server: each finding, and that it changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, Finding, diagnose
from cached_session.devserver import DevServer, Key

ITEM: Any = {"role": "user", "content": "hello"}


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer(api_key="root-key") as running:
        yield running


@pytest.fixture
async def journal(tmp_path: Path) -> Path:
    async with CachedSession("talk", journal=tmp_path / "agent.db") as session:
        await session.add_items([ITEM])
    return tmp_path / "agent.db"


async def look(journal: Path, **where: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in await diagnose(journal, **where)}


async def test_a_healthy_device_has_nothing_to_do(journal: Path, server: DevServer) -> None:
    """Synced, private, on time: every line is ok, and none gives advice."""
    where = {"url": server.url, "api_key": "root-key"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(10)
    found = await look(journal, **where)
    assert {name: one for name, one in found.items() if one.level != "ok"} == {}
    assert set(found) >= {"journal", "disk", "access", "replicator", "server", "key", "policy"}
    assert not any(finding.advice for finding in found.values())


async def test_looking_sends_nothing(journal: Path, server: DevServer) -> None:
    """What is pending stays pending: a look is no sync."""
    found = await look(journal, url=server.url, api_key="root-key")
    assert "1 operations wait" in found["outbox"].message
    assert server.requests.count("POST *") == server.requests.count("PUT *") == 0


async def test_a_journal_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    """The path is in the message, and still nothing stands there."""
    found = await look(tmp_path / "none.db")
    assert found["journal"].level == "fail"
    assert list(tmp_path.iterdir()) == []


async def test_a_damaged_journal_is_told_before_anything_opens_it(journal: Path) -> None:
    """Opening could set it aside: looking must leave that to its owner."""
    with closing(sqlite3.connect(journal)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(journal.read_bytes())
    data[4096 : 4096 * 3] = b"\x55" * 4096 * 2
    journal.write_bytes(data)
    found = await look(journal)
    assert found["journal"].level == "fail"
    assert found["journal"].advice
    assert journal.read_bytes() == bytes(data)


async def test_a_journal_that_others_may_read_is_told(journal: Path) -> None:
    """With the command that mends it."""
    journal.chmod(0o644)
    found = await look(journal)
    assert found["access"].level == "warn"
    assert "chmod 600 agent.db" in found["access"].advice


async def test_a_server_that_is_away_is_told(journal: Path) -> None:
    """By its address; sessions go on."""
    found = await look(journal, url="http://127.0.0.1:9", timeout=2.0)
    assert found["server"].level == "fail"
    assert "127.0.0.1:9" in found["server"].message


async def test_a_key_is_judged_and_never_shown(journal: Path, server: DevServer) -> None:
    """One that is refused, and one that may only read."""
    server.state.keys.add(Key("read-key", scope="read", name="reader"))
    refused = await look(journal, url=server.url, api_key="wrong-key")
    assert [one.level for one in refused.values() if one.check in ("server", "key")] == ["fail"]
    reader = await look(journal, url=server.url, api_key="read-key")
    assert reader["key"].level == "fail"
    assert "write" in reader["key"].advice
    shown = str([*refused.values(), *reader.values()])
    assert "wrong-key" not in shown
    assert "read-key" not in shown


async def test_a_session_that_the_server_has_never_seen_is_no_trouble(
    journal: Path, server: DevServer
) -> None:
    """Its namespace is not there yet: the server's defaults say nothing about it."""
    found = await look(journal, url=server.url, api_key="root-key")
    assert found["policy"].level == "ok"


async def test_a_namespace_that_may_forget_is_told(journal: Path, server: DevServer) -> None:
    """Its policy was changed behind our back."""
    where = {"url": server.url, "api_key": "root-key"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(10)
    (policy,) = server.state.policies.values()
    policy["episodic_ttl_seconds"] = 60
    found = await look(journal, **where)
    assert found["policy"].level == "warn"
    assert "episodic_ttl_seconds" in found["policy"].message
