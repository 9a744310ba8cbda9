"""The swap of a damaged file and a new one, interrupted at any step."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cached_session.journal.recovery.replace_file import (
    discard_partial_file,
    is_interrupted,
    mark_complete,
    name_for_damaged,
    never_close,
    partial_path,
    swap,
    undo_interrupted_swap,
)

LOGS = ("-wal", "-shm")


@pytest.fixture
def real(tmp_path: Path) -> str:
    """A damaged journal with logs, and a complete new file."""
    path = str(tmp_path / "agent.db")
    for suffix in ("", *LOGS):
        Path(path + suffix).write_text(f"damaged{suffix}")
    Path(partial_path(path)).write_text("new")
    mark_complete(path)
    return path


def content(real: str) -> dict[str, str]:
    """Return the texts of all files, by what follows the journal's name."""
    name = Path(real).name
    return {path.name.removeprefix(name): path.read_text() for path in Path(real).parent.iterdir()}


BEFORE = {"": "damaged", "-wal": "damaged-wal", "-shm": "damaged-shm", ".salvaged": "new"}


def test_a_swap_gives_the_new_file_the_name(real: str) -> None:
    """The damaged file and its logs have the dated name, and nothing else is left."""
    assert is_interrupted(real)
    swap(real, real + ".damaged-X")
    assert content(real) == {
        "": "new",
        ".damaged-X": "damaged",
        ".damaged-X-wal": "damaged-wal",
        ".damaged-X-shm": "damaged-shm",
    }
    assert not is_interrupted(real)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("steps", range(4))
def test_an_interrupted_swap_is_undone(
    real: str, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """After each step, the damaged file gets its name and its logs back."""
    left = iter(range(steps))
    replace, link = Path.replace, os.link

    def count() -> None:
        if next(left, None) is None:
            raise Interrupted

    def counted_replace(self: Path, target: Any) -> Path:
        count()
        return replace(self, target)

    def counted_link(source: str, target: str) -> None:
        count()
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted_replace)
        patch.setattr(os, "link", counted_link)
        with pytest.raises(Interrupted):
            swap(real, name_for_damaged(real, 1000))
    assert is_interrupted(real)
    assert Path(real).read_text() == "damaged"
    undo_interrupted_swap(real)
    assert content(real) == {key: text for key, text in BEFORE.items() if key != ".salvaged"}
    assert not is_interrupted(real)


def test_files_of_earlier_recoveries_are_not_touched(real: str) -> None:
    """Only names of the journal's current file are undone."""
    earlier = Path(real + ".damaged-20010909T014640.000Z")
    earlier.write_text("earlier")
    undo_interrupted_swap(real)
    assert earlier.read_text() == "earlier"
    undo_interrupted_swap(real)
    assert Path(real).read_text() == "damaged"


def test_a_partial_file_is_deleted_with_its_logs(real: str) -> None:
    """An earlier recovery may have left it."""
    for suffix in ("", *LOGS):
        Path(partial_path(real) + suffix).write_text("partial")
    discard_partial_file(real)
    assert content(real) == BEFORE
    discard_partial_file(real)


def test_a_complete_file_has_no_log(real: str) -> None:
    """SQLite leaves logs behind where a reader was open."""
    for suffix in ("", *LOGS):
        Path(partial_path(real) + suffix).write_text("newer")
    mark_complete(real)
    assert content(real) == {**BEFORE, ".salvaged": "newer"}


def test_a_connection_that_is_never_closed_has_one_more_reference() -> None:
    """Python then does not close it, not even when it ends."""
    with closing(sqlite3.connect(":memory:")) as conn:
        before = sys.getrefcount(conn)
        never_close(conn)
        assert sys.getrefcount(conn) == before + 1
