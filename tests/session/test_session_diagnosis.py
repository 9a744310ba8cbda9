"""`diagnose` over real journals and a real server: each finding, and that it changes nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session import (
    CachedSession,
    Finding,
    JournalError,
    SyncOptions,
    SyncTimeout,
    Unauthorized,
    diagnose,
)
from cached_session.devserver import DevServer, Key
from cached_session.diagnosis import lock_holders
from cached_session.history.ids import agent_id
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import audit_state
from cached_session.remote.dakera import DakeraRemote
from cached_session.remote.ids import namespace
from cached_session.remote.probe import ServerFacts
from cached_session.testing import ManualClock
from tests.session.session_support import failure_recorded

ITEM: Any = {"role": "user", "content": "hello"}


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer(api_key="key-root") as running:
        yield running


@pytest.fixture
async def journal(tmp_path: Path) -> Path:
    async with CachedSession("talk", journal=tmp_path / "agent.db") as session:
        await session.add_items([ITEM])
    return tmp_path / "agent.db"


async def findings_of(journal: Path, **where: Any) -> dict[str, Finding]:
    """Return the findings by subject, and check that each problem comes with advice."""
    found = await diagnose(journal, **{"timeout": 60.0, **where})
    assert [one for one in found if one.level != "ok" and not one.advice] == []
    assert "key-" not in str(found)
    return {finding.check: finding for finding in found}


async def test_a_healthy_device_needs_no_action(journal: Path, server: DevServer) -> None:
    """If everything is synced, private and on time, every finding is ok and none has advice."""
    where = {"url": server.url, "api_key": "key-root"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(60)
    found = await findings_of(journal, **where)
    assert {name: one for name, one in found.items() if one.level != "ok"} == {}
    assert set(found) >= {"journal", "disk", "access", "replicator", "server", "key", "policy"}
    assert not any(finding.advice for finding in found.values())


async def test_a_diagnosis_sends_nothing(journal: Path, server: DevServer) -> None:
    """Pending operations stay pending."""
    found = await findings_of(journal, url=server.url, api_key="key-root")
    assert "1 operation" in found["outbox"].message
    assert server.requests.count("POST *") == server.requests.count("PUT *") == 0


async def test_a_missing_journal_is_reported_and_not_made(tmp_path: Path) -> None:
    """The message names the path, and no file is made."""
    found = await findings_of(tmp_path / "none.db")
    assert found["journal"].level == "fail"
    assert list(tmp_path.iterdir()) == []


async def test_a_damaged_journal_is_reported_without_opening_it(journal: Path) -> None:
    """Opening the journal could set it aside, which a diagnosis must not do."""
    with closing(sqlite3.connect(journal)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(journal.read_bytes())
    data[4096 : 4096 * 3] = b"\x55" * 4096 * 2
    journal.write_bytes(data)
    found = await findings_of(journal)
    assert found["journal"].level == "fail"
    assert found["journal"].advice
    assert journal.read_bytes() == bytes(data)


async def test_a_journal_that_others_can_read_is_reported(journal: Path) -> None:
    """The advice is the command that makes it private."""
    journal.chmod(0o644)
    found = await findings_of(journal)
    assert found["access"].level == "warn"
    assert found["access"].advice.startswith(f"chmod 600 {journal}")


async def test_an_unreachable_server_is_reported(journal: Path) -> None:
    """The finding names the address and says that sessions keep working."""
    found = await findings_of(journal, url="http://127.0.0.1:9", timeout=2.0)
    assert found["server"].level == "fail"
    assert "127.0.0.1:9" in found["server"].message


async def test_a_key_is_checked_and_never_shown(journal: Path, server: DevServer) -> None:
    """A refused key and a read-only one are reported; `findings_of` checks that none is shown."""
    server.state.keys.add(Key("key-read", scope="read", name="reader"))
    refused = await findings_of(journal, url=server.url, api_key="key-wrong")
    assert [one.level for one in refused.values() if one.check in ("server", "key")] == ["fail"]
    reader = await findings_of(journal, url=server.url, api_key="key-read")
    assert reader["key"].level == "fail"
    assert "write" in reader["key"].advice


async def test_a_session_unknown_to_the_server_is_not_a_problem(
    journal: Path, server: DevServer
) -> None:
    """Its namespace does not exist yet, so the server's default policy does not apply to it."""
    found = await findings_of(journal, url=server.url, api_key="key-root")
    assert found["policy"].level == "ok"


