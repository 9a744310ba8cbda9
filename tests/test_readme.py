"""The README's code works when it is pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def test_the_readme_shows_code() -> None:
    """There is something to paste."""
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {n + 1}" for n in range(len(BLOCKS))])
def test_a_block_runs(block: str, tmp_path: Path) -> None:
    """Each block runs as a program of its own, in an empty directory, without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
