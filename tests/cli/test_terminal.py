"""The command in a pseudo-terminal and with pipes: real processes, a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session import CachedSession, SyncError, SyncOptions
from cached_session.devserver import DevServer
from tests.cli.pty_support import ANSI, Terminal, piped

QUESTION = {"role": "user", "content": "Is there a [red]direct[/red] flight?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "search", "arguments": '{"to":"DTW"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "HAT088 " * 30}
ANSWER = {"role": "assistant", "content": "Yes: HAT088."}
TURN: list[Any] = [QUESTION, CALL, OUTPUT, ANSWER]
EVIL = "a\x1b]0;owned\x07\u202e\ud800'\"[bold]\n\x9b31m"

Run = Callable[..., Terminal]


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer(api_key="secret-key") as running:
        yield running


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Run]:
    running: list[Terminal] = []

    def run(*arguments: object, **env: str) -> Terminal:
        running.append(Terminal(tmp_path, *arguments, **env))
        return running[-1]

    yield run
    for one in running:
        one.close()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    write(tmp_path / "agent.db", "alice", TURN)
    write(tmp_path / "agent.db", "bob", TURN[:1])
    return tmp_path / "agent.db"


def write(journal: Path, name: str, items: list[Any], **where: Any) -> None:
    async def add() -> None:
        if where:
            session = CachedSession.from_url(name, journal=journal, **where)
        else:
            session = CachedSession(name, journal=journal)
        async with session:
            await session.add_items(items)
            if where:
                await session.sync(20)

    asyncio.run(add())


def test_status_on_a_terminal_is_a_table_in_colour(terminal: Run, journal: Path) -> None:
    """Every session has its counts and its state."""
    screen = terminal("status", "-j", journal)
    assert screen.wait() == 0
    assert "\x1b[" in screen.text
    (row,) = [line.split() for line in screen.plain.splitlines() if "alice" in line]
    assert [*row[:4], *row[5:]] == ["alice", "4", "1", "0", "s", "local"]


def test_status_into_a_pipe_is_plain_lines(tmp_path: Path, journal: Path) -> None:
    """There is no colour and no frame, and nothing on standard error."""
    done = piped(tmp_path, "status", "-j", journal)
    assert (done.returncode, done.stderr) == (0, "")
    assert not ANSI.search(done.stdout)
    assert done.stdout.isascii()
    assert done.stdout.splitlines()[-2].split()[:2] == ["alice", "4"]


def test_status_watch_shows_writes_of_another_process(
    terminal: Run, journal: Path, tmp_path: Path
) -> None:
    """The table updates on a terminal, and Ctrl-C ends it without a traceback."""
    screen = terminal("status", "--watch", "-j", journal)
    screen.wait(lambda text: "5 items" in text)
    write(journal, "carol", TURN)
    screen.wait(lambda text: "9 items" in text and "carol" in text)
    assert screen.interrupt() == 130
    assert "Traceback" not in screen.text


def test_show_reads_like_a_conversation(terminal: Run, journal: Path) -> None:
    """Roles are coloured, a tool's call and output are one line, and markup in a text is printed as
    it is."""
    screen = terminal("show", "alice", "-j", journal)
    assert screen.wait() == 0
    assert "\x1b[1;36muser" in screen.text
    assert "\x1b[1;32massistant" in screen.text
    assert "Is there a [red]direct[/red] flight?" in screen.plain
    (folded,) = [line for line in screen.plain.splitlines() if "search" in line]
    assert '▸ search({"to":"DTW"}) → HAT088' in folded
    assert "…" in folded
    whole = terminal("show", "alice", "--unfold", "-j", journal)
    whole.wait()
    assert whole.plain.count("HAT088") == 31


async def pop(journal: Path, name: str) -> None:
    async with CachedSession(name, journal=journal) as session:
        assert await session.pop_item()


def test_show_follow_prints_new_items(terminal: Run, journal: Path) -> None:
    """Each item is printed once as it comes, and removals are reported."""
    screen = terminal("show", "bob", "--follow", "-j", journal)
    screen.wait(lambda text: "direct" in text)
    write(journal, "bob", [ANSWER])
    screen.wait(lambda text: "HAT088" in text)
    write(journal, "bob", [{"role": "user", "content": "Thanks"}])
    screen.wait(lambda text: "Thanks" in text)
    asyncio.run(pop(journal, "bob"))
    screen.wait(lambda text: "(removed: 1 of the items above)" in text)
    assert screen.interrupt() == 130
    assert screen.plain.count("Yes: HAT088.") == 1


def test_show_follow_prints_items_of_another_device(
    terminal: Run, journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """With a server, items of another device appear. The key is read from the environment."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    screen = terminal("show", "bob", "--follow", "-j", journal, **env)
    screen.wait(lambda text: "direct" in text)
    write(tmp_path / "other.db", "bob", [ANSWER], url=server.url, api_key="secret-key")
    screen.wait(lambda text: "HAT088" in text)
    assert screen.interrupt() == 130


