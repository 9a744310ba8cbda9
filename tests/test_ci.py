from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_hosted_ci_runs_the_same_script_on_each_python_that_is_promised() -> None:
    """The matrix has the versions of the classifiers, and its last step is `.ci/run`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    job = read(".github/workflows/ci.yml")["jobs"]["ci"]
    assert job["strategy"]["matrix"]["python"] == promised
    assert job["steps"][-1]["run"] == "bash .ci/run"


def test_the_script_calls_targets_that_there_are() -> None:
    """It is a valid script, and each target that it makes is in the Makefile."""
    script = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", script], check=True)
    calls = re.findall(r"^ *make ([a-z -]+)", script.read_text(encoding="utf-8"), re.MULTILINE)
    called = {target for call in calls for target in call.split()}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert called <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"check", "test", "soak", "crash", "lowest"} <= called


def test_the_hooks_are_programs_of_the_project() -> None:
    """Nothing is downloaded for a commit: each hook is local, and installed by the dev extra."""
    for repository in read(".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            program = hook["entry"].split()[0]
            assert program.startswith(".venv/bin/")
            assert (Path(sys.executable).parent / Path(program).name).exists()
