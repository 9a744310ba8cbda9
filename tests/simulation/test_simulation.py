"""Some seeds of the simulation. `make soak` runs more."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation.run import report
from tests.simulation.schedule import make
from tests.simulation.simulation import run

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("SIMULATION_SECONDS", "60"))
MOST = 10_000


@pytest.mark.promise(number=3)
@pytest.mark.promise(number=4)
@pytest.mark.slow
def test_every_seed_ends_in_one_history() -> None:
    """Replicas lose nothing, repeat nothing and agree in the end, under all faults of a seed."""
    until, seed = time.monotonic() + SECONDS, 0
    while time.monotonic() < until and seed < MOST:
        outcome = run(make(seed))
        assert outcome.error is None, report(seed, 60.0)
        seed += 1
    print(f"{seed} seeds")
    assert seed > 3


@pytest.mark.slow
def test_a_seed_is_reproducible() -> None:
    """The same seed gives the same trace, also in a process with other hashes and addresses."""
    code = (
        "from tests.simulation.schedule import make\n"
        "from tests.simulation.simulation import run\n"
        "print(*[run(make(seed)).hash for seed in range(6)])"
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
    traces.add(" ".join(run(make(seed)).hash for seed in range(6)) + "\n")
    assert len(traces) == 1
