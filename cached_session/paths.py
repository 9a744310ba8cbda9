"""The path of a journal file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import platformdirs

from cached_session.errors import InvalidArgument

__all__ = ["default_journal", "journal_path", "make_default_directory"]

log = logging.getLogger("cached_session.journal")


def default_journal() -> str:
    """Return the default path of the journal, which is in the user's data directory."""
    return str(Path(platformdirs.user_data_dir("cached_session")) / "sessions.db")


def make_default_directory(path: str) -> None:
    """Create the directory of a journal, if the journal has the default path."""
    if path == str(Path(default_journal()).absolute()):
        try:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            # Opening the file fails as well, with an error that names the path.
            log.debug("cannot make the default directory", exc_info=True)


def journal_path(journal: object) -> str:
    """Return the path of the ``journal`` argument of a public call.

    Raises:
        InvalidArgument: ``journal`` is not a path.
    """
    if journal is None:
        return default_journal()
    if isinstance(journal, (str, os.PathLike)):
        path = os.fspath(journal)
        if isinstance(path, str) and path and "\x00" not in path:
            return path
    raise InvalidArgument(
        f"journal={journal!r} is not a path; pass a file name, ':memory:' or None for the default"
    )
