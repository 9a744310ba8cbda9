"""What all sessions over one journal share in a process: the file, the server, the replicator.

The replicator lives on one event loop, the *home*. When that loop is gone (``Runner.run_sync`` and
``asyncio.run`` make a new one each time) the next call moves it to its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sqlite3
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import platformdirs
from filelock import BaseFileLock, FileLock

from cached_session import telemetry
from cached_session.errors import (
    InvalidArgument,
    JournalError,
    JournalFull,
    SessionClosed,
    SyncError,
)
from cached_session.history.clock import stamp_ms
from cached_session.journal import gates, reads, salvage, writes
from cached_session.journal.connection import MEMORY, Journal, settle
from cached_session.journal.room import Room
from cached_session.journal.tails import Tails
from cached_session.journal.writes import Author
from cached_session.options import SyncOptions
from cached_session.remote.dakera import (
    DakeraRemote,
    check_client,
    check_url,
    connect,
    is_private,
)
from cached_session.replication.link import Link, log
from cached_session.replication.worker import Replicator
from cached_session.runtime import Runtime
from cached_session.status import Progress, State, Status

__all__ = ["Core", "RemoteSpec", "default_journal", "journal_path"]

T = TypeVar("T")

STOP_PATIENCE = 5.0
"""Seconds that closing waits for a replicator on another event loop."""
STALLED_MS = 120_000
"""A queue that waits this long, with no pause that explains it and nothing acknowledged, stalls:
four times as long as one request may take."""
FULL_PAUSE = 0.05
"""Seconds between a blocked writer's looks for room: less than a push over a network takes."""
CLOCK_AHEAD_MS = 60_000
"""Devices' clocks differ by seconds; more than this is worth a word in the status."""


def default_journal() -> str:
    """Where a device keeps its sessions if nobody says otherwise."""
    return str(Path(platformdirs.user_data_dir("cached_session")) / "sessions.db")


def journal_path(journal: object) -> str:
    """The path of a journal as its owner named it.

    Raises:
        InvalidArgument: it is no path.
    """
    if journal is None:
        return default_journal()
    if isinstance(journal, (str, os.PathLike)):
        path = os.fspath(journal)
        if isinstance(path, str) and path and "\x00" not in path:
            return path
    raise InvalidArgument(
        f"journal={journal!r} is not a path; pass a file name, ':memory:' or None for the default"
    )


@dataclass(frozen=True)
class RemoteSpec:
    """How to reach the server; the connection itself belongs to an event loop."""

    server: str
    api_key: str | None = field(default=None, repr=False)
    client: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def make(cls, url: object, api_key: object, client: object) -> RemoteSpec | None:
        """From a constructor's arguments; None for local-only use.

        Raises:
            InvalidArgument: they make no sense.
        """
        if client is not None:
            if url is not None or api_key is not None:
                raise InvalidArgument("pass either client or url and api_key, not both")
            server = check_client(client)
            _warn_of_plain_http(server, getattr(client, "api_key", None))
            return cls(server, client=client)
        if url is None:
            if api_key is not None:
                raise InvalidArgument("api_key without url: pass the server's address too")
            return None
        if api_key is not None and not (
            isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()
        ):
            # The value is a secret: it is not shown.
            raise InvalidArgument("api_key must be a string of printable ASCII characters or None")
        server = check_url(url)
        _warn_of_plain_http(server, api_key)
        return cls(server, api_key or None)

    def agrees(self, other: RemoteSpec) -> bool:
        """Whether both reach the same server the same way; an injected client has its own key."""
        keys = self.api_key == other.api_key or self.client is not None or other.client is not None
        return self.server == other.server and keys

    async def open(self, options: SyncOptions) -> DakeraRemote:
        """A remote for the running event loop."""
        # The SDK's import takes a while: not on the event loop.
        await asyncio.to_thread(__import__, "dakera")
        await asyncio.to_thread(telemetry.load)
        if self.client is not None:
            return DakeraRemote(self.client, options, owned=False)
        return connect(self.server, self.api_key, options)


@dataclass
class _Home:
    """Where the replicator lives."""

    loop: asyncio.AbstractEventLoop
    spec: RemoteSpec
    ready: asyncio.Future[Replicator]
    task: asyncio.Task[None] | None = None
    pid: int = field(default_factory=os.getpid)

    def is_alive(self) -> bool:
        return (
            self.task is not None
            and not self.task.done()
            and self.pid == os.getpid()
            and not self.loop.is_closed()
            and self.loop.is_running()
        )


