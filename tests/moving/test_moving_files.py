"""Exports and imports as JSON lines, and imports of a Dakera server's export."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dakera import AsyncDakeraClient

from cached_session import (
    CachedSession,
    ImportProgress,
    InvalidArgument,
    SessionCache,
    SyncError,
    export_jsonl,
    import_dakera_export,
    import_dakera_session,
    import_jsonl,
)
from cached_session.devserver import DevServer
from cached_session.engine.importer import BATCH_ITEMS
from cached_session.history.ids import agent_id

HARD: list[Any] = [
    {"role": "user", "content": "line\nbreak \u2028 \x00 \x1b[31m"},
    {"big": 2**80, "small": -(2**70), "float": 1e-7, "half": 0.5},
    {"lone": "\ud800", "z": 1, "a": 2},
    {"nested": ["a list", None, True, {"a string": 0}]},
]
DIRECT = "agents-session-user-1"


@pytest.fixture
def server() -> Iterator[DevServer]:
    with DevServer() as running:
        yield running


async def test_an_exported_session_is_imported_and_exported_byte_for_byte(
    tmp_path: Path,
) -> None:
    """This holds for any JSON value: big integers, lone surrogates, key order, line breaks inside
    strings."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    async with CachedSession("a", journal=":memory:") as session:
        await session.add_items(HARD)
        assert await export_jsonl(session, first) == len(HARD)
    assert len(first.read_bytes().splitlines()) == len(HARD)
    async with CachedSession("b", journal=":memory:") as session:
        report = await import_jsonl(session, first)
        assert report.added == len(HARD)
        assert await session.get_items() == HARD
        await export_jsonl(session, second)
    assert second.read_bytes() == first.read_bytes()


async def test_an_imported_line_keeps_its_spelling(tmp_path: Path) -> None:
    """Spaces, escapes and the spelling of numbers are exported as they were in the line."""
    text = b'{ "b" : 1.0e2, "a":"\\u00fc" }\n{"n":[1 , 2]}\n'
    file = tmp_path / "talk.jsonl"
    file.write_bytes(text)
    async with CachedSession("a", journal=":memory:") as session:
        await import_jsonl(session, file)
        assert await session.get_items() == [{"b": 100.0, "a": "ü"}, {"n": [1, 2]}]
        target = io.BytesIO()
        await export_jsonl(session, target)
    assert target.getvalue() == text