def test_following_tries_immediately_and_reports_an_unreachable_server(
    terminal: Run, journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """A pause after earlier failures, however long, does not delay the first attempt."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    write(tmp_path / "other.db", "bob", [ANSWER], url=server.url, api_key="secret-key")

    async def fail() -> None:
        long = SyncOptions(backoff_base=86400.0, backoff_max=86400.0)
        where = {"url": server.url, "api_key": "secret-key", "options": long}
        async with CachedSession.from_url("bob", journal=journal, **where) as session:
            with pytest.raises(SyncError):
                await session.sync(1)

    server.stop()
    asyncio.run(fail())
    screen = terminal("show", "bob", "--follow", "-j", journal, **env)
    screen.wait(lambda text: "only this journal is shown until the server answers" in text)
    assert screen.interrupt() == 130
    server.start()
    screen = terminal("show", "bob", "--follow", "-j", journal, **env)
    screen.wait(lambda text: "HAT088" in text)
    assert screen.interrupt() == 130
    assert "Traceback" not in screen.text


def test_a_hostile_id_is_escaped(terminal: Run, journal: Path, tmp_path: Path) -> None:
    """Terminal escapes, direction marks, lone surrogates and markup are escaped, on one line."""
    write(journal, EVIL, [{"role": EVIL, "content": EVIL}, {EVIL: EVIL}])
    shown = "a\\x1b]0;owned\\x07\\u202e\\ud800'\"[bold]\\n\\x9b31m"
    screen = terminal("status", "-j", journal, COLUMNS="200")
    assert screen.wait() == 0
    assert shown in screen.plain
    bad = set("\x07\x9b\u202e\ud800")
    assert "\x1b]" not in screen.text
    assert not bad & set(screen.text)
    for command in (
        ["status"],
        ["status", "--json"],
        ["search", "owned"],
        ["search", "a", "--json"],
    ):
        done = piped(tmp_path, *command, "-j", journal)
        assert done.returncode == 0, done.stderr
        assert not (bad | {"\x1b"}) & set(done.stdout)
    found = json.loads(piped(tmp_path, "status", "--json", "-j", journal).stdout)
    assert EVIL in [one["session_id"] for one in found["sessions"]]


def test_sync_draws_progress_bars_and_reports_pending_items(
    terminal: Run, journal: Path, server: DevServer
) -> None:
    """There is a bar for each session and one for all, and pending items are on the server
    afterwards."""
    screen = terminal("sync", "-j", journal, "--url", server.url, DAKERA_API_KEY="secret-key")
    assert screen.wait() == 0, screen.plain
    assert "━" in screen.plain
    assert "all sessions" in screen.plain
    assert "0 pending" in screen.plain
    assert "secret-key" not in screen.text


def test_sync_fetches_a_session_that_is_not_in_the_journal(
    terminal: Run, server: DevServer, tmp_path: Path
) -> None:
    """The whole history arrives, with a progress bar."""
    history = [{"role": "user", "content": f"{number}"} for number in range(700)]
    where = {"url": server.url, "api_key": "secret-key"}
    write(tmp_path / "old.db", "carol", history, **where)
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    screen = terminal("sync", "--session", "carol", "-j", tmp_path / "new.db", **env)
    assert screen.wait() == 0, screen.plain
    assert "700 items fetched" in screen.plain
    (report,) = [line for line in screen.plain.splitlines() if line.startswith("synced carol")]
    assert "700 items fetched" in report  # including output before the call that waits for it
    out = piped(tmp_path, "show", "carol", "--raw", "-j", tmp_path / "new.db").stdout
    assert [json.loads(line) for line in out.splitlines()] == history


def test_an_interrupted_sync_loses_nothing(terminal: Run, journal: Path, tmp_path: Path) -> None:
    """Ctrl-C without a reachable server exits with 130 without a traceback, and all items are still
    pending."""
    screen = terminal("sync", "-j", journal, "--url", "http://127.0.0.1:9")
    screen.wait(lambda text: "alice" in text)
    assert screen.interrupt() == 130
    assert "Traceback" not in screen.text
    assert "5 items, 2 pending" in piped(tmp_path, "status", "-j", journal).stdout


def test_a_closed_pipe_prints_no_traceback(tmp_path: Path, journal: Path) -> None:
    """`cached-session show ... | head -1` ends quietly."""
    import subprocess
    import sys

    from tests.cli.pty_support import environment

    write(journal, "long", [{"role": "user", "content": "x" * 90}] * 5000)
    command = f"{sys.executable} -m cached_session show long -j {journal} | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        check=False,
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


# -- the configuration ---------------------------------------------------------------------------


def configure(home: Path, text: str, mode: int = 0o600) -> None:
    file = home / "config" / "cached_session" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def test_an_option_overrides_the_environment_and_the_environment_the_file(
    tmp_path: Path, journal: Path
) -> None:
    """The order holds for each of the three settings."""
    write(tmp_path / "b.db", "in-b", TURN)
    write(tmp_path / "c.db", "in-c", TURN)
    configure(tmp_path, f'journal = "{tmp_path / "c.db"}"\n')
    env = {"CACHED_SESSION_JOURNAL": str(tmp_path / "b.db")}
    assert "in-c" in piped(tmp_path, "status").stdout
    assert "in-b" in piped(tmp_path, "status", **env).stdout
    assert "alice" in piped(tmp_path, "status", "-j", journal, **env).stdout


def test_url_and_key_come_from_the_file_and_the_key_is_not_shown(
    tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """A configuration file that others can read causes a warning."""
    text = f'url = "{server.url}"\napi_key = "secret-key"\njournal = "{journal}"\n'
    configure(tmp_path, text, mode=0o644)
    done = piped(tmp_path, "sync")
    assert done.returncode == 0, done.stderr
    assert "chmod 600" in done.stderr
    configure(tmp_path, text)
    quiet = piped(tmp_path, "doctor")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "secret-key" not in done.stdout + done.stderr + quiet.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [("url = [", "is not valid TOML"), ("urll = 'x'", "urll"), ("api_key = 5", "api_key")],
)
def test_an_invalid_configuration_is_named(
    tmp_path: Path, journal: Path, text: str, says: str
) -> None:
    """It is a usage error of one line, with the file's name in it."""
    configure(tmp_path, text)
    done = piped(tmp_path, "status", "-j", journal)
    assert done.returncode == 2
    assert says in done.stderr
    assert "config.toml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- the other commands --------------------------------------------------------------------------


def test_search_names_the_session_of_each_result(tmp_path: Path, journal: Path) -> None:
    """Search covers all sessions, or one."""
    every = piped(tmp_path, "search", "direct FLIGHT", "-j", journal).stdout.splitlines()
    assert {line.split()[0] for line in every} == {"alice", "bob"}
    one = piped(tmp_path, "search", "flight", "--session", "bob", "--json", "-j", journal)
    assert [(hit["session_id"], hit["item"]) for hit in json.loads(one.stdout)] == [
        ("bob", QUESTION)
    ]
    assert piped(tmp_path, "search", "zebra", "-j", journal).stdout == ""


def test_recall_asks_the_server_and_reports_when_it_cannot(
    tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """The server searches by meaning, and without it the journal is searched by words."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    assert piped(tmp_path, "sync", "-j", journal, **env).returncode == 0
    found = piped(tmp_path, "search", "flight", "--recall", "-s", "bob", "-j", journal, **env)
    assert "flight" in found.stdout
    server.stop()
    away = piped(tmp_path, "search", "flight", "--recall", "-s", "bob", "-j", journal, **env)
    assert "cannot be asked" in away.stderr
    assert "flight" in away.stdout


def test_doctor_reports_problems_and_what_to_do(
    terminal: Run, tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """The exit code is 0 where nothing failed and 1 otherwise, and `--json` prints the findings."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    assert piped(tmp_path, "sync", "-j", journal, **env).returncode == 0
    well = piped(tmp_path, "doctor", "-j", journal, **env)
    assert well.returncode == 0, well.stdout
    assert {line[:4].strip() for line in well.stdout.splitlines()} == {"ok"}
    wrong = piped(tmp_path, "doctor", "--json", "-j", journal, **{**env, "DAKERA_API_KEY": "no"})
    assert wrong.returncode == 1
    failed = [one for one in json.loads(wrong.stdout) if one["level"] == "fail"]
    assert "DAKERA_API_KEY" in failed[0]["advice"]
    screen = terminal("doctor", "-j", tmp_path / "none.db", **env)
    assert screen.wait() == 1
    assert "→" in screen.plain


def test_audit_restores_what_the_server_lost(
    tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """The report has the number of restored memories."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    piped(tmp_path, "sync", "-j", journal, **env)
    (agent,) = [name for name in server.agents() if "bob" in name]
    server.evict(agent, lambda memory: True)
    done = piped(tmp_path, "audit", "--session", "bob", "-j", journal, **env)
    assert (done.returncode, "1 operation sent again" in done.stdout) == (0, True), done.stdout
    assert len(server.memories(agent)) == 1


def park(home: Path, server: DevServer) -> Path:
    """Make a journal with one session whose operation is refused."""
    journal = home / "parked.db"
    with server.faults.status(
        400, message="no such words", route="POST /v1/memories/store/batch", count=1
    ):
        options = SyncOptions(backoff_base=0.05)
        write(journal, "dora", TURN[:1], url=server.url, api_key="secret-key", options=options)
    return journal


def test_a_parked_operation_is_listed_shown_retried_and_sent(
    tmp_path: Path, server: DevServer
) -> None:
    """An operation can be selected by the beginning of its name."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    journal = park(tmp_path, server)
    assert "parked" in piped(tmp_path, "status", "-j", journal).stdout.splitlines()[-1]
    (one,) = json.loads(piped(tmp_path, "parked", "list", "--json", "-j", journal).stdout)
    listed = piped(tmp_path, "parked", "list", "-j", journal).stdout
    assert one["operation"] in listed
    assert "no such words" in listed
    shown = piped(tmp_path, "parked", "show", one["operation"][:8], "-j", journal)
    assert json.loads(shown.stdout) == QUESTION
    moved = piped(tmp_path, "parked", "retry", one["operation"][:8], "-j", journal)
    assert "1 operation queued again" in moved.stdout
    assert piped(tmp_path, "sync", "-s", "dora", "-j", journal, **env).returncode == 0
    assert piped(tmp_path, "parked", "list", "-j", journal).stdout == "no operation is parked\n"


def test_an_operation_refused_during_a_sync_is_not_reported_as_sent(
    tmp_path: Path, server: DevServer
) -> None:
    """The operation is parked, and counted only as parked."""
    write(tmp_path / "agent.db", "dora", TURN[:1])
    server.faults.status(422, route="POST /v1/memories/store/batch", count=1)
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    done = piped(tmp_path, "sync", "-j", tmp_path / "agent.db", **env)
    assert done.returncode == 0
    assert ": 0 operations sent, 0 items fetched, 1 parked\n" in done.stdout


def test_parked_operations_are_a_table_on_a_terminal(
    terminal: Run, tmp_path: Path, server: DevServer
) -> None:
    """Each name is shortened to what identifies it, on one line for any length of the reason."""
    journal = park(tmp_path, server)
    (one,) = json.loads(piped(tmp_path, "parked", "list", "--json", "-j", journal).stdout)
    screen = terminal("parked", "list", "-j", journal)
    assert screen.wait() == 0
    assert "\x1b[" in screen.text
    (line,) = [line for line in screen.plain.splitlines() if one["operation"][:8] in line]
    assert "dora" in line
    assert "no such words" in " ".join(screen.plain.split())


def test_a_parked_operation_is_dropped_only_after_confirmation(
    tmp_path: Path, server: DevServer
) -> None:
    """A terminal asks, and other uses need --yes. The operations have to be named, and a missing
    one is reported before the question."""
    journal = park(tmp_path, server)
    unknown = piped(tmp_path, "parked", "drop", "zzz", "-j", journal)
    assert (unknown.returncode, "Drop them" in unknown.stderr) == (2, False)
    asked = piped(tmp_path, "parked", "drop", "--all", "-j", journal)
    assert "1 operation with 1 item" in asked.stderr
    assert piped(tmp_path, "parked", "drop", "-j", journal).returncode == 2
    assert piped(tmp_path, "parked", "drop", "zzz", "--yes", "-j", journal).returncode == 2
    assert piped(tmp_path, "parked", "drop", "--all", "-j", journal).returncode == 1
    assert "1 parked" in piped(tmp_path, "status", "-j", journal).stdout
    dropped = piped(tmp_path, "parked", "drop", "--all", "-y", "-j", journal)
    assert "1 operation dropped" in dropped.stdout
    assert "no operation is parked" in piped(tmp_path, "parked", "list", "-j", journal).stdout


def test_export_and_import_copy_a_session_byte_for_byte(tmp_path: Path, journal: Path) -> None:
    """This works with files and with a pipe, and a second import adds nothing."""
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert "4 items" in piped(tmp_path, "export", "alice", first, "-j", journal).stdout
    new = tmp_path / "new.db"
    done = piped(tmp_path, "import", first, "--session", "copy", "-j", new)
    assert (done.returncode, done.stdout) == (0, "copy: 4 items added\n")
    again = piped(tmp_path, "import", first, "--session", "copy", "-j", new)
    assert again.stdout == "copy: 0 items added, 4 were imported before\n"
    first.write_bytes(first.read_bytes() + b'{"role":"user","content":"more"}\n')
    more = piped(tmp_path, "import", first, "--session", "copy", "--json", "-j", new)
    (report,) = json.loads(more.stdout)
    assert (report["session_id"], report["added"], report["known"]) == ("copy", 1, 4)
    second.write_text(piped(tmp_path, "export", "copy", "-", "-j", new).stdout)
    assert second.read_bytes() == first.read_bytes()
    assert piped(tmp_path, "export", "nobody", "-", "-j", new).returncode == 2


def test_a_database_of_the_agents_sdk_is_imported(terminal: Run, tmp_path: Path) -> None:
    """All of its sessions are imported with progress bars, or one under another id."""
    from agents import SQLiteSession

    async def fill() -> None:
        for name in ("alice", "bob"):
            source = SQLiteSession(name, tmp_path / "agents.db")
            await source.add_items(TURN * 100)
            source.close()

    asyncio.run(fill())
    journal = tmp_path / "journal.db"
    screen = terminal("import", tmp_path / "agents.db", "-j", journal)
    assert screen.wait() == 0, screen.plain
    assert "━" in screen.plain
    assert "alice: 400 items added" in screen.plain
    one = ["import", tmp_path / "agents.db", "-s", "eve", "--source-session", "bob", "-j", journal]
    assert piped(tmp_path, *one).stdout == "eve: 400 items added\n"
    assert "3 sessions, 1200 items" in piped(tmp_path, "status", "-j", journal).stdout


def test_a_session_missing_in_the_database_is_reported_with_the_existing_ones(
    tmp_path: Path,
) -> None:
    """`--session` alone names source and target: a new id would import nothing without an error."""
    from agents import SQLiteSession

    source = SQLiteSession("ada", tmp_path / "agents.db")
    asyncio.run(source.add_items([{"role": "user", "content": "Hi"}]))
    source.close()
    command = ("import", tmp_path / "agents.db", "-s", "new", "-j", tmp_path / "j.db")
    wrong = piped(tmp_path, *command)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "has no items of a session 'new'; its sessions: 'ada'" in wrong.stderr
    assert "--source-session" in wrong.stderr
    right = piped(tmp_path, *command, "--source-session", "ada")
    assert (right.returncode, right.stdout) == (0, "new: 1 item added\n")


def test_a_direct_session_is_imported_with_a_progress_bar(
    terminal: Run, tmp_path: Path, server: DevServer
) -> None:
    """A terminal shows activity while the listing is read, and then the progress. With a pipe only
    the result is printed."""
    from dakera import AsyncDakeraClient

    async def store() -> None:
        client = AsyncDakeraClient(server.url, api_key="secret-key")
        memories = [
            {"content": json.dumps(QUESTION), "metadata": {"seq": n}, "tags": ["oai-session"]}
            for n in range(450)
        ]
        body = {"agent_id": "direct-eve", "memories": memories}
        await client._request("POST", "/v1/memories/store/batch", body)
        await client.close()

    asyncio.run(store())
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    command = ["import", "direct-eve", "--from", "server", "--session", "eve"]
    screen = terminal(*command, "-j", tmp_path / "j.db", **env)
    assert screen.wait() == 0, screen.plain
    assert screen.plain.index("reading") < screen.plain.index("450 added")
    assert "━" in screen.plain
    again = piped(tmp_path, *command, "-j", tmp_path / "j.db", **env)
    assert again.stdout == "eve: 0 items added, 450 were imported before\n"


def test_an_import_with_unreadable_lines_exits_with_1(tmp_path: Path) -> None:
    """All other lines are imported."""
    (tmp_path / "x.jsonl").write_text('{"a":1}\n{"b":\n')
    done = piped(tmp_path, "import", tmp_path / "x.jsonl", "-s", "x", "-j", tmp_path / "j.db")
    assert done.returncode == 1
    assert done.stdout == "x: 1 item added, 1 could not be read (the first: number 2)\n"


def test_compact_frees_space(tmp_path: Path, journal: Path, server: DevServer) -> None:
    """The rows of cleared items are deleted, and the report has the number of bytes."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    write(journal, "big", [{"role": "user", "content": "x" * 50_000}] * 40)

    async def clear() -> None:
        async with CachedSession("big", journal=journal) as session:
            await session.clear_session()

    asyncio.run(clear())
    assert piped(tmp_path, "sync", "-j", journal, **env).returncode == 0
    before = journal.stat().st_size
    done = piped(tmp_path, "compact", "--json", "-j", journal)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bytes_after"] < found["bytes_before"]
    assert journal.stat().st_size < before
    assert "the journal takes" in piped(tmp_path, "compact", "-j", journal).stdout


def test_a_server_started_with_faults_fails_as_requested(terminal: Run, tmp_path: Path) -> None:
    """Every kind of fault works by its name, and an unknown kind is a usage error."""
    import urllib.error
    import urllib.request

    screen = terminal("devserver", "--port", "0", "--fault", "status,status=503,count=1", "--log")
    screen.wait(lambda text: "listening on " in text)
    url = screen.plain.split("listening on ")[1].split()[0]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/health")
    refused.value.close()
    assert refused.value.code == 503
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert answer.status == 200
    screen.wait(lambda text: "GET /health 200" in text)
    assert screen.interrupt() in (0, 130)
    wrong = piped(tmp_path, "devserver", "--port", "0", "--fault", "weather")
    assert wrong.returncode == 2
    assert "weather" in wrong.stderr


def test_the_server_does_not_use_a_foreign_file_for_its_data(tmp_path: Path, journal: Path) -> None:
    """A session's journal, a text file and a directory are unchanged, and are reported in one
    line."""
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one " * 40)
    (tmp_path / "made").mkdir()
    for name in (journal.name, "notes.txt", "made"):
        at = tmp_path / name
        before = at.read_bytes() if at.is_file() else None
        done = piped(tmp_path, "devserver", "--port", "0", "--data", at)
        assert (done.returncode, done.stdout) == (2, "")
        assert str(at) in done.stderr
        assert "Traceback" not in done.stderr
        assert before is None or at.read_bytes() == before


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("status,status=teapot", "status='teapot' is not a whole number"),
        ("status,status=9", "status=9 is not an HTTP status from 200 to 599"),
        ("status,count=true", "count=True is not a whole number"),
        ("drop,after_commit=1", "after_commit=1 is not true or false"),
        ("latency,seconds", "seconds='' is not a number"),
        ("drop,probability=20", "probability=20 is not between 0 and 1"),
    ],
)
def test_an_invalid_fault_is_a_usage_error(tmp_path: Path, fault: str, complaint: str) -> None:
    """The error comes before the server listens, because a fault that never fires looks like a
    server without one."""
    done = piped(tmp_path, "devserver", "--port", "0", "--fault", fault)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_every_command_has_a_help_text(tmp_path: Path) -> None:
    """Each command has `--help`, and the exit codes are in the main one."""
    top = piped(tmp_path, "--help")
    assert "130 interrupted" in " ".join(top.stdout.split())
    names = "status show sync search doctor audit parked export import compact devserver".split()
    for name in names:
        assert piped(tmp_path, name, "--help").returncode == 0
        assert name in top.stdout


def test_local_commands_do_not_import_the_client_library(tmp_path: Path, journal: Path) -> None:
    """No command imports modules that it does not use."""
    import subprocess
    import sys

    code = (
        "import sys; from cached_session.cli.app import app; "
        f"app(['status', '-j', {str(journal)!r}], standalone_mode=False); "
        "print([name for name in ('dakera', 'starlette', 'agents') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# -- output errors -------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize(
    "command",
    [("status",), ("status", "--json"), ("show", "alice", "--raw"), ("export", "alice", "-")],
)
def test_an_output_error_is_reported_as_one(
    tmp_path: Path, journal: Path, command: tuple[str, ...]
) -> None:
    """One line names the output as the cause, and not the journal."""
    with Path("/dev/full").open("w") as full:
        done = piped(tmp_path, *command, "-j", journal, stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "cached-session: standard output cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize("command", [("show", "long", "--raw"), ("export", "long", "-")])
def test_a_reader_that_closes_early_causes_no_message(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Nothing is printed on standard error, as after `| head -1`."""
    write(tmp_path / "long.db", "long", TURN * 100)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as left:
        done = piped(tmp_path, *command, "-j", tmp_path / "long.db", stdout=left)
    assert done.stderr == ""


# -- a damaged journal ---------------------------------------------------------------------------


def test_compact_recovers_a_damaged_journal_and_status_reports_the_losses(
    tmp_path: Path,
) -> None:
    """This includes damage that no other command reads."""
    journal = tmp_path / "agent.db"
    write(journal, "alice", [{"role": "user", "content": f"{n} " + "x" * 3000} for n in range(99)])
    with closing(sqlite3.connect(journal)) as conn:
        (root,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'ops'").fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
    data = bytearray(journal.read_bytes())
    # In the pages of the texts, far behind every root page.
    middle = (root + pages) // 2 * size
    data[middle : middle + 8 * size] = b"\x55" * 8 * size
    journal.write_bytes(data)
    told = piped(tmp_path, "doctor", "-j", journal)
    assert "cached-session compact sets it aside" in told.stdout
    assert "salvaged" not in piped(tmp_path, "status", "-j", journal).stdout
    done = piped(tmp_path, "compact", "-j", journal)
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    after = piped(tmp_path, "status", "-j", journal)
    assert "\nsalvaged" in after.stdout
    assert "unsent operation" in after.stdout
    assert piped(tmp_path, "compact", "-j", journal).returncode == 0
    assert "damaged: " not in piped(tmp_path, "doctor", "-j", journal).stdout
