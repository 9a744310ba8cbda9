"""Why the journal keeps the background from its work: no row can tell, for none can be written."""

from __future__ import annotations

import logging

from cached_session.errors import CachedSessionError

__all__ = ["LocalErrors"]


log = logging.getLogger("cached_session.replication")


class LocalErrors:
    """The last error of each kind of work on each session, until that kind succeeds there. Safe to
    ask from any thread."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def record(self, work: str, session_id: str, error: CachedSessionError) -> int:
        """One failed; how many before it, since the last that succeeded. The first is logged as an
        error."""
        failures, _ = self._found.get((work, session_id), (0, ""))
        self._found[work, session_id] = failures + 1, str(error)
        log.log(
            logging.DEBUG if failures else logging.ERROR,
            "%s of session %r failed: %s",
            work,
            session_id,
            error,
            extra={"session": session_id},
        )
        return failures

    def clear(self, work: str, session_id: str) -> None:
        """One succeeded."""
        self._found.pop((work, session_id), None)

    def latest(self, session_id: str | None) -> str | None:
        """Of a session (None: of any); None if there is none."""
        for (_, whose), (_, reason) in list(self._found.items()):
            if session_id in (None, whose):
                return reason
        return None
