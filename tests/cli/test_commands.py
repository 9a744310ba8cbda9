"""The command line over real journals: its output and its exit codes."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cached_session import CachedSession, SessionCache
from cached_session.cli.app import app
from cached_session.devserver import DevServer

QUESTION = {"role": "user", "content": "Is there a direct flight?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "search", "arguments": '{"to":"DTW"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "HAT088"}
TURN: list[Any] = [QUESTION, CALL, OUTPUT]


def run(*arguments: object, **env: str) -> Result:
    # No environment variable of the test run may select the journal.
    names = ("DAKERA_URL", "DAKERA_API_KEY", "CACHED_SESSION_JOURNAL", "CACHED_SESSION_KEY_PREFIX")
    clean = dict.fromkeys(names, "")
    return CliRunner(env={**clean, **env}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Make a journal with two sessions that were never sent."""

    async def write() -> None:
        for name in ("alice", "bob/2"):
            async with CachedSession(name, journal=str(tmp_path / "agent.db")) as session:
                await session.add_items(TURN)

    asyncio.run(write())
    return tmp_path / "agent.db"


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer() as running:
        yield running


def test_status_names_every_session_of_the_journal(journal: Path) -> None:
    """Sessions of earlier runs are counted, and not only those that are open now."""
    result = run("status", "--journal", journal)
    assert result.exit_code == 0
    assert "alice" in result.output
    assert "bob/2" in result.output
    assert "6 items" in result.output


def test_status_prints_json(journal: Path) -> None:
    """`--json` prints one JSON value and nothing else."""
    found = json.loads(run("status", "--journal", journal, "--json").output)
    assert found["items"] == 6
    assert [one["session_id"] for one in found["sessions"]] == ["alice", "bob/2"]


def test_the_environment_may_name_the_journal(journal: Path) -> None:
    """CACHED_SESSION_JOURNAL replaces --journal."""
    result = run("status", CACHED_SESSION_JOURNAL=str(journal))
    assert "6 items" in result.output


def test_reading_creates_no_journal(tmp_path: Path) -> None:
    """A missing journal is an error, and is still missing afterwards."""
    result = run("status", "--journal", tmp_path / "none.db")
    assert result.exit_code == 1
    assert "none.db" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_journal_is_refused(tmp_path: Path) -> None:
    """The message names the file, and the file is unchanged."""
    file = tmp_path / "notes.txt"
    file.write_text("not a journal, but long enough to be taken for a database header " * 20)
    before = file.read_bytes()
    result = run("show", "alice", "--journal", file)
    assert result.exit_code == 1
    assert "notes.txt" in result.output
    assert file.read_bytes() == before


def test_show_prints_a_line_for_each_item(journal: Path) -> None:
    """Text, tool calls and tool outputs are readable."""
    lines = run("show", "alice", "--journal", journal).output.splitlines()
    assert len(lines) == 3
    assert "user: Is there a direct flight?" in lines[0]
    assert 'calls search({"to":"DTW"})' in lines[1]
    assert "gives HAT088" in lines[2]


def test_show_raw_prints_the_stored_items(journal: Path) -> None:
    """`--raw` prints one stored JSON value a line, the latest with --limit."""
    lines = run("show", "bob/2", "--journal", journal, "--raw", "-n", "2").output.splitlines()
    assert [json.loads(line) for line in lines] == TURN[1:]


