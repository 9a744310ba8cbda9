"""What all sessions over one journal share in a process: the file, the server, the replicator."""

from __future__ import annotations

import asyncio
import atexit
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
from filelock import BaseFileLock, FileLock

from cached_session import fork_safety, telemetry
from cached_session.engine import status_report
from cached_session.engine.loop_host import LoopHost
from cached_session.engine.notifier import Notifier
from cached_session.engine.status_report import Viewpoint
from cached_session.errors import InvalidArgument, JournalError, JournalFull, SessionClosed
from cached_session.history.ops import Dot
from cached_session.journal.journal import MEMORY, Journal, shielded
from cached_session.journal.quota import Quota
from cached_session.journal.tables import item_rows, outbox, pauses, status_counts, writes
from cached_session.journal.tables.sessions import record_first_read, session_row
from cached_session.journal.tables.writes import Author, LastWrite, Popped, Written
from cached_session.journal.tail_cache import TailCache
from cached_session.models import Progress, Status
from cached_session.options import SyncOptions
from cached_session.paths import default_journal
from cached_session.remote.connect import RemoteSpec, remove_spec
from cached_session.replication.context import Context, log
from cached_session.replication.replicator import Replicator
from cached_session.runtime import Runtime

__all__ = ["Engine"]

FULL_PAUSE = 0.05
"""Seconds between a blocked writer's looks for room: less than a push over a network takes."""


