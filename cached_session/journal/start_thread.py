"""The start of the writing thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cached_session.errors import JournalError

__all__ = ["start_thread"]


def start_thread(target: Callable[[], None], path: str) -> threading.Thread:
    """Start the writing thread of a journal. The thread is a daemon, because a program that never
    closes its session must still be able to end.

    Raises:
        JournalError: the system cannot start a thread. A later call may succeed.
    """
    thread = threading.Thread(target=target, name="cached-session-journal", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise JournalError(
            f"the journal {path} cannot be used, because the system cannot start a thread "
            f"({error}): nothing was stored; raise the limit of threads or memory of this "
            "process, and try again"
        ) from error
    return thread
