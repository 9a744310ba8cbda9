"""One open journal and its replicator, shared by all sessions over that journal in a process."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
from filelock import BaseFileLock, FileLock

from cached_session import fork_safety, telemetry
from cached_session.engine import status_report
from cached_session.engine.accepted_server import AcceptedServer
from cached_session.engine.first_read import Hydration
from cached_session.engine.loop_host import LoopHost
from cached_session.engine.notifier import Notifier
from cached_session.engine.open_turns import JoinedAppend
from cached_session.engine.status_report import Viewpoint
from cached_session.errors import InvalidArgument, JournalError, SessionClosed
from cached_session.history.ops import Dot
from cached_session.journal.journal import MEMORY, Journal
from cached_session.journal.quota import full_error
from cached_session.journal.tables.writes import Author
from cached_session.models import Status
from cached_session.options import SyncOptions
from cached_session.paths import make_default_directory
from cached_session.remote.connect import RemoteSpec, remove_spec
from cached_session.replication.context import Context, log
from cached_session.replication.replicator import Replicator
from cached_session.runtime import Runtime

__all__ = ["Engine"]

FULL_PAUSE = 0.05
"""Seconds between two attempts of a write that waits for quota. A push over a network takes
longer."""


class Engine:
    """An open journal and its replicator. Safe to use from several event loops and threads."""

    def __init__(self, path: str, options: SyncOptions, runtime: Runtime) -> None:
        self.path = path
        self.number = next(_numbers)
        """Number of this engine in the process, which tells journals in memory apart."""
        self.options = options
        self.runtime = runtime
        self.writer = runtime.writer()
        """Writer id of the operations that this process writes."""
        self._opened_ms = runtime.wall_ms()
        self._pid = os.getpid()
        self._guard = threading.RLock()
        fork_safety.wait_for(self, self._guard)
        self.journal = Journal(
            path,
            durability=options.durability,
            busy_timeout=options.busy_timeout,
            threaded=runtime.threaded,
            search_index=options.search_index,
            max_pending_items=options.max_pending_items,
            max_pending_bytes=options.max_pending_bytes,
            on_replaced=self._replaced,
        )
        self.accepted = AcceptedServer(self.journal)
        self._users = 0
        self._specs: list[RemoteSpec] = []
        self._gap_patience_ms = int(options.hole_patience * 1000)
        self.loop_host = LoopHost(
            path,
            self._guard,
            lambda: self.spec,
            self._start_replicator,
            watch_interval=options.watch_interval,
        )
        self.hydration = Hydration(self.journal, self.loop_host, options, runtime)
        self._file_lock: BaseFileLock | None = None
        self._following: Counter[str] = Counter()
        """Number of open session objects of each session."""
        self.news = Notifier()
        """Notifier of changes of a session's visible items or unsent operations."""

    # -- one engine for each journal -------------------------------------------------------------

    @classmethod
    def acquire(
        cls, path: str, spec: RemoteSpec | None, options: SyncOptions, runtime: Runtime
    ) -> Engine:
        """Return the engine of a journal, which all users of the same file share.

        Raises:
            InvalidArgument: the journal is open with another server.
        """
        if path != MEMORY:
            # Use an absolute path, because the working directory may change later.
            path = str(Path(path).absolute())
        with _registry_lock:
            key = None if path == MEMORY else os.path.realpath(path)
            engine = _registry.get(key) if key else None
            if engine is None:
                engine = cls(path, options, runtime)
                if key:
                    _registry[key] = engine
            engine.join(spec)
        if options != engine.options:
            log.warning(
                "the journal %s is already open in this process with other options; the new "
                "options are ignored until all sessions and caches of the journal are closed",
                path,
            )
        return engine

    def join(self, spec: RemoteSpec | None) -> None:
        """Register a session or cache that uses this engine.

        Raises:
            InvalidArgument: the journal is open with another server.
        """
        with self._guard:
            if spec is not None:
                for other in self._specs:
                    if not spec.is_same_server(other):
                        raise InvalidArgument(
                            f"the journal {self.path} is already open with the server "
                            f"{other.server} and its key; pass another journal for {spec.server}"
                        )
                self._specs.append(spec)
            self._users += 1

    async def release(self, spec: RemoteSpec | None) -> None:
        """Remove a session or cache that used this engine.

        Close the journal after the last user, and stop syncing after the last user with a server.
        If cancelled, the call completes this work before it raises the cancellation.
        """
        with _registry_lock, self._guard:
            self._users -= 1
            last = self._users <= 0
            if last:
                for key in [key for key, engine in _registry.items() if engine is self]:
                    del _registry[key]
            if spec is not None:
                # Compare by identity: the client of the removed user must not be used any longer.
                self._specs = remove_spec(self._specs, spec)
            used = self.loop_host.spec
            must_stop = used is not None and (
                last or used not in self._specs or used.shares_client(spec)
            )
            stop = self.loop_host.detach() if must_stop else None
        try:
            if stop is not None:
                await stop()
        finally:
            if last:
                telemetry.unwatch(self)
                if self._file_lock is not None and self._pid == os.getpid():
                    # Force the release: a replicator whose event loop ended has not released the
                    # lock. A forked child must not do this, because it would release the parent's
                    # lock.
                    self._file_lock.release(force=True)
                await self.journal.close()
            elif self.spec is not None and self.accepted.url == self.spec.server:
                self.loop_host.ensure_running()

    @property
    def spec(self) -> RemoteSpec | None:
        """Connection settings of the server; None for local-only use."""
        return self._specs[0] if self._specs else None

    def author(self) -> Author:
        """Return the author of an operation that is written now: writer id, time and run gap."""
        gap_ms = int(self.options.run_gap * 1000)
        return Author(self.writer, self.runtime.wall_ms(), gap_ms, self._renew_writer)

    def _renew_writer(self, claimed: str) -> str:
        """Return a writer id other than ``claimed``, which this process uses from now on."""
        if self.writer == claimed:
            self._take_writer()
        return self.writer

    def _take_writer(self) -> None:
        self.writer = self.runtime.writer()
        replicator = self.loop_host.replicator()
        if replicator is not None:
            replicator.context.writer = self.writer

    def _replaced(self) -> tuple[str, str]:
        """Take a new writer id, because another file has replaced the journal.

        Return the old and the new writer id.
        """
        retired = self.writer
        self._take_writer()
        self.hydration.forget()
        return retired, self.writer

    # -- opening and writing ---------------------------------------------------------------------

    async def open(self) -> None:
        """Open the journal. Create the default directory if the journal's path is the default."""
        if self.journal.is_open and self.journal.history.beginning is not None:
            return
        make_default_directory(self.path)
        await self.journal.history.begin()

    def open_blocking(self) -> None:
        """Open the journal without an event loop."""
        if not self.journal.is_open:
            make_default_directory(self.path)
            self.journal.history.begin_blocking()

    async def append(
        self,
        session_id: str,
        encoded: list[tuple[str, int]],
        joined: JoinedAppend,
        *,
        private: bool,
        is_sent: bool,
        removed: Sequence[tuple[Dot, int]] = (),
    ) -> None:
        """Append a batch to the turn that it joins, and remove the items in ``removed``.

        A batch that ``is_sent`` to a server counts against the quota. While the outbox is full, the
        batch waits or is refused, depending on the options.

        Raises:
            JournalFull: the batch did not fit the quota in time; nothing of the batch is stored.
        """
        history, options = self.journal.history, self.options
        limited = is_sent and history.quota.is_limited
        until = self.runtime.monotonic() + options.full_timeout
        while not await history.append(
            self.author(),
            session_id,
            encoded,
            private=private,
            turn=joined.choice,
            limited=limited,
            removed=removed,
            stored=joined.stored,
        ):
            if not history.quota.could_ever_hold(encoded):
                raise full_error(
                    encoded,
                    history.quota,
                    "it is larger than the quota of unsent items; split it, or raise the quota",
                )
            if options.when_full == "reject" or self.runtime.monotonic() >= until:
                raise full_error(
                    encoded,
                    history.quota,
                    "too much is unsent; let the session sync (see status()), or raise the quota",
                )
            self.loop_host.ensure_running()
            await anyio.sleep(FULL_PAUSE)

    # -- the replicator --------------------------------------------------------------------------

    async def _start_replicator(self, spec: RemoteSpec) -> Replicator:
        await self.open()
        remote = await spec.open(self.options, self.journal.offload)
        telemetry.watch(self)
        context = Context(
            self.journal,
            remote,
            self.options,
            self.runtime,
            self.writer,
            self._renew_writer,
            move=spec.move,
        )
        replicator = Replicator(
            context, self._lock_file(), on_pulled=self._on_pulled, on_pushed=self.news.wake
        )
        with self._guard:
            following = list(self._following)
        for session_id in following:
            replicator.follow(session_id)
        return replicator

    def _lock_file(self) -> BaseFileLock | None:
        if self.path == MEMORY:
            return None
        if self._file_lock is None:
            self._file_lock = FileLock(
                f"{os.path.realpath(self.path)}.lock", thread_local=False, mode=0o600
            )
        return self._file_lock

    def follow(self, session_id: str) -> None:
        """Register one more session object for a session, and pull the session from now on."""
        with self._guard:
            self._following[session_id] += 1
            first = self._following[session_id] == 1
        if first:
            self.loop_host.send(lambda replicator: replicator.follow(session_id))

    def unfollow(self, session_id: str) -> None:
        """Unregister a session object. Stop pulling the session if it has no other open object."""
        with self._guard:
            self._following[session_id] -= 1
            if self._following[session_id] > 0:
                return
            del self._following[session_id]
        self.loop_host.send(lambda replicator: replicator.unfollow(session_id))

    def wrote(self) -> None:
        """Wake the replicator after a write, so that it pushes soon."""
        self.loop_host.ensure_running()
        self.loop_host.send(lambda replicator: replicator.wake())

    def touch(self, session_id: str) -> None:
        """Record a use of a session, so that the session is polled at the active interval."""
        replicator = self.loop_host.replicator()
        if replicator is not None:
            replicator.schedule.use(session_id)

    def _on_pulled(self, session_id: str) -> None:
        self.hydration.wake(session_id)
        self.news.wake(session_id)

    # -- status ----------------------------------------------------------------------------------

    def status(
        self, session_id: str | None = None, *, prefix: str | None = None, is_closed: bool
    ) -> Status:
        """Read the status of one session, of a key prefix's sessions, or else of the journal."""
        if not is_closed:
            self.open_blocking()
        server = self.spec.server if self.spec else None
        if not self.journal.is_open:
            return status_report.closed(self.path, server)
        at = Viewpoint(
            self.path,
            server,
            now=self.runtime.wall_ms(),
            opened=self._opened_ms,
            is_closed=is_closed,
            local_error=self._local_error,
        )
        rows = self.journal.status.read_blocking(session_id, at.now, self._gap_patience_ms)
        return status_report.report(rows, at, session_id, prefix)

    def _local_error(self, session_id: str | None) -> str | None:
        replicator = self.loop_host.replicator()
        return None if replicator is None else replicator.context.local_errors.reason(session_id)

    def backlog(self) -> telemetry.Backlog | None:
        """Return the counts of unsent work for the metrics; None if the journal is closed."""
        if not self.journal.is_open:
            return None
        now = self.runtime.wall_ms()
        try:
            counts = self.journal.status.totals_blocking(now, self._gap_patience_ms)
        except (JournalError, SessionClosed):
            log.debug("cannot read the journal for its metrics", exc_info=True)
            return None
        age = status_report.backlog_age(counts.oldest_pending_ms, now) or 0.0
        return telemetry.Backlog(counts.pending, counts.parked, counts.absent, age)


_numbers = itertools.count()
_registry: dict[str, Engine] = {}
"""The engines of this process by the real path of their journals."""
_registry_lock = threading.Lock()

_inherited: list[Engine] = []
"""Engines of the parent process, in a forked child."""


def _forget_parents() -> None:
    """Remove the parent's engines from the registry in a forked child, but keep references to them.

    Without a reference, garbage collection would close SQLite files that the parent has open. This
    would release the parent's locks on the files.
    """
    global _registry_lock  # noqa: PLW0603 - another thread may have held it at the fork
    _registry_lock = threading.Lock()
    _inherited.extend(_registry.values())
    _registry.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)


@atexit.register
def _close_all() -> None:
    # Some programs never close their sessions. Close their journals and writing threads here.
    for engine in list(_registry.values()):
        engine.journal.close_blocking()
