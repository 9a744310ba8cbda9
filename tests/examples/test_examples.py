"""Each example runs as its reader would run it, and prints the documented output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

SAID: dict[str, list[str]] = {
    "quickstart": ["I have heard 1 from you.", "I have heard 2 from you."],
    "two_devices": ["offline: 2 + 1 pending", "synced: 0 + 0 pending"],
    "confirmed_pop": ["6 tasks, each handed out once", "nothing handed out: PopUnconfirmed"],
    "encrypted": ["holds a readable word", "I have heard 2 from you."],
    "migrate_sqlite_session": ["second run: ", "I have heard 2 from you."],
    "offline_first": ["SIGKILL to process", "both show one history", "All checks passed."],
}


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_as_documented(name: str, tmp_path: Path) -> None:
    """An example succeeds in an empty directory, without a warning, and leaves no file there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in SAID[name] if line not in done.stdout] == []
    assert "FAILED" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_two_devices_example_keeps_runs_together(tmp_path: Path) -> None:
    """Items that the phone added separately are contiguous, after the shared ones."""
    command = [sys.executable, str(EXAMPLES / "two_devices.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    words = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert words[0] == "phone: we go to Oslo"
    train = words.index("phone: by train")
    assert words[train : train + 2] == ["phone: by train", "phone: at nine"]
    assert len(words) == 4
