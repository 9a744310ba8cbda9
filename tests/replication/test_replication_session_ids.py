"""Malicious session ids, in the journal, the server, another device, URLs, logs and terminals."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import subprocess
import sys
import unicodedata
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cached_session import SessionCache
from cached_session.devserver import DevServer
from cached_session.history.ids import agent_id
from tests.replication.devices import BATCH, PATIENCE, QUICK, text_message

IDS = {
    "path up": "../../../../etc/passwd",
    "path of another system": "..\\..\\C:\\Windows\\x",
    "absolute path": "/etc/passwd",
    "dots": "..",
    "controls": "a\x01\x07\x08\x1b[2J\x7f\x9bm",
    "null": "a\x00b",
    "lines": "x\r\nX-Evil: 1\r\n\r\nGET / HTTP/1.1",
    "line separators": "a\u2028b\u2029c\x85d",
    "quotes": "'\"`''\"\"",
    "SQL": "x'); DROP TABLE ops; DELETE FROM items; --",
    "LIKE": "%_%",
    "percent": "%2e%2e%2f%00%ff",
    "query": "a?limit=1&offset=9#frag;x",
    "other namespace": "_dakera_agent_victim",
    "reserved": "_dakera_embedding_models",
    "derived": "mem_s" + "0" * 24,
    "our own prefix": agent_id("talk"),
    "very long": "long" * 5000,
    "very long, not ASCII": "日" * 3000,
    "right to left": "\u202egnp.exe\u202c\u2066x",
    "zero width": "al\u200bice\u2060\ufeff\u00ad",
    "look-alike": "аlice",
    "not composed": "e\u0301",
    "composed": "\u00e9",
    "surrogate": "\ud800x\udfff",
    "astral": "👩‍👩‍👧\U000e0001",
    "space": " ",
    "format": "%s%(x)s{0.__class__}{}",
    "markup": "<script>[bold red]&amp;",
    "upper": "ALICE",
    "lower": "alice",
}
LEGAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,240}")
SAFE_PATH = re.compile(r"[A-Za-z0-9_.:/*-]+")


def _unsafe(text: str) -> set[str]:
    """Return the characters that move a cursor, break a line, or hide or reorder text."""
    return {
        sign
        for sign in text
        if sign != "\n" and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }


def test_unnormalised_ids_share_no_history() -> None:
    """Ids are compared character by character, without normalisation: each has its own
    namespace."""
    agents = [agent_id(name) for name in IDS.values()]
    assert len({agent.lower() for agent in agents}) == len(IDS)
    assert all(LEGAL.fullmatch(agent) for agent in agents)


async def test_hostile_ids_work_and_cause_no_harm(
    server: DevServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every session is written, popped from, pushed, and read by another device through a real
    server. Each has its own items, no file is created elsewhere, no request path contains a special
    character, and no log line either, also for failures."""
    caplog.set_level(logging.DEBUG)
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    server.faults.status(503, route=BATCH, count=5, retry_after=0)
    server.faults.status(403, route="PUT *")  # each session is reported as unguarded
    server.faults.status(500, route="GET *", count=3)
    async with SessionCache(home / "j.db", url=server.url, options=QUICK) as cache:
        for kind, name in IDS.items():
            session = cache.session(name, hydrate=False)
            await session.add_items([text_message(kind), text_message("popped")])
            await session.pop_item()
            assert [entry.item for entry in await session.search("popped")] == []
        await cache.flush(timeout=PATIENCE)
        assert {info.session_id for info in await cache.sessions()} == set(IDS.values())
        assert set(cache.status().sessions) == set(IDS.values())
    async with SessionCache(other / "j.db", url=server.url, options=QUICK) as cache:
        for kind, name in IDS.items():
            session = cache.session(name)
            await session.sync(timeout=PATIENCE)
            assert await session.get_items() == [text_message(kind)], kind
    assert set(server.agents()) == {agent_id(name) for name in IDS.values()}
    for request in server.requests:
        assert SAFE_PATH.fullmatch(urlsplit(request.path).path), request.path
    assert {path.name for path in home.iterdir()} <= {"j.db", "j.db.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"home", "other"}
    with closing(sqlite3.connect(home / "j.db")) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("SELECT count(*) FROM sessions").fetchone() == (len(IDS),)
    ours = [r for r in caplog.records if r.name.startswith("cached_session")]
    messages = [record.getMessage() for record in ours]
    for name in IDS.values():
        assert any(repr(name) in message for message in messages), name
    for message in messages:
        assert not _unsafe(message), message
        assert "\n" not in message


SCREENS = [["status"], ["status", "--json"], ["search", "here"], ["doctor"]]


@pytest.mark.parametrize("command", SCREENS, ids=" ".join)
async def test_hostile_ids_are_escaped_on_a_terminal(tmp_path: Path, command: list[str]) -> None:
    """The command line shows each id on its own line, without characters that a terminal would
    interpret or hide."""
    async with SessionCache(tmp_path / "j.db") as cache:
        for name in IDS.values():
            await cache.session(name).add_items([text_message(f"here {name}")])
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "cached_session", *command, "-j", str(tmp_path / "j.db")],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    joiners = {"\u200d"} if command == ["search", "here"] else set()  # an emoji in a text
    assert not _unsafe(done.stdout) - joiners
    if command == ["status"]:
        assert "DROP TABLE ops" in done.stdout
        assert "\\u202egnp.exe" in done.stdout
