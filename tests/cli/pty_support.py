"""Run the command in a pseudo-terminal, or with pipes."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
PATIENCE = 120.0


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment without the variables of the test run."""
    kept = {
        name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH")
    }
    return {
        **kept,
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "COLUMNS": "100",
        "LINES": "40",
        **more,
    }


class Terminal:
    """One run of the command with a terminal at all three ends."""

    def __init__(self, home: Path, *arguments: object, **env: str) -> None:
        self._fd, child = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cached_session", *map(str, arguments)],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment(home, **env),
            start_new_session=True,
            # A background process of a shell ignores Ctrl-C, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        os.close(child)

    @property
    def plain(self) -> str:
        """Return the output without colours and cursor movements."""
        return ANSI.sub("", self.text)

    def wait(self, until: Callable[[str], bool] | None = None) -> int | None:
        """Read until the text matches, or to the end, and return the exit code if it has ended."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if until is not None and until(self.plain):
                return None
            ready, _, _ = select.select([self._fd], [], [], 0.05)
            if ready:
                try:
                    data = os.read(self._fd, 65536)
                except OSError:
                    data = b""  # Linux: the other end is closed
                if not data:
                    return self.process.wait(PATIENCE)
                self.text += data.decode(errors="replace")
            elif self.process.poll() is not None:
                return self.process.returncode
        raise AssertionError(f"not in {PATIENCE} s; so far: {self.plain!r}")

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.wait()
        assert code is not None
        return code

    def close(self) -> None:
        """Kill the process if a failed test left it running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)


def piped(
    home: Path, *arguments: object, stdout: IO[str] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command once with pipes, or with ``stdout`` as its output."""
    return subprocess.run(
        [sys.executable, "-m", "cached_session", *map(str, arguments)],
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=PATIENCE,
        env=environment(home, **env),
    )
