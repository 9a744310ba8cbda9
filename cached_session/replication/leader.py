"""Of several processes on one journal, one pushes for all: the one that holds the file lock."""

from __future__ import annotations

import anyio
from filelock import BaseFileLock, Timeout

from cached_session.replication.context import log

__all__ = ["Leader"]


class Leader:
    """Whether it is this process. Without a lock (a journal in memory) there is no other."""

    def __init__(self, lock: BaseFileLock | None) -> None:
        self._lock = lock
        self.is_leader = False

    async def lead(self, pause: float) -> None:
        """Return as the leader, whenever that will be; another's death is noticed after a pause."""
        # A file lock tells nobody when it is free.
        while not self._try():  # noqa: ASYNC110
            await anyio.sleep(pause)

    def _try(self) -> bool:
        if not self.is_leader and self._lock is not None:
            try:
                # A lock attempt is two system calls on a local file: no thread needed for it.
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
            except OSError as error:
                log.error("the lock beside the journal cannot be taken: %s", error)
                return False
        self.is_leader = True
        return True

    def resign(self) -> None:
        """Let go of the lock: another may lead."""
        if self.is_leader and self._lock is not None:
            self._lock.release()
        self.is_leader = False
