"""Check before the first request whether the journal's acknowledgements come from this server."""

from __future__ import annotations

import logging

from cached_session.history.session_ref import SessionRef
from cached_session.journal.journal import Journal
from cached_session.journal.tables.known_server import other_server
from cached_session.remote.errors import RemoteError, Scope, Verdict
from cached_session.remote.protocol import Remote

__all__ = ["ServerCheck"]

log = logging.getLogger("cached_session.replication")


class ServerCheck:
    """The comparison of the server in use with the server that the journal knows."""

    def __init__(self, journal: Journal, remote: Remote, *, move: bool = False) -> None:
        self._move = move
        self._journal = journal
        self._remote = remote
        self._is_done = False

    async def run(self, session_id: str) -> None:
        """Queue the sent operations again if this is not the server that the journal knows.

        The new server must answer a request first, because its address may be mistyped. After the
        check has succeeded once, later calls do nothing.

        Raises:
            RemoteError: this is not the server that the journal knows, and the journal may not move
                to this server, or this server does not answer.
        """
        if self._is_done:
            return
        server = self._remote.server
        known = await self._journal.known_server.url()
        if known is not None and known != server and self._move:
            agent = SessionRef.of(session_id).agent
            await self._remote.list_memories(agent, offset=0, limit=1)
        if known != server:
            replaced = await self._journal.known_server.switch(server, move=self._move)
            if replaced is not None and await self._journal.known_server.url() != server:
                reason = other_server(self._journal.path, replaced, server)
                raise RemoteError(Verdict.DENIED, reason, Scope.SERVER)
            if replaced is not None:
                log.warning("the journal syncs with %s instead of %s from now on", server, replaced)
        self._is_done = True