class Engine:
    """One journal in this process. Safe to use from several event loops and threads."""

    def __init__(self, path: str, options: SyncOptions, runtime: Runtime) -> None:
        self.path = path
        self.options = options
        self.runtime = runtime
        self.writer = runtime.writer()
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
            on_replaced=self._replaced,
        )
        self.tail_cache = TailCache()
        self._last_write = LastWrite()
        self._quota = Quota(options.max_pending_items, options.max_pending_bytes)
        self.beginning: int | None = None
        """The `seq` of the last operation before this process had the journal open, and so before
        anything that it wrote or fetched; None until then."""
        self._users = 0
        self._specs: list[RemoteSpec] = []
        self._hole_patience_ms = int(options.hole_patience * 1000)
        self.loop_host = LoopHost(
            path,
            self._guard,
            lambda: self.spec,
            self._start,
            watch_interval=options.watch_interval,
        )
        self._file_lock: BaseFileLock | None = None
        self._following: Counter[str] = Counter()
        self._met: set[str] = set()
        self._arrivals = Notifier()
        self.news = Notifier()
        """Woken by whatever may have changed what a session shows, or what of it waits."""

    # -- one engine a journal ----------------------------------------------------------------------

    @classmethod
    def acquire(
        cls, path: str, spec: RemoteSpec | None, options: SyncOptions, runtime: Runtime
    ) -> Engine:
        """The engine of a journal: shared by all that name the same file.

        Raises:
            InvalidArgument: the journal is open with another server.
        """
        if path != MEMORY:
            # Whoever changes the working directory later must not change which file is meant.
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
                "the journal %s is open in this process with other options: those hold for all "
                "that share it, until the last of them is closed",
                path,
            )
        return engine

    def join(self, spec: RemoteSpec | None) -> None:
        """One user more.

        Raises:
            InvalidArgument: the journal is open with another server.
        """
        with self._guard:
            if spec is not None:
                for other in self._specs:
                    if not spec.is_same_server(other):
                        raise InvalidArgument(
                            f"the journal {self.path} is open with the server {other.server} "
                            f"(and its key); {spec.server} needs a journal of its own"
                        )
                self._specs.append(spec)
            self._users += 1

    async def release(self, spec: RemoteSpec | None) -> None:
        """One user less. The last one closes the journal; the last with a server stops syncing.

        If cancelled, all of that is done before the cancellation goes on.
        """
        with _registry_lock, self._guard:
            self._users -= 1
            last = self._users <= 0
            if last:
                for key in [key for key, engine in _registry.items() if engine is self]:
                    del _registry[key]
            if spec is not None:
                # By identity: the connection of this very user must not be used any longer.
                self._specs = remove_spec(self._specs, spec)
            lives = self.loop_host.spec
            moves = lives is not None and (
                last or lives not in self._specs or lives.shares_client(spec)
            )
            stop = self.loop_host.leave() if moves else None
        try:
            if stop is not None:
                await stop()
        finally:
            if last:
                telemetry.unwatch(self)
                if self._file_lock is not None and self._pid == os.getpid():
                    # By force: a host whose event loop went away never let go of its share. Not in
                    # a forked child: the lock is the parent's, which would lose it.
                    self._file_lock.release(force=True)
                await self.journal.close()
            elif self.spec is not None:
                self.loop_host.keep()

    @property
    def spec(self) -> RemoteSpec | None:
        """How to reach the server; None for local-only use."""
        return self._specs[0] if self._specs else None

    def author(self) -> Author:
        """The signature of an operation written now."""
        return Author(self.writer, self.runtime.wall_ms(), int(self.options.run_gap * 1000))

    def _replaced(self) -> tuple[str, str]:
        """Another file takes the place of the journal: nothing that is remembered of the old one
        holds, and what is written from now on has another writer."""
        retired, self.writer = self.writer, self.runtime.writer()
        replicator = self.loop_host.replicator()
        if replicator is not None:
            replicator.context.writer = self.writer
        self._met.clear()
        self.tail_cache.forget()
        self._last_write = LastWrite()
        self._quota = Quota(self.options.max_pending_items, self.options.max_pending_bytes)
        return retired, self.writer

    async def append(
        self,
        session_id: str,
        encoded: list[tuple[str, int]],
        *,
        private: bool,
        leaves: bool,
        instead_of: Sequence[tuple[Dot, int]] = (),
    ) -> None:
        """Append a batch, in place of the items named. One that leaves for a server is held up or
        refused where the outbox is full.

        Raises:
            JournalFull: there was no room in time; nothing of the batch is stored.
        """
        room = self._quota if leaves and self._quota.is_limited else None
        size = sum(len(text.encode(errors="replace")) for text, _ in encoded) if room else 0

        def job(conn: sqlite3.Connection) -> Written | None:
            if room is not None and not room.admits(conn, len(encoded), size):
                return None
            writes.remove(conn, author, session_id, instead_of)
            return writes.append(
                conn, author, session_id, encoded, private=private, last=self._last_write
            )

        options = self.options
        until = self.runtime.monotonic() + options.full_timeout
        while True:
            author = self.author()
            written = await self.journal.write(job)
            if written is not None:
                self._last_write.keep(written)
                self.tail_cache.appended(session_id, written.revision, written.version, encoded)
                return
            if room is not None and not room.could_ever_hold(len(encoded), size):
                why = "is larger than the limit on unsent work; split it, or raise the limit"
            elif options.when_full == "reject" or self.runtime.monotonic() >= until:
                why = "finds no room: too much is unsent. See status(): is the server out of reach?"
            else:
                self.loop_host.keep()
                await anyio.sleep(FULL_PAUSE)
                continue
            raise JournalFull(
                f"a batch of {len(encoded)} items ({size} bytes) {why} "
                f"(max_pending_items={options.max_pending_items}, "
                f"max_pending_bytes={options.max_pending_bytes})"
            )

    async def pop(self, session_id: str) -> tuple[bytes, int] | None:
        """Remove the latest item; its row, or None where there is none."""
        author = self.author()

        def job(conn: sqlite3.Connection) -> Popped | None:
            return writes.pop(conn, author, session_id, self._last_write)

        popped = await self.journal.write(job)
        if popped is None:
            return None
        self._last_write.keep(popped.written)
        if popped.was_last:
            self.tail_cache.popped(session_id, popped.written.revision, popped.written.version)
        return popped.row

    async def open(self) -> None:
        """Open the journal, with the directory of the default place if need be."""
        if self.journal.is_open and self.beginning is not None:
            return
        self._make_default_directory()
        await self.journal.maintain(self._begin)

    def open_blocking(self) -> None:
        """`open` without an event loop."""
        if not self.journal.is_open:
            self._make_default_directory()
            self.journal.open_blocking()
            self.journal.read_blocking(self._begin)

    def _begin(self, conn: sqlite3.Connection) -> None:
        if self.beginning is None:
            self.beginning = outbox.newest(conn)

    def _make_default_directory(self) -> None:
        if self.path == str(Path(default_journal()).absolute()):
            try:
                Path(self.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError:
                # Opening the file says what is wrong, and names the path.
                log.debug("the default directory cannot be made", exc_info=True)

    # -- the replicator ---------------------------------------------------------------------------

    async def _start(self, spec: RemoteSpec) -> Replicator:
        await self.open()
        remote = await spec.open(self.options, self.journal.offload)
        telemetry.watch(self)
        context = Context(self.journal, remote, self.options, self.runtime, self.writer)
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

    # -- sessions --------------------------------------------------------------------------------

    def follow(self, session_id: str) -> None:
        """A session object is in use: keep its history up to date."""
        with self._guard:
            self._following[session_id] += 1
            first = self._following[session_id] == 1
        if first:
            self.loop_host.tell(lambda replicator: replicator.follow(session_id))

    def unfollow(self, session_id: str) -> None:
        """A session object was closed."""
        with self._guard:
            self._following[session_id] -= 1
            if self._following[session_id] > 0:
                return
            del self._following[session_id]
        self.loop_host.tell(lambda replicator: replicator.unfollow(session_id))

    def wrote(self) -> None:
        """Something was written: push it soon."""
        self.loop_host.keep()
        self.loop_host.tell(lambda replicator: replicator.wake())

    def touch(self, session_id: str) -> None:
        """A session was used: poll it at the pace of use."""
        replicator = self.loop_host.replicator()
        if replicator is not None:
            replicator.schedule.use(session_id)

    # -- the first read --------------------------------------------------------------------------

    async def meet(
        self,
        session_id: str,
        limit: int | None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Before the first read of a session: wait for a pull that began after this call, or for
        the tail that is asked for. Once a journal, bounded, and not while the server is known to be
        out of reach."""
        if session_id in self._met:
            return
        moment = self.runtime.monotonic()
        self.loop_host.tell(lambda replicator: replicator.request_pull(session_id, moment))
        with (
            self._arrivals.waiting(session_id) as event,
            anyio.move_on_after(self.options.hydrate_timeout),
        ):
            while not await self._has_met(session_id, limit, moment, on_progress):
                await event.wait()
                event.clear()
        if session_id not in self._met:
            # Not waited for: it would stand in line behind the pages that are being applied.
            self._note_met(session_id).add_done_callback(self._is_noted)
            self._met.add(session_id)

    async def have_met(self, session_id: str) -> None:
        """The first read of this session has nothing to wait for (any more)."""
        if session_id not in self._met:
            await shielded(self._note_met(session_id))
            self._met.add(session_id)

    def _note_met(self, session_id: str) -> asyncio.Future[None]:
        now = self.runtime.wall_ms()
        loop = asyncio.get_running_loop()
        return self.journal.write_soon(loop, record_first_read, session_id, now)

    def _is_noted(self, noted: asyncio.Future[None]) -> None:
        if not noted.cancelled() and noted.exception() is not None:
            log.warning("the next opening waits for the first read again: %s", noted.exception())

    async def _has_met(
        self,
        session_id: str,
        limit: int | None,
        moment: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> bool:
        def ask(conn: sqlite3.Connection) -> tuple[int, bool]:
            row = session_row(conn, session_id)
            _, items, met, hydrated, _ = row or (0, 0, 0, 0, 0)
            # A gate is the memory of a failure: the server, or this session on it, is out of reach.
            shut = any(pauses.pause_of(conn, whose) for whose in (None, session_id))
            tail = not hydrated and limit is not None and items >= limit
            if tail and row is not None and limit is not None:
                tail = item_rows.is_whole_tail(conn, row[0], limit)
            return items, bool(met or shut or tail)

        items, done = await self.journal.read(ask)
        replicator = self.loop_host.replicator()
        done = done or (replicator is not None and replicator.schedule.fresh(session_id) >= moment)
        if on_progress is not None:
            on_progress(Progress(session_id, items, done))
        return done

    def _on_pulled(self, session_id: str) -> None:
        self._arrivals.wake(session_id)
        self.news.wake(session_id)

    # -- status ----------------------------------------------------------------------------------

    def status(self, session_id: str | None, *, is_closed: bool) -> Status:
        """One session, or all of the journal. Reads the journal and nothing else."""
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
            hole_patience=self._hole_patience_ms,
            is_closed=is_closed,
            trouble=self._trouble,
        )
        return self.journal.read_blocking(lambda conn: status_report.report(conn, session_id, at))

    def _trouble(self, session_id: str | None) -> str | None:
        replicator = self.loop_host.replicator()
        return None if replicator is None else replicator.context.local_errors.reason(session_id)

    def backlog(self) -> telemetry.Backlog | None:
        """What waits in all sessions together; None if the journal is closed. From any thread."""
        now, patience = self.runtime.wall_ms(), self._hole_patience_ms
        if not self.journal.is_open:
            return None
        try:
            facts = self.journal.read_blocking(
                lambda conn: status_counts.facts(conn, None, now, patience)
            )
        except (JournalError, SessionClosed):
            log.debug("the journal cannot be read for its metrics", exc_info=True)
            return None
        age = status_report.backlog_age(facts.oldest_pending_ms, now) or 0.0
        return telemetry.Backlog(facts.pending, facts.parked, facts.absent, age)


_registry: dict[str, Engine] = {}
_registry_lock = threading.Lock()


_inherited: list[Engine] = []


def _forget_parents() -> None:
    """In a forked child: the parent's journals are not ours. They are kept from being collected,
    because closing a SQLite file that the parent has open would drop the parent's locks on it."""
    global _registry_lock  # noqa: PLW0603 - another thread may have held it at the fork
    _registry_lock = threading.Lock()
    _inherited.extend(_registry.values())
    _registry.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)


@atexit.register
def _close_all() -> None:
    # A program that never closed its sessions: end the writing threads in good order.
    for engine in list(_registry.values()):
        engine.journal.close_blocking()
