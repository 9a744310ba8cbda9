"""The first block of the README runs as a visitor pastes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from markdown_it import MarkdownIt

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_first_block_runs_by_itself(tmp_path: Path) -> None:
    """The block runs in an empty directory, without preparation and without a warning. test_docs
    runs the others."""
    first = next(token for token in MarkdownIt().parse(README) if token.type == "fence")
    assert first.info == "python"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", first.content],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1 pending\n0 pending, 1 items\n"), done.stderr
