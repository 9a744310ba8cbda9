"""Some seeds of the simulation. `make soak` runs more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.run import report
from tests.simulation.schedule import make
from tests.simulation.simulation import run

ROOT = Path(__file__).parents[2]
SEEDS = 16
"""The same ones each time. `make soak` goes on for as long as it is told to."""
PARTS = 4
"""Tests that share them, so that several processes can."""


@pytest.mark.promise(number=3)
@pytest.mark.promise(number=4)
@pytest.mark.slow
@pytest.mark.parametrize("first", range(PARTS))
def test_every_seed_ends_in_one_history(first: int) -> None:
    """Replicas lose nothing, repeat nothing and agree in the end, under all faults of a seed."""
    for seed in range(first, SEEDS, PARTS):
        outcome = run(make(seed))
        assert outcome.error is None, report(seed, 60.0)


@pytest.mark.slow
def test_a_seed_is_reproducible() -> None:
    """The same seed gives the same trace, also in a process with other hashes and addresses."""
    code = (
        "from tests.simulation.schedule import make\n"
        "from tests.simulation.simulation import run\n"
        "print(*[run(make(seed)).hash for seed in range(3)])"
    )
    traces = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashseed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashseed in ("1", "2")
    }
    traces.add(" ".join(run(make(seed)).hash for seed in range(3)) + "\n")
    assert len(traces) == 1
