"""Start other processes on the same journal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START = """
import asyncio, os, sys
from cached_session import CachedSession, JournalError
from cached_session.journal.recovery import replace_file

path = sys.argv[1]

def said(*words):
    return [{"role": "user", "content": word} for word in words]

async def add(session, word):
    for _ in range(50):
        try:
            return await session.add_items(said(word))
        except JournalError:
            await asyncio.sleep(0.01)
    raise SystemExit("it never went on")

async def words(session):
    return [item["content"] for item in await session.get_items()]

def tell(*values):
    print(*values, flush=True)

def wait():
    assert sys.stdin.readline()
"""


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start a process that runs the body of a coroutine with the imports of `START`."""
    body = "".join(f"    {line}\n" for line in code.splitlines())
    script = f"{START}\nasync def main():\n{body}\nasyncio.run(main())\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def resume(process: subprocess.Popen[str]) -> None:
    """Let a waiting child go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def journal_of_killed_process(path: Path, *words: str) -> None:
    """Return the files of a journal whose process was killed after it had added these messages."""
    code = (
        "session = CachedSession('s', journal=path)\n"
        "for word in sys.argv[2:]:\n"
        "    await session.add_items(said(word))\n"
        "tell('ready')\n"
        "wait()\n"
    )
    with child(code, path, *words) as process:
        assert wait_for_line(process) == "ready"
