"""The option `--key-prefix`: commands over sessions of one key prefix, or of all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, SessionCache, SyncError
from cached_session.devserver import DevServer
from tests.cli.test_commands import run


def message(text: str) -> Any:
    return {"role": "user", "content": text}


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Make a journal in which session `1` exists under three prefixes, and `2` under one."""

    async def write() -> None:
        for prefix, session_id in (("", "1"), ("shop", "1"), ("help", "1"), ("help", "2")):
            async with SessionCache(tmp_path / "agent.db", key_prefix=prefix) as cache:
                session = cache.session(session_id)
                await session.add_items([message(f"word of {prefix or 'none'} {session_id}")])

    asyncio.run(write())
    return tmp_path / "agent.db"


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer() as running:
        yield running


def named(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(one["key_prefix"], one["session_id"]) for one in found]


EVERY = [("", "1"), ("help", "1"), ("help", "2"), ("shop", "1")]


def test_status_lists_all_prefixes(journal: Path) -> None:
    """Each line has the prefix, and the totals are those of the journal."""
    lines = run("status", "-j", journal).output.splitlines()
    assert any("4 sessions, 4 items" in line for line in lines)
    header = next(n for n, line in enumerate(lines) if "session" in line.split())
    assert lines[header].split()[:2] == ["prefix", "session"]
    assert [line.split()[:2] for line in lines[-3:]] == [
        ["help", "1"],
        ["help", "2"],
        ["shop", "1"],
    ]
    assert named(json.loads(run("status", "-j", journal, "--json").output)["sessions"]) == EVERY


@pytest.mark.parametrize(
    ("prefix", "ids"), [("help", ["1", "2"]), ("", ["1"]), ("other", [])], ids=["help", "no", "new"]
)
def test_status_of_one_prefix(journal: Path, prefix: str, ids: list[str]) -> None:
    """Sessions and totals are those of the prefix; an empty prefix is a choice too."""
    found = json.loads(run("status", "-j", journal, "--json", "--key-prefix", prefix).output)
    assert named(found["sessions"]) == [(prefix, session_id) for session_id in ids]
    assert found["items"] == len(ids)


def test_a_journal_without_prefixes_shows_no_column(tmp_path: Path) -> None:
    """The table has the same columns as without the feature."""

    async def write() -> None:
        async with CachedSession("a", journal=tmp_path / "j.db") as session:
            await session.add_items([message("x")])

    asyncio.run(write())
    lines = run("status", "-j", tmp_path / "j.db").output.splitlines()
    assert lines[-2].split() == ["session", "items", "pending", "parked", "age", "state"]


def test_show_and_export_take_a_prefix(journal: Path, tmp_path: Path) -> None:
    """Without the option, they read the session without a prefix."""
    assert "word of none 1" in run("show", "1", "-j", journal).output
    assert "word of shop 1" in run("show", "1", "-j", journal, "--key-prefix", "shop").output
    done = run("export", "1", tmp_path / "x.jsonl", "-j", journal, "--key-prefix", "help")
    assert done.output.startswith("1 (prefix help): 1 item written")
    assert "word of help 1" in (tmp_path / "x.jsonl").read_text()


def test_the_prefix_may_come_from_environment_and_file(journal: Path, tmp_path: Path) -> None:
    """The option overrides the environment, and the environment overrides the file."""
    config = tmp_path / "c.toml"
    config.write_text('key_prefix = "shop"\n')
    base = ("--config", config, "show", "1", "-j", journal)
    assert "word of shop" in run(*base).output
    environment = {"CACHED_SESSION_KEY_PREFIX": "help"}
    assert "word of help" in run(*base, **environment).output
    assert "word of none" in run(*base, "--key-prefix", "", **environment).output


def test_a_session_of_another_prefix_is_suggested(journal: Path) -> None:
    """The error names the prefix that has the session."""
    done = run("show", "2", "-j", journal)
    assert done.exit_code == 2
    assert "has no session '2' (it has one with the key prefix 'help'" in done.stderr
    done = run("show", "2", "-j", journal, "--key-prefix", "shop")
    assert "has no session '2' with the key prefix 'shop' (it has one with" in done.stderr


def test_search_covers_all_prefixes_or_one(journal: Path) -> None:
    """Each result names its prefix."""
    lines = run("search", "word", "-j", journal).output.splitlines()
    assert len(lines) == 4
    assert sum(line.startswith("1 (prefix shop)  ") for line in lines) == 1
    assert named(json.loads(run("search", "word", "-j", journal, "--json").output)) == EVERY
    one = run("search", "word", "-j", journal, "--json", "--key-prefix", "shop")
    assert named(json.loads(one.output)) == [("shop", "1")]
    given = run("search", "word", "-j", journal, "--json", "-s", "1")
    assert named(json.loads(given.output)) == [("", "1")]