class Core:
    """One journal in this process. Safe to use from several event loops and threads."""

    def __init__(self, path: str, options: SyncOptions, runtime: Runtime) -> None:
        self.path = path
        self.options = options
        self.runtime = runtime
        self.writer = runtime.writer()
        self._opened_ms = runtime.wall_ms()
        self.journal = Journal(
            path,
            durability=options.durability,
            busy_timeout=options.busy_timeout,
            threaded=runtime.threaded,
            search_index=options.search_index,
            on_replaced=self._replaced,
        )
        self.tails = Tails()
        self._room = Room(options.max_pending_items, options.max_pending_bytes)
        self._guard = threading.RLock()
        self._users = 0
        self._specs: list[RemoteSpec] = []
        self._home: _Home | None = None
        self._file_lock: BaseFileLock | None = None
        self._following: Counter[str] = Counter()
        self._met: set[str] = set()
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    # -- one core a journal ----------------------------------------------------------------------

    @classmethod
    def acquire(
        cls, path: str, spec: RemoteSpec | None, options: SyncOptions, runtime: Runtime
    ) -> Core:
        """The core of a journal: shared by all that name the same file.

        Raises:
            InvalidArgument: the journal is open with another server.
        """
        if path != MEMORY:
            # Whoever changes the working directory later must not change which file is meant.
            path = str(Path(path).absolute())
        with _registry_lock:
            key = None if path == MEMORY else os.path.realpath(path)
            core = _registry.get(key) if key else None
            if core is None:
                core = cls(path, options, runtime)
                if key:
                    _registry[key] = core
            core.join(spec)
        return core

    def join(self, spec: RemoteSpec | None) -> None:
        """One user more.

        Raises:
            InvalidArgument: the journal is open with another server.
        """
        with self._guard:
            if spec is not None:
                for other in self._specs:
                    if not spec.agrees(other):
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
                for key in [key for key, core in _registry.items() if core is self]:
                    del _registry[key]
            if spec is not None:
                # By identity: the connection of this very user must not be used any longer.
                self._specs = _without(self._specs, spec)
            home = self._home
            moves = home is not None and (
                last or home.spec not in self._specs or _is(home.spec, spec)
            )
            if moves:
                self._home = None
        try:
            if moves and home is not None:
                await _stop(home)
        finally:
            if last:
                telemetry.unwatch(self)
                if self._file_lock is not None:
                    # By force: a home whose event loop went away never let go of its share.
                    self._file_lock.release(force=True)
                await self.journal.close()
            elif self.spec is not None:
                self.keep_home()

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
        replicator = self._replicator()
        if replicator is not None:
            replicator.link.writer = self.writer
        self._met.clear()
        self.tails.forget()
        self._room = Room(self.options.max_pending_items, self.options.max_pending_bytes)
        return retired, self.writer

    async def append(
        self, session_id: str, encoded: list[tuple[str, int]], *, private: bool, leaves: bool
    ) -> int:
        """Append a batch; the session's revision after it. One that leaves for a server is held up
        or refused where the outbox is full.

        Raises:
            JournalFull: there was no room in time; nothing of the batch is stored.
        """
        room = self._room if leaves and self._room.is_limited else None
        size = sum(len(text.encode(errors="replace")) for text, _ in encoded) if room else 0

        def job(conn: sqlite3.Connection) -> int | None:
            if room is not None and not room.admits(conn, len(encoded), size):
                return None
            return writes.append(conn, author, session_id, encoded, private=private)

        options = self.options
        until = self.runtime.monotonic() + options.full_timeout
        while True:
            author = self.author()
            revision = await self.journal.write(job)
            if revision is not None:
                return revision
            if room is not None and not room.could_ever_hold(len(encoded), size):
                why = "is larger than the limit on unsent work; split it, or raise the limit"
            elif options.when_full == "reject" or self.runtime.monotonic() >= until:
                why = "finds no room: too much is unsent. See status(): is the server out of reach?"
            else:
                self.keep_home()
                await anyio.sleep(FULL_PAUSE)
                continue
            raise JournalFull(
                f"a batch of {len(encoded)} items ({size} bytes) {why} "
                f"(max_pending_items={options.max_pending_items}, "
                f"max_pending_bytes={options.max_pending_bytes})"
            )

    async def open(self) -> None:
        """Open the journal, with the directory of the default place if need be."""
        if self.journal.is_open:
            return
        self._make_default_directory()
        await self.journal.open()

    def open_blocking(self) -> None:
        """`open` without an event loop."""
        if not self.journal.is_open:
            self._make_default_directory()
            self.journal.open_blocking()

    def _make_default_directory(self) -> None:
        if self.path == str(Path(default_journal()).absolute()):
            try:
                Path(self.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError:
                # Opening the file says what is wrong, and names the path.
                log.debug("the default directory cannot be made", exc_info=True)

    # -- the replicator's home -------------------------------------------------------------------

    def keep_home(self) -> None:
        """Make sure that the replicator lives, on this event loop if it has none."""
        home = self._home
        if home is not None and home.is_alive():
            return
        with self._guard:
            home = self._home
            spec = self.spec
            if spec is None or (home is not None and home.is_alive()):
                return
            if home is not None:
                _dismiss(home)
            loop = asyncio.get_running_loop()
            self._home = home = _Home(loop, spec, loop.create_future())
            home.task = loop.create_task(self._live(home), name="cached-session-replicator")

    async def _live(self, home: _Home) -> None:
        try:
            await self.journal.open()
            remote = await home.spec.open(self.options)
            telemetry.watch(self)
            link = Link(self.journal, remote, self.options, self.runtime, self.writer)
            replicator = Replicator(link, self._lock_file(), on_pulled=self._on_pulled)
            with self._guard:
                following = list(self._following)
            for session_id in following:
                replicator.follow(session_id)
            if not home.ready.done():
                home.ready.set_result(replicator)
            await replicator.run()
        except Exception as error:  # noqa: BLE001 - whatever it was: told, logged, begun again
            if not home.ready.done():
                home.ready.set_exception(error)
                home.ready.exception()  # seen: whoever waits for it is told as well
            log.exception("the replicator of %s has stopped; the next call starts it", self.path)
        finally:
            if not home.ready.done():
                home.ready.cancel()

    def _lock_file(self) -> BaseFileLock | None:
        if self.path == MEMORY:
            return None
        if self._file_lock is None:
            self._file_lock = FileLock(
                f"{os.path.realpath(self.path)}.lock", thread_local=False, mode=0o600
            )
        return self._file_lock

    async def at_home(
        self, work: Callable[[Replicator], Coroutine[Any, Any, T]], *, repeatable: bool = True
    ) -> T:
        """Do something with the replicator, on its own event loop; again in the next home, if that
        loop is gone in the middle of it and the work can be repeated.

        Raises:
            SyncError: there is no server, or the loop is gone and the work cannot be repeated.
        """
        while True:
            self.keep_home()
            home = self._home
            if home is None:
                raise SyncError(
                    "this session has no server; make it with CachedSession.from_url, "
                    "or pass client"
                )
            if home.loop is asyncio.get_running_loop():
                return await work(await asyncio.shield(home.ready))
            going = asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(_there(home, work), home.loop)
            )
            try:
                while not going.done() and home.is_alive():
                    await asyncio.wait([going], timeout=self.options.watch_interval)
                if going.done() and not going.cancelled():
                    return going.result()
            finally:
                going.cancel()
            if not repeatable:
                raise SyncError("the event loop that syncs was closed in the middle of this call")

    def tell(self, message: Callable[[Replicator], None]) -> None:
        """Tell the replicator something, from any thread; nothing happens if there is none."""
        home = self._home
        if home is None:
            return

        def deliver() -> None:
            replicator = self._replicator()
            if replicator is not None and self._home is home:
                message(replicator)

        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if home.loop is running:
            deliver()
            return
        try:
            home.loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            log.debug("the replicator's event loop is gone; the next call makes a new home")

    # -- sessions --------------------------------------------------------------------------------

    def follow(self, session_id: str) -> None:
        """A session object is in use: keep its history up to date."""
        with self._guard:
            self._following[session_id] += 1
            first = self._following[session_id] == 1
        if first:
            self.tell(lambda replicator: replicator.follow(session_id))

    def unfollow(self, session_id: str) -> None:
        """A session object was closed."""
        with self._guard:
            self._following[session_id] -= 1
            if self._following[session_id] > 0:
                return
            del self._following[session_id]
        self.tell(lambda replicator: replicator.unfollow(session_id))

    def wrote(self) -> None:
        """Something was written: push it soon."""
        self.keep_home()
        self.tell(lambda replicator: replicator.wake())

    def touch(self, session_id: str) -> None:
        """A session was used: poll it at the pace of use."""
        replicator = self._replicator()
        if replicator is not None:
            replicator.touch(session_id)

    def _replicator(self) -> Replicator | None:
        home = self._home
        ready = home.ready if home is not None else None
        if ready is None or not ready.done() or ready.cancelled() or ready.exception():
            return None
        return ready.result()

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
        self.tell(lambda replicator: replicator.freshen(session_id, moment))
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._guard:
            self._waiting.setdefault(session_id, []).append(waiter)
        try:
            with anyio.move_on_after(self.options.hydrate_timeout):
                while not await self._has_met(session_id, limit, moment, on_progress):
                    await event.wait()
                    event.clear()
        finally:
            with self._guard:
                self._waiting[session_id].remove(waiter)
                if not self._waiting[session_id]:
                    del self._waiting[session_id]
        await self.have_met(session_id)

    async def have_met(self, session_id: str) -> None:
        """The first read of this session has nothing to wait for (any more)."""
        if session_id not in self._met:
            now = self.runtime.wall_ms()
            await self.journal.write(lambda conn: reads.note_met(conn, session_id, now))
            self._met.add(session_id)

    async def _has_met(
        self,
        session_id: str,
        limit: int | None,
        moment: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> bool:
        def ask(conn: sqlite3.Connection) -> tuple[int, bool]:
            row = reads.session_row(conn, session_id)
            _, items, met, hydrated, _ = row or (0, 0, 0, 0, 0)
            # A gate is the memory of a failure: the server, or this session on it, is out of reach.
            shut = any(gates.gate_of(conn, whose) for whose in (None, session_id))
            tail = not hydrated and limit is not None and items >= limit
            if tail and row is not None and limit is not None:
                tail = reads.is_whole_tail(conn, row[0], limit)
            return items, bool(met or shut or tail)

        items, done = await self.journal.read(ask)
        replicator = self._replicator()
        done = done or (replicator is not None and replicator.fresh(session_id) >= moment)
        if on_progress is not None:
            on_progress(Progress(session_id, items, done))
        return done

    def _on_pulled(self, session_id: str) -> None:
        with self._guard:
            waiting = list(self._waiting.get(session_id, ()))
        for loop, event in waiting:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                log.debug("a reader's event loop is gone")

    # -- status ----------------------------------------------------------------------------------

    def status(self, session_id: str | None, *, is_closed: bool) -> Status:
        """One session, or all of the journal. Reads the journal and nothing else."""
        if not is_closed:
            self.open_blocking()
        now = self.runtime.wall_ms()
        if not self.journal.is_open:
            return _closed(self.path, self.spec)
        return self.journal.read_blocking(
            lambda conn: self._status(conn, session_id, now, is_closed)
        )

    def backlog(self) -> telemetry.Backlog | None:
        """What waits in all sessions together; None if the journal is closed. From any thread."""
        now, patience = self.runtime.wall_ms(), int(self.options.hole_patience * 1000)
        if not self.journal.is_open:
            return None
        try:
            facts = self.journal.read_blocking(lambda conn: reads.facts(conn, None, now, patience))
        except (JournalError, SessionClosed):
            log.debug("the journal cannot be read for its metrics", exc_info=True)
            return None
        oldest = facts.oldest_pending_ms
        age = 0.0 if oldest is None else max(0.0, (now - oldest) / 1000)
        return telemetry.Backlog(facts.pending, facts.parked, facts.absent, age)

    def _status(
        self, conn: sqlite3.Connection, session_id: str | None, now: int, is_closed: bool
    ) -> Status:
        row = None if session_id is None else reads.session_row(conn, session_id)
        meta = gates.read_meta(conn)
        number = None if session_id is None else (row[0] if row else -1)
        facts = reads.facts(conn, number, now, int(self.options.hole_patience * 1000))
        found = [gates.gate_of(conn, None), gates.gate_of(conn, session_id)]
        if session_id is None:
            found += reads.all_gates(conn)
        shut = [gate for gate in found if gate is not None]
        success = meta.get("last_success_ms")
        salvaged = salvage.report_of(meta)
        spec = self.spec
        if is_closed:
            state: State = "closed"
        elif spec is None:
            state = "local"
        elif any(gate.kind == "unauthorized" for gate in shut):
            state = "unauthorized"
        elif found[0] is not None or (session_id is not None and shut):
            state = "offline"
        else:
            state = "online" if success else "connecting"
        oldest = facts.oldest_pending_ms
        error = shut[-1].reason if shut else None
        if spec is not None and not is_closed and oldest is not None and not shut:
            since = max(oldest, int(meta.get("last_ack_ms", 0)), self._opened_ms)
            if now - since > STALLED_MS:
                error = (
                    f"{facts.pending} operations wait and nothing was sent for "
                    f"{(now - since) // 1000} s: is the process alive that syncs {self.path} "
                    "(the one that holds the lock beside it), and its event loop not held up?"
                )
        ahead = stamp_ms(facts.stamp) - now
        waits = [gate.wait_ms(now) for gate in shut]
        sessions = {}
        if session_id is None:
            sessions = {
                name: self._status(conn, name, now, is_closed) for name in reads.all_sessions(conn)
            }
        return Status(
            state=state,
            items=facts.items,
            pending=facts.pending,
            parked=facts.parked,
            absent=facts.absent,
            oldest_pending_age=None if oldest is None else max(0.0, (now - oldest) / 1000),
            last_success=int(success) / 1000 if success else None,
            last_error=error,
            server=spec.server if spec else None,
            journal=self.path,
            retry_in=max(waits) / 1000 if waits else None,
            incomplete=facts.incomplete,
            conflicts=facts.conflicts,
            clock_ahead=ahead / 1000 if ahead > CLOCK_AHEAD_MS else None,
            unreadable=facts.unreadable,
            unguarded=facts.guard or None,
            salvaged=salvaged.sentence() if salvaged else None,
            hydrated=facts.hydrated,
            last_server=meta.get("server"),
            sessions=sessions,
        )


def _warn_of_plain_http(server: str, api_key: object) -> None:
    """Once a server and process: a key over plain HTTP is read by everybody on the way."""
    if not api_key or is_private(server) or server in _warned:
        return
    _warned.add(server)
    warnings.warn(
        f"the API key for {server} travels unencrypted; use https, or a tunnel to a local port",
        UserWarning,
        stacklevel=5,
    )


def _closed(path: str, spec: RemoteSpec | None) -> Status:
    return Status(
        state="closed",
        items=0,
        pending=0,
        parked=0,
        absent=0,
        oldest_pending_age=None,
        last_success=None,
        last_error=None,
        server=spec.server if spec else None,
        journal=path,
    )


async def _there(home: _Home, work: Callable[[Replicator], Coroutine[Any, Any, T]]) -> T:
    return await work(await asyncio.shield(home.ready))


def _is(one: RemoteSpec, other: RemoteSpec | None) -> bool:
    return other is not None and one.client is not None and one.client is other.client


def _without(specs: list[RemoteSpec], gone: RemoteSpec) -> list[RemoteSpec]:
    for position, spec in enumerate(specs):
        if spec is gone:
            return specs[:position] + specs[position + 1 :]
    return specs


def _dismiss(home: _Home) -> None:
    """End a replicator whose event loop stands still, in case that it ever turns again."""
    if home.task is not None and not home.task.done():
        try:
            home.loop.call_soon_threadsafe(home.task.cancel)
        except RuntimeError:
            log.debug("the replicator's event loop is gone, and the replicator with it")


async def _stop(home: _Home) -> None:
    """End the replicator and wait until its connections are closed."""
    task = home.task
    if task is None or task.done() or home.loop.is_closed() or home.pid != os.getpid():
        return
    if home.loop is asyncio.get_running_loop():
        task.cancel()
        await settle(asyncio.ensure_future(asyncio.wait([task])))
        return
    if not home.loop.is_running():
        # Nobody turns that loop: its task can neither run nor end. The lock is let go by us.
        return

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])

    ended = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(end(), home.loop))
    # A loop that is held up, or has stopped in the middle, must not hold up a close elsewhere: the
    # task ends when its loop turns again.
    waited = asyncio.ensure_future(asyncio.wait([ended], timeout=STOP_PATIENCE))
    try:
        await settle(waited)
    finally:
        ended.cancel()


_warned: set[str] = set()
_registry: dict[str, Core] = {}
_registry_lock = threading.Lock()


_inherited: list[Core] = []


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
    for core in list(_registry.values()):
        core.journal.close_blocking()
