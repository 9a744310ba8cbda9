"""The wheel in empty environments: alone on every Python here, and with each extra. `ALL=1` tests
the frameworks too, whose installation takes longer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SIDE_BY_SIDE = 2

ADAPTER = "from cached_session.adapters.{} import {}; print({}.__name__)"
WITH = {
    "agents": """
from agents.memory import Session
from cached_session import CachedSession
assert isinstance(CachedSession("a", journal=":memory:"), Session)
""",
    "cli": "import runpy, sys; sys.argv[1:] = ['--help']\n"
    "runpy.run_module('cached_session', run_name='__main__')",
    "devserver": """
import asyncio, tempfile
from cached_session import CachedSession
from cached_session.devserver import DevServer
async def main():
    with DevServer() as server, tempfile.TemporaryDirectory() as at:
        async with CachedSession.from_url("a", url=server.url, journal=f"{at}/a.db") as session:
            await session.add_items([{"role": "user", "content": "Hi"}])
            await session.flush(timeout=30)
asyncio.run(main())
""",
    "testing": """
import asyncio
from cached_session.testing import FaultLab
async def main():
    async with FaultLab() as lab, lab.session("a") as session:
        await session.add_items([{"role": "user", "content": "Hi"}])
        await session.flush(timeout=30)
asyncio.run(main())
""",
    "otel": "from cached_session import telemetry\ntelemetry.load()\n"
    "assert telemetry._instruments is not None",
}
FRAMEWORKS = {
    "langchain": ADAPTER.format("langchain", *["CachedChatMessageHistory"] * 2),
    "llama-index": ADAPTER.format("llama_index", *["CachedChatStore"] * 2),
    "pydantic-ai": ADAPTER.format("pydantic_ai", *["CachedMessageHistory"] * 2),
    "strands": ADAPTER.format("strands", *["CachedSessionRepository"] * 2),
}
TRIED = {**WITH, **FRAMEWORKS} if os.environ.get("ALL") else WITH
WITHOUT = {
    "cli": "import cached_session.cli.main as main; main.main()",
    "devserver": "import cached_session.devserver",
    "testing": "import cached_session.testing",
    **FRAMEWORKS,
}
NAMED = {extra: extra for extra in WITHOUT} | {"testing": "devserver"}


def pythons() -> dict[str, str]:
    """Return every Python from 3.10 on that can be found here, with its version and path."""
    places = [Path(place) for place in os.environ["PATH"].split(os.pathsep)]
    versions = Path.home() / ".pyenv" / "versions"
    places += [version / "bin" for version in sorted(versions.glob("3.*"))]
    found = {f"3.{sys.version_info.minor}": sys.executable}
    for minor in range(10, 20):
        for place in places:
            python = place / f"python3.{minor}"
            if f"3.{minor}" not in found and python.exists():
                # A shim may exist for a version that is not installed.
                ask = [str(python), "-c", "import sys, venv, ssl, sqlite3; print(sys.executable)"]
                done = subprocess.run(ask, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    found[f"3.{minor}"] = done.stdout.strip()
    return found


PYTHONS = pythons()
Environments = dict[tuple[str, str], "Future[Path]"]


@pytest.fixture(scope="session")
def environments(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Make an empty environment with the wheel and an extra, and return its Python."""
    place = tmp_path_factory.mktemp("environments")

    def make(version: str, extra: str) -> Path:
        at = place / f"{version}-{extra or 'alone'}"
        subprocess.run([PYTHONS[version], "-m", "venv", "--without-pip", at], check=True)
        pins = "tests/adapters" if extra in FRAMEWORKS else "."
        command = [sys.executable, "-m", "pip", "--python", at / "bin" / "python", "install"]
        command += ["--quiet", "--no-compile", "-c", ROOT / pins / "constraints.txt"]
        subprocess.run([*command, f"{wheel}[{extra}]" if extra else wheel], check=True)
        return at / "bin" / "python"

    own = f"3.{sys.version_info.minor}"
    wanted = [(version, "") for version in PYTHONS] + [(own, extra) for extra in TRIED]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        making: Environments = {one: pool.submit(make, *one) for one in wanted}
    return lambda version, extra: making[version or own, extra].result()


def run(python: Path, *arguments: object, at: Path) -> subprocess.CompletedProcess[str]:
    """Run in an empty directory, from which nothing of the checkout can be imported."""
    return subprocess.run(
        [python, "-W", "error", *arguments],
        cwd=at,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_works_alone(
    version: str, environments: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """This holds on every Python of this machine, without any extra and without a warning."""
    done = run(environments(version, ""), HERE / "local_session.py", at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"works on Python {version}." in done.stdout


@pytest.mark.parametrize("extra", WITHOUT)
def test_a_missing_extra_is_named_in_the_error(
    extra: str, environments: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The error names what to install."""
    done = run(environments("", ""), "-c", WITHOUT[extra], at=tmp_path)
    assert done.returncode == 1
    assert f"pip install 'cached-session[{NAMED[extra]}]'" in done.stderr


@pytest.mark.parametrize("extra", TRIED)
def test_an_extra_enables_its_feature(
    extra: str, environments: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """The feature works with its extra installed, and nothing else."""
    done = run(environments("", extra), "-c", TRIED[extra], at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
