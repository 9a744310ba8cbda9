"""Create the terminal screens of the documentation: run the real commands and draw them as SVG.

    python docs/screens.py        # or: make screens

The development server and the journals of two devices use a temporary directory. The commands run
in a pseudo-terminal, and Rich draws their unchanged output.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from cached_session import CachedSession, SyncError
from cached_session.devserver import DevServer

HERE = Path(__file__).parent / "screens"
PLACE = Path("/tmp/agent")  # noqa: S108 - short, because the screens show it; must not exist yet
WIDTH = 96
TURN: list[Any] = [
    {"role": "user", "content": "Is there a direct flight from Seattle to Detroit on May 20?"},
    {
        "type": "function_call",
        "call_id": "c1",
        "name": "search_direct_flight",
        "arguments": '{"origin":"SEA","destination":"DTW","date":"2024-05-20"}',
    },
    {
        "type": "function_call_output",
        "call_id": "c1",
        "output": '[{"flight":"HAT088","price":144}]',
    },
    {"role": "assistant", "content": "Yes: HAT088, for 144 dollars in economy. Shall I book it?"},
    {"role": "user", "content": "Please do, with one bag."},
]
MOVES = re.compile(r"\x1b\[(\d*)([ABGK])|\x1b\[\?\d+[hl]|(\r)|(\n)|(\x1b\[[0-9;]*m)|([^\x1b\r\n]+)")


async def converse(journal: str, name: str, items: list[Any], url: str | None = None) -> None:
    """Write items to a session on one device."""
    if url is None:
        async with CachedSession(name, journal=PLACE / journal) as session:
            await session.add_items(items)
        return
    async with CachedSession.from_url(name, url=url, journal=PLACE / journal) as session:
        for item in items:
            await session.add_items([item])
        await session.sync(20)


async def refused(journal: str, name: str, url: str) -> None:
    """Write an item that the server refuses permanently."""
    async with CachedSession.from_url(name, url=url, journal=PLACE / journal) as session:
        await session.add_items([{"role": "user", "content": "Everything that we ever ate."}])
        with contextlib.suppress(SyncError):
            await session.flush(20)


def run(*arguments: str) -> str:
    """Return the final screen of a command on a terminal."""
    ours, theirs = pty.openpty()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(PLACE),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "COLUMNS": str(WIDTH),
        "LINES": "40",
        "TZ": "UTC",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "cached_session", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=PLACE,
        env=environment,
    )
    os.close(theirs)
    data = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:
            more = b""  # Linux: the other end is closed
        if not more:
            break
        data += more
    os.close(ours)
    process.wait()
    return "\n".join(last_frame(data.decode()))


def last_frame(text: str) -> list[str]:
    """Return the lines of the final screen. Progress bars overwrite their own lines."""
    lines, row, fresh = [""], 0, True
    for found in MOVES.finditer(text):
        count, move, back, down, colour, words = found.groups()
        if back:
            fresh = True
        elif down:
            row, fresh = row + 1, True
            lines += [""] * (row + 1 - len(lines))
        elif move == "A":
            row, fresh = max(0, row - int(count or 1)), True
        elif move == "K":
            lines[row] = ""
        elif colour or words:
            lines[row] = ("" if fresh else lines[row]) + (colour or words)
            fresh = False
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def draw(name: str, *arguments: str) -> None:
    """Run a command and write its screen to an SVG file."""
    printed = run(*arguments)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(printed))
    # Without the fonts that Rich would have a reader's browser fetch from elsewhere.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    title = " ".join(["cached-session", *arguments])
    svg = console.export_svg(title=title, code_format=form, unique_id=f"cs-{name}")
    HERE.mkdir(exist_ok=True)
    (HERE / f"{name}.svg").write_text(svg.rstrip() + "\n", encoding="utf-8")
    print(f"{name}.svg: {len(printed.splitlines())} lines")


def main() -> None:
    """Sync two devices, and draw a screen at each step."""
    PLACE.mkdir(mode=0o700)
    try:
        with DevServer(port=3000) as server:
            asyncio.run(converse("laptop.db", "trip-to-detroit", TURN, server.url))
            history = [{"role": "user", "content": f"note {number}"} for number in range(1200)]
            asyncio.run(converse("laptop.db", "notes", history[:40], server.url))
            asyncio.run(converse("phone.db", "trip-to-detroit", TURN[:1]))
            asyncio.run(converse("phone.db", "shopping", history[:3]))
            draw("doctor", "doctor", "--journal", "phone.db", "--url", server.url)
            sync = ["sync", "--journal", "phone.db", "--url", server.url]
            draw("sync", *sync, "--session", "trip-to-detroit", "--session", "shopping",
                 "--session", "notes")  # fmt: skip
            draw("status", "status", "--journal", "phone.db")
            draw("show", "show", "trip-to-detroit", "--journal", "laptop.db")
            server.faults.status(
                422,
                message="the content is longer than this server takes",
                count=1,
                route="POST /v1/memories/store/batch",
            )
            asyncio.run(refused("phone.db", "shopping", server.url))
            draw("parked", "parked", "list", "--journal", "phone.db")
            server.stop()
            asyncio.run(converse("phone.db", "trip-to-detroit", TURN[-1:]))
            run(*sync, "--timeout", "1")
            draw("trouble", "doctor", "--journal", "phone.db", "--url", server.url)
    finally:
        shutil.rmtree(PLACE)


if __name__ == "__main__":
    main()
