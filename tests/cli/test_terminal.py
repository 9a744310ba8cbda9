"""The command in a pseudo-terminal and in pipes: real processes, a real server."""

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


def test_status_is_a_table_in_colour_on_a_terminal(terminal: Run, journal: Path) -> None:
    """Every session with its counts and its state."""
    screen = terminal("status", "-j", journal)
    assert screen.wait() == 0
    assert "\x1b[" in screen.text
    (row,) = [line.split() for line in screen.plain.splitlines() if "alice" in line]
    assert [*row[:4], *row[5:]] == ["alice", "4", "1", "0", "s", "local"]


def test_status_into_a_pipe_is_plain_lines(tmp_path: Path, journal: Path) -> None:
    """No colour, no frame, nothing on standard error."""
    done = piped(tmp_path, "status", "-j", journal)
    assert (done.returncode, done.stderr) == (0, "")
    assert not ANSI.search(done.stdout)
    assert done.stdout.isascii()
    assert done.stdout.splitlines()[-2].split()[:2] == ["alice", "4"]


def test_status_watched_shows_what_another_process_writes(
    terminal: Run, journal: Path, tmp_path: Path
) -> None:
    """Live on a terminal; Ctrl-C ends it without a traceback."""
    screen = terminal("status", "--watch", "-j", journal)
    screen.wait(lambda text: "5 items" in text)
    write(journal, "carol", TURN)
    screen.wait(lambda text: "9 items" in text and "carol" in text)
    assert screen.interrupt() == 130
    assert "Traceback" not in screen.text


def test_show_reads_like_a_conversation(terminal: Run, journal: Path) -> None:
    """Roles coloured, a tool's call and output folded into a line, markup left as it was said."""
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


def test_show_follows_what_is_said_next(terminal: Run, journal: Path) -> None:
    """Each item once, as it comes; and that one went."""
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


