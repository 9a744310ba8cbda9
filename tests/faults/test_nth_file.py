"""The Nth file operation fails, is cut short, or is the last that a process lives to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.files import SCENES
from tests.faults.shim import FAULTS, build

STRIDE = 193
"""Every so many operations: `make faults` takes them all."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = build(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("no C compiler (cc) is here to build the fault library; CI installs one")
    return library


@pytest.mark.promise(number=1)
@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_whichever_file_operation_fails_nothing_acknowledged_is_lost(
    library: Path, scene: str
) -> None:
    """Each call succeeds whole or is a JournalError that leaves nothing; once the cause is gone the
    same session goes on; another finds the same, and the file sound. So too where a process is
    killed at that operation."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults.files", "--scene", scene, "--stride", str(STRIDE)],
        cwd=Path(__file__).parents[2],
        env={"LD_PRELOAD": str(library), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-4000:]
    lines = ran.stdout.splitlines()
    assert [line[9:35].strip() for line in lines[:-1]] == list(FAULTS)
    assert lines[-1].endswith("0 went wrong")
