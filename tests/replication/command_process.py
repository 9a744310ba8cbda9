"""``command_process.py JOURNAL URL``: a process on a journal that runs commands, several at a time.

Each line of JSON on standard input is a call, and each line on standard output is its answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from typing import Any

import anyio

from cached_session import CachedSession, CachedSessionError
from tests.replication.devices import QUICK, SESSION, text_message, texts

OPTIONS = replace(QUICK, durability="full", request_timeout=3.0, hole_patience=1.0)


async def answer(local: CachedSession, confirmed: CachedSession, do: str, words: list[Any]) -> Any:
    if do == "add":
        return await local.add_items([text_message(word) for word in words])
    if do == "items":
        return texts(await local.get_items())
    if do in ("pop", "claim"):
        item: Any = await (confirmed if do == "claim" else local).pop_item()
        return item and item["content"]
    if do == "drop":
        return await local.drop_parked(*(found.dot for found in await local.parked()))
    if do == "replace":
        entries = await local.entries()
        await local.replace_items(entries[: len(entries) - words[0]], [text_message(words[1])])
        return [entry.item["content"] for entry in entries[: len(entries) - words[0]]]
    if do == "writers":
        return sorted({entry.writer for entry in await local.entries()})
    if do == "status":
        status = local.status()
        return [status.pending, status.parked, status.absent, status.conflicts, status.unreadable]
    found = await getattr(local, {"clear": "clear_session", "retry": "retry_parked"}.get(do, do))(
        *([20.0] if do == "sync" else [])
    )
    return found if isinstance(found, int) else None


async def main(journal: str, url: str) -> None:
    def session(pop: Any) -> CachedSession:
        return CachedSession.from_url(SESSION, url=url, journal=journal, pop=pop, options=OPTIONS)

    async with session("local") as local, session("confirmed") as confirmed:

        async def run_command(line: bytes) -> None:
            number, do, words = json.loads(line)
            try:
                told = [number, await answer(local, confirmed, do, words)]
            except CachedSessionError as error:
                told = [number, {"error": type(error).__name__}]
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()

        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        async with anyio.create_task_group() as tasks:
            while line := await lines.readline():
                tasks.start_soon(run_command, line)


asyncio.run(main(sys.argv[1], sys.argv[2]))
