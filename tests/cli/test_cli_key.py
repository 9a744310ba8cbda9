"""The command line never shows the API key, wherever the key came from."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from cached_session import CachedSession
from cached_session.devserver import DevServer
from tests.cli.pty_support import Terminal, environment, piped

CANARY = "canary-77c0d1e5a9b3"
SYNC = ["sync", "--timeout"]
COMMANDS = [
    ["status"],
    ["status", "--json"],
    SYNC,
    ["audit"],
    ["search", "one", "--recall"],
    ["doctor"],
    ["doctor", "--json"],
]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    async def fill() -> None:
        async with CachedSession("alice", journal=tmp_path / "agent.db") as session:
            await session.add_items([{"role": "user", "content": "one"}])

    asyncio.run(fill())
    return tmp_path / "agent.db"


@pytest.mark.parametrize("status", [200, 401, 503])
def test_no_command_shows_the_key(tmp_path: Path, journal: Path, status: int) -> None:
    """No command prints the key, as text, as JSON or in a traceback, or writes it to a file: with a
    key that works, one that the server refuses and quotes, and a server that fails."""
    with DevServer(api_key=CANARY if status == 200 else "another") as server:
        if status != 200:
            server.faults.status(status, message=f"Bearer {CANARY} is not welcome")
        env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": CANARY}
        # A command that succeeds gets more time, and the others try for so long.
        patience = ["60" if status == 200 else "2"]
        codes = []
        for command in COMMANDS:
            words = command + (patience if command is SYNC else [])
            done = piped(tmp_path, *words, "-j", journal, **env)
            assert CANARY not in done.stdout + done.stderr, command
            assert "Traceback" not in done.stderr, command
            codes.append(done.returncode)
        assert (codes[2] == 0) is (status == 200)
        screen = Terminal(tmp_path, "sync", "-j", journal, "--timeout", "1", **env)
        try:
            screen.wait()
            assert CANARY not in screen.text
        finally:
            screen.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert journal in files
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_an_unexpected_error_does_not_show_the_key(tmp_path: Path, journal: Path) -> None:
    """A traceback with or without local variables does not contain the key."""
    code = (
        "import cached_session.cli.commands as c\n"
        "from cached_session.cli.main import main\n"
        "async def boom(*a, **k): raise RuntimeError('boom')\n"
        "c.sync = boom\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "sync", "-j", str(journal), "--url", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(tmp_path, DAKERA_API_KEY=CANARY),
    )
    assert done.returncode != 0
    assert "boom" in done.stderr
    assert CANARY not in done.stdout + done.stderr