@pytest.mark.parametrize(
    "command",
    [
        ("show", "alise"),
        ("show", "alise", "--raw"),
        ("export", "alise", "-"),
        ("search", "flight", "--session", "alise"),
        ("search", "flight", "--recall", "--session", "alise"),
        ("audit", "--session", "alise"),
    ],
    ids=" ".join,
)
def test_an_unknown_session_is_a_usage_error(
    journal: Path, server: DevServer, command: tuple[str, ...]
) -> None:
    """The exit code is 2, standard error suggests a similar id, and the session is not created."""
    result = run(*command, "--journal", journal, DAKERA_URL=server.url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the journal has no session 'alise' (did you mean 'alice'?)" in result.stderr
    assert "sync --session" in result.stderr
    found = json.loads(run("status", "--journal", journal, "--json").output)
    assert [one["session_id"] for one in found["sessions"]] == ["alice", "bob/2"]


def test_an_empty_session_is_not_unknown(journal: Path) -> None:
    """A cleared session is reported as empty, and with a limit of zero nothing is printed."""

    async def clear() -> None:
        async with CachedSession("alice", journal=journal) as session:
            await session.clear_session()

    nothing = run("show", "alice", "--limit", "0", "--journal", journal)
    assert (nothing.exit_code, nothing.output) == (0, "")
    asyncio.run(clear())
    empty = run("show", "alice", "--journal", journal)
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "'alice' has no items" in empty.stderr


def test_sync_without_a_server_is_a_usage_error(journal: Path) -> None:
    """`sync` needs a URL."""
    result = run("sync", "--journal", journal)
    assert result.exit_code == 2
    assert "DAKERA_URL" in result.output


def test_sync_sends_every_session_of_the_journal(journal: Path, server: DevServer) -> None:
    """Afterwards nothing is pending, and another device has the items."""
    result = run("sync", "--journal", journal, "--url", server.url)
    assert result.exit_code == 0, result.output
    assert "0 pending" in result.output

    async def read() -> list[Any]:
        other = CachedSession.from_url("bob/2", url=server.url, journal=":memory:")
        async with other:
            return await other.get_items()

    assert asyncio.run(read()) == TURN


@pytest.mark.parametrize("command", [("sync",), ("audit",), ("search", "x", "--recall")])
def test_a_journal_is_created_only_for_a_named_session(
    tmp_path: Path, server: DevServer, command: tuple[str, ...]
) -> None:
    """A mistyped path is an error, and not a new, empty journal."""
    result = run(*command, "--journal", tmp_path / "none.db", "--url", server.url)
    assert result.exit_code == 1
    assert "there is no journal at" in result.output
    assert list(tmp_path.iterdir()) == []


def test_sync_of_an_empty_journal_explains_how_to_fetch(tmp_path: Path, server: DevServer) -> None:
    """Nothing was synced, and the message does not claim it."""

    async def open_one() -> None:
        async with SessionCache(tmp_path / "j.db"):
            pass

    asyncio.run(open_one())
    result = run("sync", "--journal", tmp_path / "j.db", "--url", server.url)
    assert result.exit_code == 0
    assert "--session ID" in result.stderr
    assert "synced" not in result.stdout


def test_sync_of_an_unknown_id_warns_about_it(tmp_path: Path, server: DevServer) -> None:
    """Neither the server nor the journal has anything of that session."""
    where = ("--journal", tmp_path / "j.db", "--url", server.url)
    result = run("sync", "--session", "alise", *where)
    assert result.exit_code == 0, result.output
    assert "the server has no items of 'alise' either" in result.stderr


def test_sync_without_a_reachable_server_exits_with_3(journal: Path) -> None:
    """The journal is unchanged, and the server did not get the items."""
    result = run("sync", "--journal", journal, "--url", "http://127.0.0.1:9", "--timeout", "1")
    assert result.exit_code == 3
    assert "6 items" in run("status", "--journal", journal).output


def test_sync_prints_json(journal: Path, server: DevServer) -> None:
    """`--json` prints a report for each session, and nothing else on standard output."""
    done = run("sync", "--journal", journal, "--json", "--url", server.url)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert [one["session_id"] for one in found] == ["alice", "bob/2"]
    assert [one["key_prefix"] for one in found] == ["", ""]
    assert [(one["pushed"], one["pending"]) for one in found] == [(1, 0), (1, 0)]


def test_sync_waits_for_the_named_session(journal: Path, server: DevServer) -> None:
    """`--session` names the session to wait for, and the report contains it."""
    result = run("sync", "--journal", journal, "--url", server.url, "--session", "alice")
    assert result.exit_code == 0, result.output
    assert "synced alice" in result.output
    found = json.loads(run("status", "--journal", journal, "--json").output)
    assert found["sessions"][0]["session_id"] == "alice"
    assert found["sessions"][0]["pending"] == 0


def test_an_interrupted_sync_ends_immediately_and_keeps_the_journal(journal: Path) -> None:
    """Ctrl-C prints no traceback, and pending items stay pending."""
    command = f"sync --url http://127.0.0.1:9 --timeout 60 --journal {journal}".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "cached_session", *command],
        stderr=subprocess.PIPE,
        text=True,
        # A background process of a shell ignores Ctrl-C, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    _wait_for_an_attempt(journal)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in complaint
    assert "6 items" in run("status", "--journal", journal).output


def _wait_for_an_attempt(journal: Path) -> None:
    """Wait until the journal records that the server could not be reached."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with closing(sqlite3.connect(journal)) as conn:
            if conn.execute("SELECT 1 FROM meta WHERE key = 'last_error'").fetchone():
                return
        time.sleep(0.05)
    raise AssertionError("no attempt was made")


def test_an_address_that_cannot_be_bound_is_named(server: DevServer) -> None:
    """A port in use prints one line, and no traceback."""
    result = run("devserver", "--port", server.port)
    assert result.exit_code == 1
    assert str(server.port) in result.output


def test_a_missing_extra_is_named_with_its_install_command() -> None:
    """Without typer, the command prints what to install and no traceback."""
    code = (
        "import sys; sys.modules['typer'] = None;"
        "from cached_session.cli.main import main; main()"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'cached-session[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_package_can_be_run() -> None:
    """`python -m cached_session` is the command."""
    command = [sys.executable, "-m", "cached_session", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cached-session 0.")


def test_a_refused_key_is_not_reported_as_an_outage(journal: Path, server: DevServer) -> None:
    """The state has its own word, also in a later status without a server."""
    server.add_key("good-key")
    wrong = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "wrong-key"}
    assert run("sync", "--journal", journal, **wrong).exit_code == 3
    lines = run("status", "--journal", journal).output.splitlines()
    assert [line.split()[-1] for line in lines[-2:]] == ["unauthorized"] * 2
    assert any("INVALID_API_KEY" in line for line in lines)
