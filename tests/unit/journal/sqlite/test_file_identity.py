"""The file behind a journal's name, and logs that belong to another file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cached_session.errors import JournalError
from cached_session.journal.sqlite.file_identity import (
    dated_name,
    file_id,
    find_logs,
    is_replaced,
    lock_names,
    move_stray_logs,
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def make(path: Path, *suffixes: str) -> None:
    for suffix in ("", *suffixes):
        Path(f"{path}{suffix}").write_text(f"of {path.name}{suffix}")


def test_a_file_keeps_its_identity_under_another_name(journal: Path) -> None:
    """The identity is the file's, not the name's."""
    make(journal)
    before = file_id(str(journal))
    moved = journal.with_name("moved.db")
    journal.replace(moved)
    assert file_id(str(moved)) == before
    assert file_id(str(journal)) is None
    assert is_replaced(str(journal), before)
    journal.symlink_to(moved)
    assert not is_replaced(str(journal), before)


def test_names_that_lead_nowhere_have_no_file(tmp_path: Path, journal: Path) -> None:
    """A missing directory, a file in place of a directory and a loop of links are no errors."""
    make(journal)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "missing" / "j.db", journal / "j.db", loop):
        assert file_id(str(path)) is None


def test_a_name_that_cannot_be_looked_up_is_an_error(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the file and the reason, and the file counts as replaced."""
    make(journal)
    before = file_id(str(journal))

    def stat(path: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(JournalError, match=r"agent\.db cannot be looked up: Permission denied"):
        file_id(str(journal))
    assert is_replaced(str(journal), before)


def test_logs_are_found_by_name(journal: Path) -> None:
    """Logs next to the journal are found, also through a symbolic link."""
    make(journal, "-wal")
    link = journal.with_name("link.db")
    link.symlink_to(journal)
    assert find_logs(str(journal)) == {"-wal": file_id(f"{journal}-wal")}
    assert find_logs(str(link)) == find_logs(str(journal))


def test_logs_next_to_their_file_stay(journal: Path) -> None:
    """Nothing is moved while the file of the name exists."""
    make(journal, "-wal", "-shm")
    assert move_stray_logs(str(journal), 1.0) == []
    assert sorted(find_logs(str(journal))) == ["-shm", "-wal"]


def test_logs_without_a_file_are_moved(journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new file of the name starts without them, and the log says where they are."""
    make(journal, "-wal", "-shm")
    journal.unlink()
    moved = move_stray_logs(str(journal), 1.0)
    assert find_logs(str(journal)) == {}
    assert [path.read_text() for path in moved] == ["of agent.db-wal", "of agent.db-shm"]
    assert all(path.name.startswith("agent.db.left-") for path in moved)
    assert len({path.name[:-4] for path in moved}) == 1
    assert str(moved[0]) in caplog.text


def test_only_the_logs_of_the_old_file_are_moved(journal: Path) -> None:
    """Where another file has the name, the logs of the old one go and its own stay."""
    make(journal, "-wal", "-shm")
    known = find_logs(str(journal))
    # The old index must exist for as long as the new one, so that the inode is not used again.
    Path(f"{journal}-shm").replace(journal.with_name("old-shm"))
    Path(f"{journal}-shm").write_text("of another file")
    (moved,) = move_stray_logs(str(journal), 1.0, known)
    assert moved.name.endswith("-wal")
    assert list(find_logs(str(journal))) == ["-shm"]


def test_logs_that_another_process_has_moved_are_left_alone(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to move is determined again under the lock."""
    make(journal, "-wal")
    journal.unlink()
    acquire = FileLock.acquire

    def acquired(lock: FileLock, *args: Any, **kwargs: Any) -> Any:
        make(journal)
        return acquire(lock, *args, **kwargs)

    monkeypatch.setattr(FileLock, "acquire", acquired)
    assert move_stray_logs(str(journal), 1.0) == []
    assert list(find_logs(str(journal))) == ["-wal"]


def test_a_log_that_cannot_be_moved_is_an_error(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to do, and SQLite never gets to use the log."""
    make(journal, "-wal")
    journal.unlink()

    def replace(self: Path, target: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(JournalError, match=r"belongs to another file.*make its directory writable"):
        move_stray_logs(str(journal), 1.0)


def test_one_process_at_a_time_changes_the_names(journal: Path) -> None:
    """The lock is exclusive, private to the user, and free after use."""
    with lock_names(str(journal), 1.0):
        with pytest.raises(JournalError, match="another process is recovering the journal"):
            with lock_names(str(journal), 0.0):
                pass
        lock = Path(f"{journal}.salvage-lock")
        assert lock.stat().st_mode & 0o777 == 0o600
    with lock_names(str(journal), 0.0):
        pass


def test_a_dated_name_tells_the_time_in_utc() -> None:
    """The name has the label and the moment, to the millisecond."""
    assert dated_name("/d/j.db", ".left-", 1_000_000_000_123) == "/d/j.db.left-20010909T014640.123Z"
