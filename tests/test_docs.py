"""Every Python and shell block of the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cached_session.devserver import DevServer

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"```(?P<kind>python|bash|sh|shell|console)\b[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
SERVER = "http://localhost:3000"
"""Stands for a server: blocks get a development server of their page instead, on a free port."""
MOST_NOT_RUN = 12


def blocks(page: Path) -> list[re.Match[str]]:
    """What a reader may paste."""
    return list(FENCE.finditer(page.read_text(encoding="utf-8")))


def run(kind: str, code: str, place: Path) -> subprocess.CompletedProcess[str]:
    """One block, as its reader runs it: a program, or commands in a shell."""
    command = [sys.executable, "-W", "error", "-c"] if kind == "python" else ["bash", "-euc"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, code],
        cwd=place,
        env={**os.environ, "PATH": path, "PYTHONWARNINGS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda p: p.relative_to(DOCS).as_posix()
)
def test_a_pages_code_runs(page: Path, tmp_path: Path) -> None:
    """Its blocks share a directory, as a reader's do, and end well without a warning."""
    with DevServer() as server:
        for block in blocks(page):
            if block["reason"]:
                continue
            done = run(block["kind"], block["code"].replace(SERVER, server.url), tmp_path)
            assert done.returncode == 0, f"{block['code']}\n{done.stdout}{done.stderr}"


def test_few_blocks_are_not_run() -> None:
    """Those that need what a test has not (Docker, a cluster, a registry) say so, and are few."""
    reasons = [block["reason"] for page in PAGES for block in blocks(page) if block["reason"]]
    assert all(len(reason) > 8 for reason in reasons)
    assert len(reasons) <= MOST_NOT_RUN


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    """The runner tells a good end from a bad one, in both languages."""
    assert run("python", "raise SystemExit(3)", tmp_path).returncode == 3
    assert run("bash", "false; true", tmp_path).returncode != 0
