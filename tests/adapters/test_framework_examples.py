"""The examples and the page about frameworks, run as their readers run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import test_docs

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "frameworks"
DROPPED = "ignore:.*RunnableWithMessageHistory:DeprecationWarning"

SAID = {
    "langchain_chat": ["offline: 1 + 1 pending", "human: We go to Oslo", "synced: 0 + 0 pending"],
    "llama_index_chat": ["chats: ada, bob", "removed: assistant", "ada: 1 messages, the first: My"],
    "pydantic_ai_chat": ["offline: I was given 3", "laptop: I was given 5 messages."],
    "strands_chat": ["offline: I was given 1", "laptop: I was given 3", "seat is at the window"],
}


def test_every_example_is_run() -> None:
    """Each example file is run below."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_as_documented(name: str, tmp_path: Path) -> None:
    """An example succeeds in an empty directory without a warning of this library, and leaves no
    file there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", DROPPED, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in SAID[name] if line not in done.stdout] == [], done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_page_about_frameworks_runs(tmp_path: Path) -> None:
    """Every block of the page runs from top to bottom with the real frameworks."""
    test_docs.run_page(test_docs.DOCS / "frameworks.md", tmp_path)
