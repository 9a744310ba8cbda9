"""The sessions that a command uses: of one key prefix, or of all prefixes of the journal."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from cached_session import CachedSession, SessionCache, Status
from cached_session.errors import InvalidArgument

__all__ = ["ChosenSession", "JournalSessions", "label"]


@dataclass(frozen=True)
class ChosenSession:
    """One session that a command uses, and the cache of its key prefix."""

    cache: SessionCache
    session_id: str

    def open(self) -> CachedSession:
        """Return the session. Its first read does not wait for the server."""
        return self.cache.session(self.session_id, hydrate=False)

    @property
    def label(self) -> str:
        """Session id and key prefix as text for people."""
        return label(self.session_id, self.cache.key_prefix)

    @property
    def fields(self) -> dict[str, str]:
        """Session id and key prefix as JSON output contains them."""
        return {"session_id": self.session_id, "key_prefix": self.cache.key_prefix}


def label(session_id: str, key_prefix: str) -> str:
    """Return a session id with its key prefix, if it has one, as text for people."""
    return f"{session_id} (prefix {key_prefix})" if key_prefix else session_id


class JournalSessions:
    """An open journal, with a cache for each key prefix: ``async with JournalSessions(...)``."""

    def __init__(self, make_cache: Callable[[str], SessionCache], prefix: str | None) -> None:
        """Prepare to open a journal.

        Args:
            make_cache: returns a cache with a key prefix over the journal.
            prefix: the key prefix that the user has chosen; None if the user has chosen none.
        """
        self._make_cache = make_cache
        self._prefix = prefix
        self._caches: dict[str, SessionCache] = {}
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> JournalSessions:
        """Open the journal.

        Raises:
            JournalError: the journal cannot be opened.
        """
        self.cache = await self._exits.enter_async_context(self._make_cache(self._prefix or ""))
        self._caches[self.cache.key_prefix] = self.cache
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exits.__aexit__(kind, error, trace)

    def status(self) -> Status:
        """Return the status of the journal, or of the chosen key prefix in the same form."""
        if self._prefix is None:
            return self.cache.journal_status()
        found = self.cache.status()
        return replace(found, sessions={}, prefixes={self._prefix: found})

    def session(self, session_id: str) -> ChosenSession:
        """Return a session of the chosen key prefix, or without a prefix if none was chosen."""
        return ChosenSession(self.cache, session_id)

    def all(self, is_wanted: Callable[[Status], bool] = lambda _: True) -> list[ChosenSession]:
        """Return the journal's sessions of the chosen key prefix; without a choice, of all.

        Omit a session if ``is_wanted`` returns False for its status.
        """
        return [
            ChosenSession(self._cache_of(prefix), session_id)
            for prefix, status in self.status().prefixes.items()
            for session_id, one in status.sessions.items()
            if is_wanted(one)
        ]

    def choose(self, session_ids: Sequence[str]) -> list[ChosenSession]:
        """Return the given sessions; all sessions if ``session_ids`` is empty.

        Raises:
            InvalidArgument: the journal does not have one of the given sessions.
        """
        if not session_ids:
            return self.all()
        known = self.cache.status().sessions
        for session_id in session_ids:
            if session_id not in known:
                raise self._unknown(session_id, list(known))
        return [self.session(session_id) for session_id in dict.fromkeys(session_ids)]

    def _cache_of(self, prefix: str) -> SessionCache:
        if prefix not in self._caches:
            self._caches[prefix] = self._make_cache(prefix)
            self._exits.push_async_callback(self._caches[prefix].close)
        return self._caches[prefix]

    def _unknown(self, session_id: str, known: list[str]) -> InvalidArgument:
        others = self.cache.journal_status().prefixes.items()
        having = [prefix for prefix, status in others if session_id in status.sessions]
        near = difflib.get_close_matches(session_id, known, 1)
        if having:
            hint = f" (it has one with the key prefix {having[0]!r}: pass --key-prefix)"
        else:
            hint = f" (did you mean {near[0]!r}?)" if near else ""
        where = f" with the key prefix {self.cache.key_prefix!r}" if self.cache.key_prefix else ""
        return InvalidArgument(
            f"the journal has no session {session_id!r}{where}{hint}; cached-session status lists "
            "its sessions; sync --session fetches one from the server"
        )