async def test_a_namespace_whose_policy_deletes_memories_is_reported(
    journal: Path, server: DevServer
) -> None:
    """The policy was changed by another client."""
    where = {"url": server.url, "api_key": "key-root"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(60)
    (policy,) = server.state.policies.values()
    policy["episodic_ttl_seconds"] = 60
    found = await findings_of(journal, **where)
    assert found["policy"].level == "warn"
    assert "episodic_ttl_seconds" in found["policy"].message


OURS = namespace(agent_id("talk"))


@pytest.mark.parametrize(
    ("grants", "level", "says"),
    [
        ([OURS], "ok", "1 grant"),
        (["_dakera_agent_cs-*"], "ok", "1 grant"),
        (["_dakera_agent_cs-*", "other"], "ok", "2 grants"),
        ([f"{OURS[:-1]}"], "fail", OURS),
        (["_dakera_agent_other*"], "fail", OURS),
        ([], "fail", OURS),
    ],
)
async def test_a_key_for_some_namespaces_is_compared_with_the_sessions(
    journal: Path, server: DevServer, grants: list[str], level: str, says: str
) -> None:
    """Namespaces match by exact name or by prefix, as on the server, and the server confirms the
    finding."""
    server.add_key("key-device", scope="write", namespaces=grants)
    where = {"url": server.url, "api_key": "key-device"}
    found = await findings_of(journal, **where)
    assert found["key"].level == level
    assert says in found["key"].message
    if level == "fail":
        assert "_dakera_agent_cs-*" in found["key"].advice
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        if level == "ok":
            await session.flush(60)
            return
        with pytest.raises(Unauthorized):
            await session.flush(60)
    found = await findings_of(journal, **where)
    assert "NAMESPACE_ACCESS_DENIED" in found["last sync"].message
    assert found["policy"].level == "warn"


@pytest.mark.parametrize(
    ("days", "level"), [(400.0, "ok"), (3.0, "warn"), (-1.0, "fail")], ids=["long", "soon", "gone"]
)
async def test_a_key_that_expires_soon_is_reported(
    journal: Path, server: DevServer, days: float, level: str
) -> None:
    """It is reported while it can be renewed, and after it has expired."""
    until = int(time.time() + days * 86400)
    server.state.keys.add(Key("key-device", scope="write", name="device", expires_at=until))
    found = await findings_of(journal, url=server.url, api_key="key-device")
    about = found.get("key") or found["server"]
    assert about.level == level
    assert ("expire" in f"{about.message} {about.advice}".lower()) is (level != "ok")


async def test_patterns_that_the_server_ignores_are_reported(
    journal: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern of a key from before 0.12.2 has no effect until the key is saved again."""
    pattern = "_dakera_agent_cs-*"
    old = ServerFacts(
        version="0.12.3",
        capabilities={},
        key={"scope": "write", "namespaces": [pattern], "inert_namespaces": [pattern]},
        date=None,
        seconds=0.0,
    )

    async def probe(_: Any) -> ServerFacts:
        return old

    monkeypatch.setattr(DakeraRemote, "probe", probe)
    found = await findings_of(journal, url=server.url, api_key="key-root")
    assert found["key"].level == "fail"
    assert "save the key again" in found["key"].advice


@pytest.fixture
def other() -> Iterator[Callable[[str, Path], subprocess.Popen[str]]]:
    """Return a function that starts a program over a journal and waits for its ready line."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, journal: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(journal)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


REPLICATES = """
    import sys
    from filelock import FileLock
    with FileLock(sys.argv[1] + ".lock"):
        print("there", flush=True)
        sys.stdin.read()
"""
WRITES = """
    import sqlite3, sys
    conn = sqlite3.connect(sys.argv[1], isolation_level=None)
    conn.execute("BEGIN IMMEDIATE")
    print("there", flush=True)
    sys.stdin.read()
"""


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process as Ctrl-Z does, and wait until it has stopped."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


on_linux = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux names holders")


@on_linux
async def test_the_process_that_syncs_is_named(
    journal: Path, other: Callable[[str, Path], subprocess.Popen[str]]
) -> None:
    """The finding has its number, and a stopped process that holds the lock is a warning."""
    process = other(REPLICATES, journal)
    found = await findings_of(journal)
    assert found["replicator"].level == "ok"
    assert f"process {process.pid} " in found["replicator"].message
    stop(process)
    found = await findings_of(journal)
    assert found["replicator"].level == "warn"
    assert "stopped" in found["replicator"].message
    assert f"kill -CONT {process.pid}" in found["replicator"].advice


@on_linux
async def test_a_process_that_hangs_in_a_transaction_is_named(
    journal: Path, other: Callable[[str, Path], subprocess.Popen[str]]
) -> None:
    """Every write waits for that process; the readable facts are still reported."""
    process = other(WRITES, journal)
    found = await findings_of(journal)
    assert found["lock"].level == "fail"
    assert f"process {process.pid} " in found["lock"].message
    assert f"kill {process.pid}" in found["lock"].advice
    assert "1 operation" in found["outbox"].message


async def test_a_journal_is_opened_and_read_while_a_process_hangs_in_a_transaction(
    journal: Path, other: Callable[[str, Path], subprocess.Popen[str]]
) -> None:
    """Reading needs no lock."""
    other(WRITES, journal)
    options = SyncOptions(busy_timeout=0.2)
    async with CachedSession("talk", journal=journal, options=options) as session:
        assert await session.get_items() == [ITEM]
        assert session.status().items == 1
        with pytest.raises(JournalError, match="cached-session doctor"):
            await session.add_items([ITEM])


async def test_no_holder_is_named_without_proc(
    journal: Path,
    other: Callable[[str, Path], subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without /proc the finding has advice that needs no process number."""
    monkeypatch.setattr(lock_holders, "PROC", journal.parent / "no-proc")
    other(REPLICATES, journal)
    other(WRITES, journal)
    found = await findings_of(journal)
    assert found["replicator"].message.startswith("another process")
    assert found["lock"].message.startswith("another process")


async def test_a_long_outage_is_reported_with_its_length(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The findings tell how long the sync has been failing and how old the pending items are."""
    now, failed = ManualClock(), failure_recorded(monkeypatch)
    async with CachedSession.from_url(
        "talk", url="http://127.0.0.1:9", journal=journal, runtime=now.runtime()
    ) as session:
        with pytest.raises(SyncTimeout):
            await session.flush(0)
        await failed.wait()
    with closing(sqlite3.connect(journal)) as conn:
        conn.execute("UPDATE gates SET since_ms = ?", (int((time.time() - 30 * 3600) * 1000),))
        conn.execute("UPDATE ops SET said_ms = ?", (int((time.time() - 31 * 3600) * 1000),))
        conn.commit()
    found = await findings_of(journal)
    assert found["last sync"].message.startswith("failing for 30 h")
    assert found["outbox"].message.endswith("the oldest for 31 h")


async def test_a_clock_that_is_years_off_is_reported_in_years(
    journal: Path, server: DevServer
) -> None:
    """Both the clock of a device that wrote and this device's clock are compared."""
    where: dict[str, Any] = {"url": server.url, "api_key": "key-root"}
    ahead = ManualClock(start=time.time() + 20 * 365.25 * 86400)
    async with CachedSession.from_url(
        "talk", journal=journal.with_name("future.db"), runtime=ahead.runtime(), **where
    ) as future:
        await future.add_items([ITEM])
        await future.flush(60)
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(60)
    found = {one.message for one in await diagnose(journal, **where) if one.check == "clock"}
    assert any("20 years ahead" in message for message in found)


async def test_a_changed_server_is_reported(journal: Path, server: DevServer) -> None:
    """A mistyped address would send everything to another server; the finding names both."""
    where = {"url": server.url, "api_key": "key-root"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(60)
    with DevServer(api_key="key-root") as other:
        found = await diagnose(journal, url=other.url, api_key="key-root")
    (moved,) = [one for one in found if one.check == "server" and one.level == "warn"]
    assert server.url in moved.message
    assert other.url in moved.message
    same = await diagnose(journal, **where)
    assert [one for one in same if one.level != "ok"] == []


async def test_the_server_that_the_journal_knows_is_used(journal: Path, server: DevServer) -> None:
    """An application may sync with a server that the caller did not name; the journal has its
    address."""
    alone = await findings_of(journal)
    assert "nothing leaves" in alone["server"].message
    async with CachedSession.from_url(
        "talk", journal=journal, url=server.url, api_key="key-root"
    ) as session:
        await session.sync(60)
    found = await findings_of(journal)
    assert "nothing leaves" not in found["server"].message
    assert f"--url {server.url}" in found["server"].advice


async def test_an_emptied_server_is_reported(journal: Path, server: DevServer) -> None:
    """Nothing is pending and the server answers, but it has no memories; the advice names the
    command that sends everything again."""
    where: dict[str, Any] = {"url": server.url, "api_key": "key-root"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.flush(60)
        assert (await findings_of(journal, **where)).get("memories") is None
        server.evict(agent_id("talk"), lambda _: True)
        found = await findings_of(journal, **where)
        assert "nothing of 1 session" in found["memories"].message
        assert found["memories"].advice.startswith("cached-session audit")
        assert (await session.audit()).healed == 1
    assert (await findings_of(journal, **where)).get("memories") is None


async def test_due_audits_are_reported(journal: Path, server: DevServer) -> None:
    """A session that was not audited for days and one whose listing has shrunk are reported until
    an audit."""
    where: dict[str, Any] = {"url": server.url, "api_key": "key-root"}
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.sync(60)
        await session.sync(60)
        assert (await findings_of(journal, **where)).get("audit") is None
        old = time.time_ns() // 1_000_000 - 5 * 86_400_000
        await session._engine.journal.write(audit_state.record_audit, SessionRef.of("talk"), old)
        found = await findings_of(journal, **where)
        assert (
            "longer than 2 days: 1 of 1 session, one of them for 5 days" in found["audit"].message
        )
    with closing(sqlite3.connect(journal)) as conn:
        audit_state.suspect(conn, SessionRef.of("talk"), time.time_ns() // 1_000_000, 1000)
        conn.commit()
    found = await findings_of(journal, **where)
    assert "lost something of 1 session" in found["audit"].message
    async with CachedSession.from_url("talk", journal=journal, **where) as session:
        await session.audit()
    assert (await findings_of(journal, **where)).get("audit") is None
