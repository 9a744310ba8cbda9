"""The contents of the wheel and of the source archive."""

from __future__ import annotations

import email
import email.message
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cached_session.adapters import item_format

ROOT = Path(__file__).parent.parent.parent

EXTRAS = {"agents", "bench", "cli", "dev", "dev-adapters", "dev-package", "devserver", "docs"}
EXTRAS |= {"langchain", "llama-index", "otel", "pydantic-ai", "strands", "testing"}


def tracked(*under: str) -> set[str]:
    """Return the files that git tracks."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", *under],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    # git still lists a file that is deleted and not yet committed, and it cannot be packed.
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="session")
def in_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="session")
def metadata(in_wheel: dict[str, bytes]) -> email.message.Message:
    (name,) = [name for name in in_wheel if name.endswith(".dist-info/METADATA")]
    return email.message_from_string(in_wheel[name].decode())


def test_the_wheel_holds_only_the_package(in_wheel: dict[str, bytes]) -> None:
    """The wheel has every file of the package, including the type marker, and no test, example or
    stray file."""
    ours = {name for name in in_wheel if ".dist-info/" not in name}
    assert ours == tracked("cached_session")
    assert "cached_session/py.typed" in ours


def test_the_wheel_has_licence_and_commands(in_wheel: dict[str, bytes]) -> None:
    """The licence's text is included, and the one command refers to an existing function."""
    (licence,) = [name for name in in_wheel if ".dist-info/licenses/" in name]
    assert in_wheel[licence] == (ROOT / "LICENSE").read_bytes()
    (points,) = [name for name in in_wheel if name.endswith("/entry_points.txt")]
    assert in_wheel[points].decode().split() == [
        "[console_scripts]",
        "cached-session",
        "=",
        "cached_session.cli.main:main",
    ]
    (tag,) = [name for name in in_wheel if name.endswith(".dist-info/WHEEL")]
    assert b"Tag: py3-none-any" in in_wheel[tag]


def test_the_metadata_is_complete(metadata: email.message.Message) -> None:
    """The metadata has name, version, summary, readme, licence, Python version and extras."""
    assert metadata["Name"] == "cached-session"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text("utf-8").strip()  # type: ignore[union-attr]
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    for field in ("Version", "Summary", "Keywords", "Author", "License-File"):
        assert metadata[field], field
    known = {line for line in metadata.get_all("Classifier", []) if "Python :: 3." in line}
    assert known == {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)}


def test_every_framework_has_its_extra(metadata: email.message.Message) -> None:
    """Each extra that an adapter's error names can be installed."""
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {name.replace("_", "-") for name in item_format.FRAMEWORKS} <= extras


def test_development_tools_are_not_required(metadata: email.message.Message) -> None:
    """Without extras six libraries are required, and none of them is a test tool."""
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">")[0].split("[")[0] for line in needed) == [
        "aiosqlite",
        "anyio",
        "dakera",
        "filelock",
        "orjson",
        "platformdirs",
    ]


def test_the_source_archive_builds_tests_and_documents(sdist: Path) -> None:
    """The archive has every file that git tracks, and nothing else."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == tracked()


def test_the_packaging_checks_pass(wheel: Path, sdist: Path) -> None:
    """`twine check --strict` and `check-wheel-contents` pass."""
    for command in (
        ["twine", "check", "--strict", str(wheel), str(sdist)],
        ["check_wheel_contents", str(wheel)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
