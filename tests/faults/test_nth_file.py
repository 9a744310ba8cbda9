"""A session survives a failure of the Nth file operation, a short write, and a kill there."""

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
def test_a_failed_file_operation_loses_nothing_acknowledged(library: Path, scene: str) -> None:
    """Each call succeeds completely or raises a JournalError without an effect. Once the fault is
    gone, the same session works, another one finds the same items, and the file is sound. The same
    holds when the process is killed at that operation."""
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
