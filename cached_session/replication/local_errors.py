"""The errors of the journal that stop background work.

The errors are stored in memory, because no row can record them while the journal cannot be written.
"""

from __future__ import annotations

import logging

from cached_session.errors import CachedSessionError
from cached_session.history.session_name import identity_fields, quoted_name

__all__ = ["LocalErrors"]

log = logging.getLogger("cached_session.replication")


class LocalErrors:
    """The last error of each kind of work on each session, until the work succeeds.

    The class is safe to use from any thread.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def record(self, work: str, session_id: str, error: CachedSessionError) -> int:
        """Record a failure; return the number of earlier failures in a row.

        The first failure in a row is logged as an error, each later failure at debug level.
        """
        failures, _ = self._found.get((work, session_id), (0, ""))
        self._found[work, session_id] = failures + 1, str(error)
        log.log(
            logging.DEBUG if failures else logging.ERROR,
            "%s of session %s failed: %s",
            work,
            quoted_name(session_id),
            error,
            extra=identity_fields(session_id),
        )
        return failures

    def clear(self, work: str, session_id: str) -> None:
        """Remove the last error of a kind of work that has succeeded."""
        self._found.pop((work, session_id), None)

    def reason(self, session_id: str | None) -> str | None:
        """Return the text of an error, or None if no error is recorded.

        Args:
            session_id: the session whose errors count; None for all sessions.
        """
        for (_, failed), (_, reason) in list(self._found.items()):
            if session_id in (None, failed):
                return reason
        return None
