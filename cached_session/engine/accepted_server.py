"""The check that a journal may sync with the server that a session or cache names."""

from __future__ import annotations

from cached_session.errors import InvalidArgument
from cached_session.journal.journal import Journal
from cached_session.journal.tables.known_server import other_server
from cached_session.remote.connect import RemoteSpec

__all__ = ["AcceptedServer"]


class AcceptedServer:
    """The server with which a journal may sync."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.url: str | None = None
        """The URL that `check` has accepted; None before the first check."""

    async def check(self, spec: RemoteSpec) -> None:
        """Check that the journal may sync with this server. Only the journal is read.

        Raises:
            InvalidArgument: the journal syncs with another server, and ``spec`` does not move it.
        """
        if self.url == spec.server:
            return
        known = await self._journal.known_server.answered()
        if known is not None and known != spec.server and not spec.move:
            raise InvalidArgument(other_server(self._journal.path, known, spec.server))
        self.url = spec.server