async def test_lines_that_are_not_json_are_left_out_and_counted(tmp_path: Path) -> None:
    """A line cut off by a crash does not stop the import of the others."""
    file = tmp_path / "talk.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a":1}\r\n\n{"b":NaN}\n\xff\n{"c":\n{"d":2}')
    async with CachedSession("a", journal=":memory:") as session:
        report = await import_jsonl(session, file)
        assert (report.added, report.unreadable) == (2, 3)
        assert await session.get_items() == [{"a": 1}, {"d": 2}]
        assert (await import_jsonl(session, file)).added == 0


async def test_an_export_is_complete_or_missing_and_private(tmp_path: Path) -> None:
    """Only its owner can read the file, and a target that cannot be written leaves nothing
    behind."""
    async with CachedSession("a", journal=":memory:") as session:
        await session.add_items([{"role": "user", "content": "x"}])
        await export_jsonl(session, tmp_path / "a.jsonl")
        assert stat.S_IMODE((tmp_path / "a.jsonl").stat().st_mode) == 0o600
        with pytest.raises(InvalidArgument, match="nowhere"):
            await export_jsonl(session, tmp_path / "nowhere" / "a.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


class FullStream(io.RawIOBase):
    """A stream that refuses every write."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_an_error_of_the_stream_is_not_a_journal_error(tmp_path: Path) -> None:
    """The caller gets the exception of the stream unchanged."""
    async with CachedSession("a", journal=tmp_path / "a.db") as session:
        await session.add_items([{"role": "user", "content": "x"}])
        with pytest.raises(OSError, match="No space left") as caught:
            await export_jsonl(session, FullStream())
        assert caught.type is OSError
        assert len(await session.get_items()) == 1


async def test_a_named_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """A pipe or a device is not replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with CachedSession("a", journal=":memory:") as session:
        await session.add_items([{"role": "user", "content": "x"}])
        reading = asyncio.create_task(asyncio.to_thread(pipe.read_bytes))
        assert await export_jsonl(session, pipe) == 1
        assert json.loads(await reading) == {"role": "user", "content": "x"}
    assert pipe.is_fifo()


async def store_directly(url: str, agent: str, numbers: list[int]) -> None:
    """Store each item directly on the server, as the SDK's Dakera session does."""
    client = AsyncDakeraClient(url)
    for number in numbers:
        item = {"role": "user", "content": f"direct {number}"}
        await client.store_memory(
            agent_id=agent,
            content=json.dumps(item, separators=(",", ":")),
            memory_type="episodic",
            importance=0.6,
            metadata={"seq": number, "oai_session_id": "user-1"},
            tags=["oai-session"],
        )
    await client.close()


def said(items: list[Any]) -> list[str]:
    return [item["content"] for item in items]


async def test_a_direct_session_is_imported_in_the_order_of_its_numbers(server: DevServer) -> None:
    """The session has several pages, stored out of order, one repeated store, and a memory that is
    not an item. A second import adds nothing."""
    await store_directly(server.url, DIRECT, [3, 1, 2, 2, 0, *range(4, 620)])
    client = AsyncDakeraClient(server.url)
    await client.store_memory(agent_id=DIRECT, content="a note of somebody else")
    await client.close()
    session = CachedSession.from_url("user-1", url=server.url, journal=":memory:")
    async with session:
        report = await import_dakera_session(session, DIRECT)
        assert (report.added, report.skipped) == (620, 1)
        assert said(await session.get_items()) == [f"direct {number}" for number in range(620)]
        assert (await import_dakera_session(session, DIRECT)).added == 0
        await store_directly(server.url, DIRECT, [620])
        assert (await import_dakera_session(session, DIRECT)).added == 1


async def test_a_direct_session_with_colons_in_its_namespace_is_imported(tmp_path: Path) -> None:
    """Such a session names its namespace by prefix, colon and session id on a server without rules
    for names. It is imported from the server and from its export."""
    with DevServer(version="0.12.0") as server:
        await store_directly(server.url, "agents:session:user-1", [1, 0, *range(2, 700)])
        where = {"url": server.url, "journal": tmp_path / "one.db"}
        async with CachedSession.from_url("user-1", **where) as session:
            report = await import_dakera_session(session, "agents:session:user-1")
            assert report.added == 700
            assert said(await session.get_items()) == [f"direct {number}" for number in range(700)]
        file = exported(server, "agents:session:user-1", tmp_path / "export.jsonl")
    async with CachedSession("user-1", journal=":memory:") as session:
        assert (await import_dakera_export(session, file)).added == 700


@pytest.mark.parametrize("count", [3, 500, 700, 1000])
async def test_a_server_without_offsets_gives_everything_or_an_error(count: int) -> None:
    """An old server lists the newest thousand again for every offset. The import stops there, and
    reports more memories as an error."""
    with DevServer(version="0.11.108") as server:
        await store_in_batches(server.url, count)
        async with CachedSession.from_url("u", url=server.url, journal=":memory:") as session:
            if count < 1000:
                assert (await import_dakera_session(session, DIRECT)).added == count
                return
            with pytest.raises(SyncError, match="import_dakera_export"):
                await import_dakera_session(session, DIRECT)
            assert await session.get_items() == []


async def store_in_batches(url: str, count: int) -> None:
    """Store many memories together, newest last, as `store_directly` would one by one."""
    client = AsyncDakeraClient(url)
    memories = [
        {
            "content": json.dumps({"role": "user", "content": f"direct {number}"}),
            "metadata": {"seq": number},
            "tags": ["oai-session"],
        }
        for number in range(count)
    ]
    body = {"agent_id": DIRECT, "memories": memories}
    await client._request("POST", "/v1/memories/store/batch", body)
    await client.close()


async def test_a_killed_import_from_the_server_is_finished_by_the_next(
    server: DevServer, tmp_path: Path
) -> None:
    """After a kill at its first progress, a second run imports the rest once."""
    count = BATCH_ITEMS * 2 + 5
    await store_in_batches(server.url, count)
    script = Path(__file__).with_name("other_direct_import.py")
    command = [sys.executable, script, tmp_path / "journal.db", server.url, DIRECT]
    done = await asyncio.to_thread(subprocess.run, command, check=False)
    assert done.returncode == -signal.SIGKILL
    seen: list[ImportProgress] = []
    where = {"url": server.url, "journal": tmp_path / "journal.db"}
    async with CachedSession.from_url("talk", **where) as session:
        report = await import_dakera_session(session, DIRECT, on_progress=seen.append)
        assert (report.known, report.added) == (BATCH_ITEMS, count - BATCH_ITEMS)
        assert said(await session.get_items()) == [f"direct {number}" for number in range(count)]
    assert (seen[-1].done, seen[-1].total) == (count, count)


async def test_imported_and_cleared_items_stay_cleared(server: DevServer) -> None:
    """The mark of an import survives a clear: a second import adds nothing, and an import into
    another session adds everything."""
    await store_directly(server.url, DIRECT, [0, 1])
    async with SessionCache(":memory:", url=server.url) as cache:
        session = cache.session("user-1")
        await import_dakera_session(session, DIRECT)
        await session.clear_session()
        report = await import_dakera_session(session, DIRECT)
        assert (report.added, report.known) == (0, 2)
        assert await session.get_items() == []
        assert (await import_dakera_session(cache.session("again"), DIRECT)).added == 2


def exported(server: DevServer, agent: str, to: Path) -> Path:
    url = f"{server.url}/v1/export?agent_id={agent}&format=jsonl"
    with urllib.request.urlopen(url) as answer:
        to.write_bytes(answer.read())
    return to


async def test_a_server_and_its_export_are_the_same_source(
    server: DevServer, tmp_path: Path
) -> None:
    """Items that were imported from the server are not imported again from the file."""
    await store_directly(server.url, DIRECT, [1, 0, 2])
    file = exported(server, DIRECT, tmp_path / "export.jsonl")
    async with CachedSession.from_url("user-1", url=server.url, journal=":memory:") as session:
        assert (await import_dakera_export(session, file)).added == 3
        assert said(await session.get_items()) == ["direct 0", "direct 1", "direct 2"]
        assert (await import_dakera_session(session, DIRECT)).added == 0


async def test_an_export_of_our_session_is_applied_like_a_listing(
    server: DevServer, tmp_path: Path
) -> None:
    """Order, pops and clears are applied without the server, and applying them again changes
    nothing."""
    async with CachedSession.from_url("talk", url=server.url, journal=":memory:") as session:
        await session.add_items([{"role": "user", "content": "gone"}])
        await session.clear_session()
        await session.add_items([{"role": "user", "content": text} for text in "abcd"])
        await session.pop_item()
        await session.sync(10)
        wanted = await session.get_items()
        ranks = [entry.stamp for entry in await session.entries()]
    file = exported(server, agent_id("talk"), tmp_path / "export.jsonl")
    async with CachedSession("talk", journal=":memory:") as restored:
        assert (await import_dakera_export(restored, file)).added == len(wanted)
        assert await restored.get_items() == wanted
        assert [entry.stamp for entry in await restored.entries()] == ranks
        assert (await import_dakera_export(restored, file)).added == 0
    async with CachedSession("another", journal=":memory:") as other:
        assert (await import_dakera_export(other, file)).added == 0
        assert await other.get_items() == []
