"""The journal as a file: whole, private, with room to grow."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from cached_session.diagnosis.finding import Finding
from cached_session.errors import CachedSessionError, JournalFull, JournalTooNew
from cached_session.humanize import size
from cached_session.journal.recovery import row_check, schema_check
from cached_session.journal.sqlite.db_errors import FOREIGN, is_damage, journal_error
from cached_session.journal.tables import schema

__all__ = ["broken", "look_at"]

LOW_DISK = 1024**3
"""Bytes free below which a word is due: a write-ahead log may grow for a while."""
NO_DISK = 64 * 1024**2


def look_at(path: str) -> list[Finding]:
    """What can be said of the file without opening it as a journal."""
    file = Path(path)
    if not file.exists():
        return [
            Finding(
                "journal",
                "fail",
                f"there is none at {path}",
                "name another; or write to a session once: the journal is made by the first write",
            )
        ]
    return [_integrity(path), _disk(file), _modes(file), *_set_aside(file)]


def _integrity(path: str) -> Finding:
    try:
        with closing(
            sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        ) as conn:
            current = schema.identify(conn, path)
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            problems = [str(row[0]) for row in conn.execute("PRAGMA quick_check(3)")]
            if problems == ["ok"] and current:
                if schema_check.is_whole(conn):
                    problems = schema_check.misfits(conn) or row_check.nonsense(conn) or problems
                    schema_check.read_all(conn)
                else:
                    problems = ["its schema is not a journal's"]
    except CachedSessionError as error:
        return broken(error)
    except FOREIGN as error:
        mapped = journal_error(error, path)
        if isinstance(mapped, CachedSessionError) and not is_damage(error):
            return broken(mapped)  # the disk, a mode, a lock: the file may be whole
        problems, current, version = [str(error)], False, 0
    if problems != ["ok"]:
        return Finding(
            "journal",
            "fail",
            f"{path} is damaged: {' '.join('; '.join(problems).split())[:200]}",
            "cached-session compact sets it aside: what can be read goes on in a fresh file, the "
            "damaged one is kept beside it, the rest comes back from the server; cached-session "
            "status then says what was lost",
        )
    form = f"format {version}" if current else f"format {version}, moved forward when next opened"
    return Finding("journal", "ok", f"{path} is whole ({form})")


def broken(error: CachedSessionError) -> Finding:
    """Why the journal cannot be used at all."""
    advice = "mend that first, or name another journal"
    if isinstance(error, JournalTooNew):
        advice = "upgrade cached-session; the file was left untouched"
    elif isinstance(error, JournalFull):
        advice = "free some space: nothing that was acknowledged is lost"
    return Finding("journal", "fail", str(error), advice)


def _disk(file: Path) -> Finding:
    usage = shutil.disk_usage(file.parent)
    taken = sum(
        part.stat().st_size
        for suffix in ("", "-wal", "-shm")
        if (part := file.with_name(file.name + suffix)).exists()
    )
    message = f"the journal takes {size(taken)}, {size(usage.free)} are free"
    if usage.free < NO_DISK:
        return Finding("disk", "fail", message, "free some space: writes are about to fail")
    if usage.free < max(LOW_DISK, 2 * taken):
        return Finding("disk", "warn", message, "free some space, or compact the journal")
    return Finding("disk", "ok", message)


def _modes(file: Path) -> Finding:
    if os.name != "posix":
        return Finding("access", "ok", "left to the file system's own rules")
    open_ones = [
        part
        for suffix in ("", "-wal", "-shm")
        if (part := file.with_name(file.name + suffix)).exists()
        and stat.S_IMODE(part.stat().st_mode) & 0o077
    ]
    if open_ones:
        names = " ".join(part.name for part in open_ones)
        typed = " ".join(shlex.quote(str(part.absolute())) for part in open_ones)
        return Finding(
            "access", "warn", f"others on this machine may read {names}", f"chmod 600 {typed}"
        )
    if not os.access(file, os.W_OK) or not os.access(file.parent, os.W_OK):
        return Finding(
            "access", "fail", "this user may not write to it", "check the file's owner and mode"
        )
    return Finding("access", "ok", "only its owner can read the journal")


def _set_aside(file: Path) -> list[Finding]:
    """Damaged files that were moved away, and that somebody may want to look at."""
    known = {file.name + suffix for suffix in ("", "-wal", "-shm", "-journal", ".lock")}
    aside = sorted(
        other.name
        for other in file.parent.glob(f"{_globbed(file.name)}?*")
        if other.name not in known
        and ("damaged" in other.name or "corrupt" in other.name)
        and not other.name.endswith(("-wal", "-shm"))
    )
    if not aside:
        return []
    return [
        Finding(
            "set aside",
            "warn",
            f"a damaged journal was set aside: {', '.join(aside)}",
            "once nothing is missed, delete it, with its -wal and -shm; until then it is the last "
            "copy of what could not be carried over",
        )
    ]


def _globbed(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