def test_sync_and_audit_cover_all_prefixes_or_one(journal: Path, server: DevServer) -> None:
    """A sync of one prefix sends its sessions, and reports have the prefix."""
    common = ("-j", journal, "--url", server.url)
    done = run("sync", *common, "--key-prefix", "help", "--json")
    assert named(json.loads(done.stdout)) == [("help", "1"), ("help", "2")]
    lines = run("sync", *common).output.splitlines()
    assert sum(line.startswith("synced 1 (prefix shop) in ") for line in lines) == 1
    found = json.loads(run("status", "-j", journal, "--json").output)
    assert found["pending"] == 0
    assert len(server.agents()) == 4
    audited = run("audit", *common)
    assert "1 (prefix shop): 1 memory listed" in audited.output
    one = json.loads(run("audit", *common, "--key-prefix", "shop", "--json").stdout)
    assert named(one) == [("shop", "1")]


def test_a_session_of_a_prefix_is_fetched_into_a_new_journal(
    journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """`sync --session` fetches the session with the prefix."""
    assert run("sync", "-j", journal, "--url", server.url).exit_code == 0
    common = ("-j", tmp_path / "new.db", "--key-prefix", "shop")
    done = run("sync", *common, "--session", "1", "--url", server.url)
    assert done.exit_code == 0, done.output
    assert "word of shop 1" in run("show", "1", *common).output


def test_import_adds_to_the_session_with_the_prefix(journal: Path, tmp_path: Path) -> None:
    """The report names the prefix, and other sessions do not change."""
    (tmp_path / "in.jsonl").write_text(json.dumps(message("imported")))
    common = ("import", tmp_path / "in.jsonl", "-s", "1", "-j", journal, "--key-prefix", "shop")
    assert run(*common).output.startswith("1 (prefix shop): 1 item added")
    assert named(json.loads(run(*common, "--json").output)) == [("shop", "1")]
    assert "imported" in run("show", "1", "-j", journal, "--key-prefix", "shop").output
    assert "imported" not in run("show", "1", "-j", journal).output


def test_parked_operations_of_all_prefixes_or_one(tmp_path: Path, server: DevServer) -> None:
    """They are listed with their prefix, and `--all` concerns the chosen prefix only."""
    path = tmp_path / "agent.db"

    async def write(prefix: str) -> None:
        async with CachedSession.from_url(
            "1", url=server.url, journal=path, key_prefix=prefix
        ) as session:
            await session.add_items([message("x")])
            with pytest.raises(SyncError):
                await session.flush(timeout=30)

    for prefix in ("shop", "help"):
        server.faults.status(422, route="POST /v1/memories/store/batch", count=1)
        asyncio.run(write(prefix))
    found = json.loads(run("parked", "list", "--json", "-j", path).output)
    assert named(found) == [("help", "1"), ("shop", "1")]
    assert "1 (prefix shop)" in run("parked", "list", "-j", path).output
    shown = run("parked", "show", found[1]["operation"], "-j", path)
    assert "append of 1 (prefix shop)" in shown.stderr
    one = run("parked", "list", "--json", "-j", path, "-s", "1", "--key-prefix", "help")
    assert named(json.loads(one.output)) == [("help", "1")]
    assert json.loads(run("parked", "list", "--json", "-j", path, "-s", "1").output) == []
    dropped = run("parked", "drop", "--all", "--yes", "-j", path, "--key-prefix", "help")
    assert "1 operation dropped" in dropped.output
    assert named(json.loads(run("parked", "list", "--json", "-j", path).output)) == [("shop", "1")]
    assert "1 operation queued" in run("parked", "retry", found[1]["operation"], "-j", path).output


def test_doctor_checks_all_prefixes(journal: Path, server: DevServer) -> None:
    """Sessions with a prefix count in the checks of the key and of the journal."""
    key = server.add_key("narrow", namespaces=["_dakera_agent_cs-shop-*"])
    assert key
    done = run("doctor", "-j", journal, "--url", server.url, DAKERA_API_KEY="narrow")
    assert "no grant for 3 of 4 sessions" in done.output
    assert "not sent yet: 4 operations" in done.output
    assert "\\x1f" not in done.output


@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("search", "word"), ("parked", "list")]
)
def test_no_internal_name_is_shown(journal: Path, command: tuple[str, ...]) -> None:
    """No output contains the marker of an internal name, escaped or not."""
    done = run(*command, "-j", journal)
    assert done.exit_code == 0
    for mark in ("\x1f", "\\x1f", "\\u001f"):
        assert mark not in done.output