def test_show_follows_another_device_where_a_server_is_named(
    terminal: Run, journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """What is said there appears here; the key is taken from the environment."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    screen = terminal("show", "bob", "--follow", "-j", journal, **env)
    screen.wait(lambda text: "direct" in text)
    write(tmp_path / "other.db", "bob", [ANSWER], url=server.url, api_key="secret-key")
    screen.wait(lambda text: "HAT088" in text)
    assert screen.interrupt() == 130


def test_following_tries_at_once_and_says_when_no_server_answers(
    terminal: Run, journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """However long the pause that earlier failures left: whoever starts to follow wants it now."""
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


def test_an_id_made_to_harm_is_shown_harmlessly(
    terminal: Run, journal: Path, tmp_path: Path
) -> None:
    """Terminal escapes, direction marks, lone surrogates and markup: escaped, on one line."""
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
    assert EVIL in found["sessions"]


def test_sync_draws_bars_and_says_what_is_left(
    terminal: Run, journal: Path, server: DevServer
) -> None:
    """One for each session and one for all; what waited is on the server."""
    screen = terminal("sync", "-j", journal, "--url", server.url, DAKERA_API_KEY="secret-key")
    assert screen.wait() == 0, screen.plain
    assert "━" in screen.plain
    assert "all sessions" in screen.plain
    assert "0 pending" in screen.plain
    assert "secret-key" not in screen.text


def test_sync_fetches_a_session_that_the_journal_has_never_met(
    terminal: Run, server: DevServer, tmp_path: Path
) -> None:
    """The whole history, with a bar for it."""
    history = [{"role": "user", "content": f"{number}"} for number in range(700)]
    where = {"url": server.url, "api_key": "secret-key"}
    write(tmp_path / "old.db", "carol", history, **where)
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    screen = terminal("sync", "--session", "carol", "-j", tmp_path / "new.db", **env)
    assert screen.wait() == 0, screen.plain
    assert "700 items fetched" in screen.plain
    (report,) = [line for line in screen.plain.splitlines() if line.startswith("synced carol")]
    assert "700 items fetched" in report  # also what came before the call that waits for it
    out = piped(tmp_path, "show", "carol", "--raw", "-j", tmp_path / "new.db").stdout
    assert [json.loads(line) for line in out.splitlines()] == history


def test_an_interrupted_sync_loses_nothing(terminal: Run, journal: Path, tmp_path: Path) -> None:
    """Ctrl-C in front of a server that is away: 130, no traceback, and all still waits."""
    screen = terminal("sync", "-j", journal, "--url", "http://127.0.0.1:9")
    screen.wait(lambda text: "alice" in text)
    assert screen.interrupt() == 130
    assert "Traceback" not in screen.text
    assert "5 items, 2 pending" in piped(tmp_path, "status", "-j", journal).stdout


def test_a_pipe_that_is_closed_is_no_traceback(tmp_path: Path, journal: Path) -> None:
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


def test_an_option_beats_the_environment_and_the_environment_the_file(
    tmp_path: Path, journal: Path
) -> None:
    """For each of the three settings."""
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
    """A file that others can read is warned of."""
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
def test_a_configuration_that_makes_no_sense_is_named(
    tmp_path: Path, journal: Path, text: str, says: str
) -> None:
    """Called wrongly: one line, with the file in it."""
    configure(tmp_path, text)
    done = piped(tmp_path, "status", "-j", journal)
    assert done.returncode == 2
    assert says in done.stderr
    assert "config.toml" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# -- the other verbs -----------------------------------------------------------------------------


def test_search_names_the_session_of_what_it_finds(tmp_path: Path, journal: Path) -> None:
    """Over all sessions, or one."""
    every = piped(tmp_path, "search", "direct FLIGHT", "-j", journal).stdout.splitlines()
    assert {line.split()[0] for line in every} == {"alice", "bob"}
    one = piped(tmp_path, "search", "flight", "--session", "bob", "--json", "-j", journal)
    assert [(hit["session"], hit["item"]) for hit in json.loads(one.stdout)] == [("bob", QUESTION)]
    assert piped(tmp_path, "search", "zebra", "-j", journal).stdout == ""


def test_recall_asks_the_server_and_says_when_it_cannot(
    tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """Near in meaning, by the server; by words where it is away."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    assert piped(tmp_path, "sync", "-j", journal, **env).returncode == 0
    found = piped(tmp_path, "search", "flight", "--recall", "-s", "bob", "-j", journal, **env)
    assert "flight" in found.stdout
    server.stop()
    away = piped(tmp_path, "search", "flight", "--recall", "-s", "bob", "-j", journal, **env)
    assert "cannot be asked" in away.stderr
    assert "flight" in away.stdout


def test_doctor_says_what_is_wrong_and_what_to_do(
    terminal: Run, tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """0 where nothing failed, 1 otherwise; for programs as JSON."""
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


def test_audit_puts_back_what_the_server_lost(
    tmp_path: Path, journal: Path, server: DevServer
) -> None:
    """The report says how much."""
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    piped(tmp_path, "sync", "-j", journal, **env)
    (agent,) = [name for name in server.agents() if "bob" in name]
    server.evict(agent, lambda memory: True)
    done = piped(tmp_path, "audit", "--session", "bob", "-j", journal, **env)
    assert (done.returncode, "1 operation sent again" in done.stdout) == (0, True), done.stdout
    assert len(server.memories(agent)) == 1


def park(home: Path, server: DevServer) -> Path:
    """A journal of its own, so that the refusal hits the one session in it."""
    journal = home / "parked.db"
    with server.faults.status(
        400, message="no such words", route="POST /v1/memories/store/batch", count=1
    ):
        options = SyncOptions(backoff_base=0.05)
        write(journal, "dora", TURN[:1], url=server.url, api_key="secret-key", options=options)
    return journal


def test_a_parked_operation_is_found_looked_at_retried_and_sent(
    tmp_path: Path, server: DevServer
) -> None:
    """From the list to the server, by the beginning of its name."""
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


def test_what_a_sync_had_refused_is_not_said_to_be_sent(tmp_path: Path, server: DevServer) -> None:
    """It is parked, and counted as that alone."""
    write(tmp_path / "agent.db", "dora", TURN[:1])
    server.faults.status(422, route="POST /v1/memories/store/batch", count=1)
    env = {"DAKERA_URL": server.url, "DAKERA_API_KEY": "secret-key"}
    done = piped(tmp_path, "sync", "-j", tmp_path / "agent.db", **env)
    assert done.returncode == 0
    assert ": 0 operations sent, 0 items fetched, 1 parked\n" in done.stdout


def test_parked_operations_are_a_table_on_a_terminal(
    terminal: Run, tmp_path: Path, server: DevServer
) -> None:
    """As much of a name is shown as is needed to type it, on one line, however long the reason."""
    journal = park(tmp_path, server)
    (one,) = json.loads(piped(tmp_path, "parked", "list", "--json", "-j", journal).stdout)
    screen = terminal("parked", "list", "-j", journal)
    assert screen.wait() == 0
    assert "\x1b[" in screen.text
    (line,) = [line for line in screen.plain.splitlines() if one["operation"][:8] in line]
    assert "dora" in line
    assert "no such words" in " ".join(screen.plain.split())


def test_a_parked_operation_is_dropped_only_when_asked_twice(
    tmp_path: Path, server: DevServer
) -> None:
    """A question on the terminal, --yes elsewhere; which ones has to be said. What is not there is
    told before anybody is asked."""
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


def test_export_and_import_carry_a_session_byte_for_byte(tmp_path: Path, journal: Path) -> None:
    """Through files and through a pipe; a second import adds nothing."""
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


def test_a_database_of_the_agents_sdk_moves_in(terminal: Run, tmp_path: Path) -> None:
    """All of its sessions with bars, or one under another name."""
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


def test_a_session_that_a_database_has_not_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    """`--session` alone names both ends: a new id would import nothing, and look as if it had."""
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


def test_a_direct_session_moves_in_with_a_bar(
    terminal: Run, tmp_path: Path, server: DevServer
) -> None:
    """A sign of life while the listing is read, then how far it is; piped, the result alone."""
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


def test_an_import_with_lines_that_cannot_be_read_says_so_by_its_code(tmp_path: Path) -> None:
    """1, after everything else was brought in."""
    (tmp_path / "x.jsonl").write_text('{"a":1}\n{"b":\n')
    done = piped(tmp_path, "import", tmp_path / "x.jsonl", "-s", "x", "-j", tmp_path / "j.db")
    assert done.returncode == 1
    assert done.stdout == "x: 1 item added, 1 could not be read (the first: number 2)\n"


def test_compact_gives_space_back(tmp_path: Path, journal: Path, server: DevServer) -> None:
    """What a clear left behind goes; the report says how much."""
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


def test_a_server_started_with_faults_fails_as_told(terminal: Run, tmp_path: Path) -> None:
    """Every kind of the fault plan by its name; a kind that is none is called wrongly."""
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


def test_a_server_keeps_its_data_in_no_file_of_somebody_else(tmp_path: Path, journal: Path) -> None:
    """A session's journal, a text, a directory: each is left as it was, and said in a line."""
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
def test_a_fault_that_makes_no_sense_is_called_wrongly(
    tmp_path: Path, fault: str, complaint: str
) -> None:
    """Before the server listens: a fault that never fires would look like a server without one."""
    done = piped(tmp_path, "devserver", "--port", "0", "--fault", fault)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_every_command_explains_itself(tmp_path: Path) -> None:
    """`--help` of each, and the exit codes at the top."""
    top = piped(tmp_path, "--help")
    assert "130 interrupted" in " ".join(top.stdout.split())
    names = "status show sync search doctor audit parked export import compact devserver".split()
    for name in names:
        assert piped(tmp_path, name, "--help").returncode == 0
        assert name in top.stdout


def test_looking_loads_little(tmp_path: Path, journal: Path) -> None:
    """No command loads what it does not use: the client library is for those that ask a server."""
    import subprocess
    import sys

    code = (
        "import sys; from cached_session.cli.app import app; "
        f"app(['status', '-j', {str(journal)!r}], standalone_mode=False); "
        "print([name for name in ('dakera', 'starlette', 'agents') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# -- where it is written to ----------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize(
    "command",
    [("status",), ("status", "--json"), ("show", "alice", "--raw"), ("export", "alice", "-")],
)
def test_output_that_cannot_be_written_is_told_as_that(
    tmp_path: Path, journal: Path, command: tuple[str, ...]
) -> None:
    """In one line that blames the output and not the journal."""
    with Path("/dev/full").open("w") as full:
        done = piped(tmp_path, *command, "-j", journal, stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "cached-session: standard output cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize("command", [("show", "long", "--raw"), ("export", "long", "-")])
def test_a_reader_that_has_enough_is_no_failure_worth_a_word(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    """As `| head -1` leaves: nothing on standard error."""
    write(tmp_path / "long.db", "long", TURN * 100)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as left:
        done = piped(tmp_path, *command, "-j", tmp_path / "long.db", stdout=left)
    assert done.stderr == ""


# -- a damaged journal ---------------------------------------------------------------------------


def test_compact_sets_a_damaged_journal_aside_and_status_says_what_was_lost(
    tmp_path: Path,
) -> None:
    """Also where the damage is in what no other command happens to read."""
    journal = tmp_path / "agent.db"
    write(journal, "alice", [{"role": "user", "content": f"{n} " + "x" * 3000} for n in range(99)])
    with closing(sqlite3.connect(journal)) as conn:
        (root,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'items'").fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
    data = bytearray(journal.read_bytes())
    # Somewhere among the words, far behind every root.
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
    assert "losses: item" in after.stdout
    assert piped(tmp_path, "compact", "-j", journal).returncode == 0
    assert "damaged: " not in piped(tmp_path, "doctor", "-j", journal).stdout
