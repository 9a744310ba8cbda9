"""The election of a leader among the processes on one journal. The leader holds a file lock.

The leader pushes and audits for all of these processes.
"""

from __future__ import annotations

import logging

import anyio
from filelock import BaseFileLock, Timeout

__all__ = ["Leader"]

log = logging.getLogger("cached_session.replication")


class Leader:
    """The leadership of this process.

    A journal in memory has no lock, because only one process uses it. That process becomes the
    leader at once.
    """

    def __init__(self, lock: BaseFileLock | None) -> None:
        self._lock = lock
        self.is_leader = False

    async def lead(self, interval: float) -> None:
        """Try to take the lock every ``interval`` seconds; return when this process leads."""
        # Poll, because the release of a file lock sends no notification.
        while not self._try_to_lead():  # noqa: ASYNC110
            await anyio.sleep(interval)

    def _try_to_lead(self) -> bool:
        if not self.is_leader and self._lock is not None:
            try:
                # Two system calls on a local file need no thread.
                self._lock.acquire(blocking=False)
            except Timeout:
                return False
            except OSError as error:
                log.error("this process cannot acquire the lock file of the journal: %s", error)
                return False
        self.is_leader = True
        return True

    def resign(self) -> None:
        """Release the lock, so that another process can lead."""
        if self.is_leader and self._lock is not None:
            self._lock.release()
        self.is_leader = False
