"""Modules that a user could write, under two type checkers.

This folder must have no `__init__.py`: a script in `tests/` would import it in place of `typing`.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CALLS = sorted(str(path) for path in HERE.glob("*_*.py") if path.name != Path(__file__).name)


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_calls_have_the_types_that_a_user_sees(checker: str) -> None:
    """A strict checker finds each type that is asserted, and each mistake that is marked."""
    if checker == "pyright" and (
        importlib.util.find_spec("pyright") is None or shutil.which("node") is None
    ):
        pytest.skip("pyright needs Node.js")
    arguments = {
        "mypy": CALLS,
        "pyright": ["--project", str(HERE), "--pythonpath", sys.executable],
    }[checker]
    done = subprocess.run(
        [sys.executable, "-m", checker, *arguments],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
