"""The recovery as a whole: when a file is replaced, and what the new one has."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cached_session.errors import JournalCorrupt, JournalError
from cached_session.journal.recovery import recover
from cached_session.journal.recovery.copy_rows import WriterIds
from cached_session.journal.recovery.recover import copy_to_replacement, recover_file
from cached_session.journal.recovery.report import RecoveryReport, read_report
from cached_session.journal.sqlite.file_identity import file_id, lock_names
from cached_session.journal.tables.meta import read_meta
from tests.unit.journal.recovery.recovery_support import (
    WRITER,
    add,
    items,
    open_journal,
    overwrite_page,
)

WRITERS = WriterIds(WRITER, "afresher")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed journal with two items."""
    path = tmp_path / "agent.db"
    with closing(open_journal(path)) as conn:
        add(conn, "a")
        add(conn, "b")
    return path


def connect(name: str) -> sqlite3.Connection:
    """Open a new journal that does not wait for locks."""
    conn = open_journal(Path(name))
    conn.execute("PRAGMA busy_timeout = 0")
    return conn


def recovered(path: Path, own: sqlite3.Connection | None = None) -> RecoveryReport | None:
    return recover_file(str(path), "suspicion", 0.0, connect, WRITERS, own)


def test_an_intact_file_is_not_replaced(path: Path) -> None:
    """The suspicion was wrong, or another process was first."""
    before = file_id(str(path))
    assert recovered(path) is None
    assert file_id(str(path)) == before
    assert [found.name for found in path.parent.glob("*.damaged-*")] == []


def test_a_missing_file_is_not_recovered(tmp_path: Path) -> None:
    """It was deleted, so the next opening creates a new journal."""
    assert recovered(tmp_path / "nothing.db") is None


def test_a_damaged_file_is_replaced(path: Path) -> None:
    """The new file has everything that can be read, and the old one stays next to it."""
    overwrite_page(path, "place")
    damaged = path.read_bytes()
    source = file_id(str(path))
    report = recovered(path)
    assert report is not None
    assert source is not None
    assert report.why.startswith("suspicion (")
    assert report.source == f"{source[0]}:{source[1]}"
    assert (report.operations, report.unsent, report.lost) == (2, 2, ())
    assert Path(str(report.set_aside)).read_bytes() == damaged
    with closing(open_journal(path)) as conn:
        assert items(conn) == ['"a"', '"b"']
        assert read_report(read_meta(conn)) == report
    names = {found.name for found in path.parent.iterdir()}
    aside = Path(str(report.set_aside)).name
    # The logs are those of a connection that is never closed.
    logs = {f"{aside}-wal", f"{aside}-shm"}
    assert names - logs == {"agent.db", "agent.db.salvage-lock", aside}


def test_a_page_that_only_an_open_connection_has_is_read_from_it(path: Path) -> None:
    """Its cache may hold what is damaged on the disk."""
    with closing(sqlite3.connect(path, isolation_level=None)) as own:
        assert len(items(own)) == 2
        own.execute("BEGIN")
        assert len(items(own)) == 2
        with path.open("r+b") as file:
            (root,) = own.execute(
                "SELECT rootpage FROM sqlite_master WHERE name = 'ops'"
            ).fetchone()
            file.seek((root - 1) * 4096)
            file.write(b"\xff" * 4096)
        report = recovered(path, own)
        own.execute("ROLLBACK")
    assert report is not None
    with closing(open_journal(path)) as conn:
        assert items(conn) == ['"a"', '"b"']
    assert report.lost == ()


def test_an_interrupted_recovery_is_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written to the damaged file since is in the new one as well."""
    overwrite_page(path, "gates")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        with pytest.raises(KeyboardInterrupt):
            recovered(path)
    assert Path(f"{path}.salvaged").exists()
    with closing(open_journal(path)) as conn:
        add(conn, "c")
    report = recovered(path)
    assert report is not None
    assert report.operations == 3
    assert not Path(f"{path}.salvaged").exists()


def test_a_file_that_cannot_be_moved_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do."""
    overwrite_page(path, "place")
    damaged = path.read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(JournalCorrupt, match=r"suspicion.*could not be replaced.*make its direct"):
        recovered(path)
    assert path.read_bytes() == damaged


def test_a_checkpoint_that_fails_stops_the_recovery(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file must not need its log, which does not get its name."""
    overwrite_page(path, "place")
    damaged = path.read_bytes()
    readers: list[sqlite3.Connection] = []
    copy: Callable[..., RecoveryReport] = recover.copy_journal

    def copy_under_a_reader(*args: object) -> RecoveryReport:
        readers.append(sqlite3.connect(f"{path}.salvaging", isolation_level=None))
        readers[0].execute("BEGIN")
        readers[0].execute("SELECT * FROM meta").fetchall()
        return copy(*args)

    monkeypatch.setattr(recover, "copy_journal", copy_under_a_reader)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        recovered(path)
    readers[0].close()
    assert path.read_bytes() == damaged


def test_one_process_at_a_time_recovers(path: Path) -> None:
    """Another one gets an error and tries again."""
    overwrite_page(path, "place")
    with lock_names(str(path), 0.0), pytest.raises(JournalError, match="another process"):
        recovered(path)


def test_a_locked_file_stays(path: Path) -> None:
    """Its write lock is needed for the swap."""
    overwrite_page(path, "place")
    damaged = path.read_bytes()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            recovered(path)
        other.execute("ROLLBACK")
    assert path.read_bytes() == damaged


def test_a_file_that_lost_its_name_is_copied_to_the_one_that_has_it(
    path: Path, new: sqlite3.Connection
) -> None:
    """The report says why, and that the old file was not kept."""
    add(new, "there already", writer="another0")
    with closing(open_journal(path)) as old:
        report = copy_to_replacement(old, new, file_id(str(path)), "agent.db", WRITERS)
    assert report.why == "agent.db was deleted or replaced while it was open"
    assert (report.operations, report.set_aside) == (2, None)
    assert sorted(items(new)) == ['"a"', '"b"', '"there already"']
    assert read_report(read_meta(new)) == report
    assert not new.in_transaction


def test_the_report_of_another_process_is_kept(path: Path, new: sqlite3.Connection) -> None:
    """It recovered the same file, and this process adds what it had written since."""
    source = file_id(str(path))
    with closing(open_journal(path)) as old:
        copy_to_replacement(old, new, source, "agent.db", WRITERS)
        add(old, "c")
        report = copy_to_replacement(old, new, source, "elsewhere", WriterIds("w", "x"))
        assert report.why.startswith("agent.db was deleted")
        assert report.operations == 3
        add(old, "d")
        another = copy_to_replacement(old, new, (1, 2), "elsewhere", WriterIds("w", "y"))
    assert another.why.startswith("elsewhere was deleted")
    assert (another.operations, another.source) == (1, "1:2")


def test_an_error_leaves_the_replacement_unchanged(
    path: Path, new: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is one transaction."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(recover, "copy_journal", fail)
    with closing(open_journal(path)) as old, pytest.raises(sqlite3.OperationalError, match="full"):
        copy_to_replacement(old, new, None, "agent.db", WRITERS)
    assert not new.in_transaction
    assert read_report(read_meta(new)) is None
