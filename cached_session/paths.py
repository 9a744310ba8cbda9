"""The path of a journal file."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from cached_session.errors import InvalidArgument

__all__ = ["default_journal", "journal_path"]


def default_journal() -> str:
    """Return the default path of the journal, which is in the user's data directory."""
    return str(Path(platformdirs.user_data_dir("cached_session")) / "sessions.db")


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
