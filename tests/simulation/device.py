"""A device: a clock, a journal file, the processes that have it open, and the calls of its user."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from cached_session.engine.engine import Engine
from cached_session.engine.session_config import SessionConfig
from cached_session.errors import PopUnconfirmed, SessionClosed, SyncError
from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import Dot, Kind, Mark, Operation, TurnKey, decode_pop
from cached_session.history.windows import drop_orphans
from cached_session.journal.sqlite.codec import encode_items
from cached_session.options import SyncOptions
from cached_session.remote.ids import claim_id, memory_id
from cached_session.runtime import Runtime
from cached_session.session import CachedSession, session_over
from tests.journal_rows import items_of
from tests.simulation import formats
from tests.simulation.loop import OWNER, Owner
from tests.simulation.network import SimSpec
from tests.simulation.oracle import (
    Add,
    InvariantViolated,
    Lineage,
    Removal,
    last_dot,
    names_of,
    turn_of,
    unsent_of,
)

if TYPE_CHECKING:
    from tests.simulation.simulation import World

__all__ = ["Clock", "Device", "Process"]

EPOCH_MS = 1_700_000_000_000


class Clock:
    """A wall clock that can be moved. Its monotonic time is not affected."""

    def __init__(self, now: Callable[[], float], skew: float) -> None:
        self._now = now
        self.skew_ms = int(skew * 1000)
        self._frozen: int | None = None

    def wall_ms(self) -> int:
        if self._frozen is not None:
            return self._frozen
        return self.true_ms() + self.skew_ms

    def true_ms(self) -> int:
        return EPOCH_MS + int(self._now() * 1000)

    def move(self, to: str, by: float) -> None:
        here, self._frozen = self.wall_ms(), None
        if to == "freeze":
            self._frozen = here
        elif to == "forward":
            self.skew_ms += int(by * 1000)
        elif to == "back":
            self.skew_ms -= int(by * 1000)
        elif to == "epoch":
            self.skew_ms = -self.true_ms()
        else:
            self.skew_ms = 0


class Process:
    """One opening of a journal: an engine and a session object for each use."""

    def __init__(self, device: Device, number: int) -> None:
        world = device.world
        self.device = device
        self.name = f"{device.name}/{number}"
        self.owner = Owner(self.name)
        self.owner.on_fuse = self.kill
        self.number = number
        self.closing = self.closed = False
        self.confirming = 0
        random = Random(f"{world.seed}/{self.name}")
        runtime = Runtime(
            wall_ms=device.clock.wall_ms,
            monotonic=world.loop.time,
            random=random,
            token=random.randbytes,
            threaded=False,
        )
        # Not by `Engine.acquire`: each simulated process has its own engine over one file.
        self.engine = Engine(str(device.path), device.options, runtime)
        hides = device.number in world.schedule.plan.hides
        self.spec: Any = SimSpec(world.network, device.name, hides=hides)
        self.engine.join(self.spec)
        self._sessions: dict[tuple[str, bool], CachedSession] = {}

    @property
    def is_alive(self) -> bool:
        return not self.owner.dead and not self.closing

    def session(self, name: str, *, confirmed: bool = False) -> CachedSession:
        session = self._sessions.get((name, confirmed))
        if session is None:
            device = self.device
            config = SessionConfig(
                name,
                self.spec,
                pop="confirmed" if confirmed else "local",
                content="none" if device.private else "text",
            )
            session = session_over(self.engine, config)
            self._sessions[name, confirmed] = session
        return session

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of this process, which ends with it."""
        context = copy_context()
        context.run(OWNER.set, self.owner)
        task: asyncio.Task[Any] = context.run(self.device.world.loop.create_task, work)
        return task

    async def start(self) -> None:
        """Open every session, as a program does that shows them."""
        for name in self.device.world.names:
            await self.session(name)._ready()

    async def close(self) -> None:
        """Close in an orderly way."""
        for session in self._sessions.values():
            await session.close()
        await self.engine.release(self.spec)
        self.closed = True

    def kill(self) -> None:
        """Kill the process: none of its code runs on, and its locks and files are released."""
        world, device = self.device.world, self.device
        if self.owner.dead:
            return
        world.note(f"{self.name} killed")
        self.owner.dead = True
        self.owner.fuse = None
        world.oracle.unresolved += self.confirming
        for session in self._sessions.values():
            session._closed = True
        others = [p for p in device.processes if p is not self and not (p.owner.dead or p.closed)]
        files = [device.path, device.path.with_name(device.path.name + "-wal")]
        held = {path: path.read_bytes() for path in files if path.exists()} if not others else {}
        if self.engine._file_lock is not None:
            self.engine._file_lock.release(force=True)
        self.engine.journal.close_blocking()
        # Closing runs a checkpoint, which a killed process does not: the log is recovered at the
        # next opening.
        for path, data in held.items():
            path.write_bytes(data)


class Device:
    """One machine."""

    def __init__(self, world: World, number: int, path: Path, lineage: Lineage) -> None:
        plan = world.schedule.plan
        self.world = world
        self.number = number
        self.name = f"d{number}"
        self.path = path
        self.lineage = lineage
        self.backups: list[tuple[Path, Lineage]] = []
        self.options = SyncOptions(**plan.options)
        skew = plan.skews[number] if number < len(plan.skews) else 0.0
        self.clock = Clock(world.loop.time, skew)
        self.private = number in plan.private
        self.width = plan.processes if number == 0 else 1
        self.processes: list[Process] = []
        self._openings = 0
        self.retried = 0
        """Parked operations that its user retried."""
        if number in plan.old and not path.exists():
            self._begin_old(world.names[0])

    def _begin_old(self, name: str) -> None:
        """Make a journal of format 1, with items that an earlier version added and did not send."""
        writer, stamp = f"oldwriter{'abcdefgh'[self.number % 8]}", (self.number + 1) << 16
        appends = []
        for counter in range(1, 1 + (self.number + len(name)) % 4):
            items, keys = self.world.new_items(2, 0, False)
            payloads = tuple(text for text, _ in encode_items(items))
            dot = Dot(writer, counter)
            appends.append(Operation(dot, Kind.APPEND, stamp, 1000, payloads, version=1))
            seen = frozenset(self.lineage.seen.get(name, ()))
            run, turn = (-self.number - 1, counter, 0), TurnKey(stamp, *dot)
            add = Add(self.world.adds, name, keys, dot, seen, run, turn)
            self.world.oracle.adds[name, dot] = add
            self.world.oracle.add_of.update(dict.fromkeys(keys, add))
            self.lineage.seen.setdefault(name, set()).update(keys)
        formats.begin(self.path, name, appends)

    def open(self) -> None:
        """Start the processes that are not running."""
        alive = [p for p in self.processes if p.is_alive]
        while len(alive) < self.width:
            self._openings += 1
            process = Process(self, self._openings)
            self.world.note(f"{process.name} opens")
            alive.append(process)
            self.world.processes.append(process)
            self.world.expect(process.spawn(process.start()), process)
        self.processes = alive

    def process(self, which: int = 0) -> Process | None:
        alive = [p for p in self.processes if p.is_alive]
        return alive[which % len(alive)] if alive else None

    def open_read_only(self) -> sqlite3.Connection:
        """Open a connection to read the journal."""
        return sqlite3.connect(self.path, isolation_level=None)

    # -- calls of its user -----------------------------------------------------------------------

    def do(self, what: str, args: dict[str, Any]) -> None:
        """Run a step in a process, if one is running."""
        process = self.process(args.get("which", 0))
        if process is None:
            return
        call = getattr(self, f"_do_{what}")
        name = self.world.names[args.get("session", 0)]
        self.world.expect(process.spawn(self._guarded(process, call, name, args)), process)

    async def _guarded(self, process: Process, call: Any, name: str, args: dict[str, Any]) -> None:
        try:
            await call(process, name, args)
        except SessionClosed:
            if not process.closing:
                raise

    async def _do_add(self, process: Process, name: str, args: dict[str, Any]) -> None:
        world, oracle = self.world, self.world.oracle
        session = process.session(name)
        engine = await session._ready()
        before = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        calls = [key for key in before if "tool_calls" in oracle.items[key]]
        items, keys = world.new_items(
            args["items"], args.get("size", 0), args.get("poison", False), calls
        )
        before = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        applied = engine.journal.read_blocking(_applied)
        wall, step = self.clock.wall_ms(), world.loop.steps
        await session.add_items(items)
        self._was_local(step)
        dot = engine.journal.read_blocking(lambda conn: last_dot(conn, name))
        run = (process.number + 1000 * self.number, applied, wall)
        add = self._record_add(engine, name, keys, dot, before, run)
        answered = items[0].get("tool_call_id", "").removeprefix("call-")
        if answered in before and add.turn != oracle.add_of[answered].turn:
            raise InvariantViolated(f"{keys[0]} answers {answered} in another turn")
        after = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        oracle.added(self.lineage, add, before, after)
        world.note(f"{process.name} added {' '.join(keys)}")

    def _record_add(
        self,
        engine: Engine,
        name: str,
        keys: tuple[str, ...],
        dot: Dot,
        seen: Sequence[str],
        run: tuple[int, int, int],
    ) -> Add:
        turn = engine.journal.read_blocking(lambda conn: turn_of(conn, name, dot))
        add = Add(self.world.adds, name, keys, dot, frozenset(seen), run, turn)
        self.world.oracle.adds[name, dot] = add
        return add

    async def _do_mark(self, process: Process, name: str, args: dict[str, Any]) -> None:
        session = process.session(name)
        engine = await session._ready()
        step = self.world.loop.steps
        mark = Mark(args["type"], args["key"], [process.name, step])
        await engine.journal.history.mark(engine.author(), name, mark)
        self._was_local(step)
        session._wrote()
        self.world.note(f"{process.name} marked {mark.type} {mark.key}")

    async def _do_pop(self, process: Process, name: str, args: dict[str, Any]) -> None:
        if args.get("confirmed"):
            await self._pop_confirmed(process, name)
            return
        world, oracle = self.world, self.world.oracle
        session = process.session(name)
        engine = await session._ready()
        before = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        claimed = engine.journal.read_blocking(lambda conn: self._claimed(conn, name))
        wanted = [key for key in before if key not in claimed]
        step = world.loop.steps
        item = await session.pop_item()
        self._was_local(step)
        if item is None:
            if wanted:
                raise InvariantViolated(f"{self.name} popped nothing where there was {wanted[-1]}")
            return
        (key,) = oracle.check_items([item])
        if not wanted or key != wanted[-1]:
            raise InvariantViolated(f"{self.name} popped {key}, not the last of {wanted[-3:]}")
        dot = engine.journal.read_blocking(lambda conn: last_dot(conn, name))
        oracle.removal(self.lineage, Removal(name, dot, frozenset({key}), is_pop=True))
        world.note(f"{process.name} popped {key}")

    async def _pop_confirmed(self, process: Process, name: str) -> None:
        world, oracle = self.world, self.world.oracle
        session = process.session(name, confirmed=True)
        engine = await session._ready()
        process.confirming += 1
        began = world.server.time()
        try:
            item = await session.pop_item()
        except PopUnconfirmed:
            oracle.unresolved += 1
            world.note(f"{process.name} pop unconfirmed")
            return
        except SessionClosed:
            oracle.unresolved += 1
            raise
        finally:
            process.confirming -= 1
        if item is None:
            world.note(f"{process.name} confirmed that there is nothing")
            return
        (key,) = oracle.check_items([item])
        add = oracle.add_of[key]
        index = add.keys.index(key)

        def find(conn: sqlite3.Connection) -> Dot:
            rows = conn.execute(
                "SELECT o.writer, o.counter, o.body FROM ops o JOIN sessions s "
                "ON s.id = o.session WHERE s.session_id = ? AND o.kind = 'pop' "
                "AND o.writer = ? ORDER BY o.seq DESC",
                (name, process.engine.writer),
            )
            for writer, counter, body in rows:
                ref = decode_pop(body)
                if (ref.dot, ref.index) == (add.dot, index):
                    return Dot(writer, counter)
            raise InvariantViolated(f"{process.name} was given {key} and has recorded no pop of it")

        dot = engine.journal.read_blocking(find)
        # Only the winner's note tells a later claimer, until the winner's pop has arrived.
        notes = {who: claim_id(session_key(name), add.dot, index, who) for who in oracle.claimers}
        excused = any(note in world.server.evicted for note in notes.values())
        excused = excused or (name, add.dot) in oracle.shared
        oracle.claimers.add(process.engine.writer)
        if key in oracle.claimed and not excused:
            raise InvariantViolated(
                f"{key} was given to {oracle.claimed[key]} and to {process.name}"
            )
        oracle.claimed[key] = process.name
        self._check_was_given(name, add, index, began)
        oracle.removal(self.lineage, Removal(name, dot, frozenset({key}), is_pop=True))
        world.note(f"{process.name} confirmed {key}")

    def _check_was_given(self, name: str, add: Add, index: int, since: float) -> None:
        """Check that a confirmed pop returned an item that the server deleted for it, or never had.
        The writer of a refused item, or of one that another copy of the journal sent, cannot know
        which: only the notes show it, or nothing does."""
        server, oracle = self.world.server, self.world.oracle
        version = 1 if add.dot.writer.startswith("oldwriter") else 2
        identity = memory_id(session_key(name), add.dot, index, version=version)
        refused = any("POISON" in oracle.items[key]["content"] for key in add.keys)
        if refused or (name, add.dot) in oracle.shared:
            return
        if server.had(agent_id(name), identity) and not server.forgot(identity, since):
            raise InvariantViolated(
                f"{add.keys[index]} was given to {self.name}, and not by the server"
            )

    async def _do_replace(self, process: Process, name: str, args: dict[str, Any]) -> None:
        world, oracle = self.world, self.world.oracle
        session = process.session(name)
        engine = await session._ready()
        entries = await session.entries()
        if not entries:
            return
        chosen = {int(place * len(entries)): None for place in args["places"]}
        stale = [entries[place] for place in chosen]
        if args["after"]:
            # Some of them may be gone by then, or in other positions.
            await asyncio.sleep(args["after"])
        if not process.is_alive:
            return
        items, keys = world.new_items(args["items"], 0, False)
        before = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        applied = engine.journal.read_blocking(_applied)
        wall, step = self.clock.wall_ms(), world.loop.steps
        await session.replace_items(stale, items)
        self._was_local(step)
        named = [oracle.key(name, Dot(e.writer, e.counter), e.index) for e in stale]
        gone = [key for key in named if key in before]
        written = engine.journal.read_blocking(
            lambda conn: conn.execute(
                "SELECT writer, counter, kind, body FROM ops WHERE seq > ? ORDER BY seq", (applied,)
            ).fetchall()
        )
        pops = [decode_pop(body) for _, _, kind, body in written if kind == "pop"]
        if [oracle.key(name, ref.dot, ref.index) for ref in pops] != gone:
            raise InvariantViolated(f"replacing {gone} recorded {pops}")
        if [kind for _, _, kind, _ in written] != ["pop"] * len(gone) + ["append"] * bool(keys):
            raise InvariantViolated(f"replacing {len(gone)} items by {len(keys)} wrote {written}")
        for (writer, counter, *_), key in zip(written, gone, strict=False):
            dot = Dot(writer, counter)
            oracle.removal(self.lineage, Removal(name, dot, frozenset({key})))
        kept = [key for key in before if key not in gone]
        if keys:
            dot = Dot(*written[-1][:2])
            run = (process.number + 1000 * self.number, applied + len(gone), wall)
            add = self._record_add(engine, name, keys, dot, kept, run)
            after = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
            oracle.added(self.lineage, add, kept, after)
        else:
            after = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
            if after != kept:
                raise InvariantViolated(f"replacing {gone} by nothing left {after} of {before}")
        world.note(f"{process.name} replaced {' '.join(gone)} by {' '.join(keys)}")

    async def _do_clear(self, process: Process, name: str, args: dict[str, Any]) -> None:
        world, oracle = self.world, self.world.oracle
        session = process.session(name)
        engine = await session._ready()
        before = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        step = world.loop.steps
        await session.clear_session()
        self._was_local(step)
        after = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        if after:
            raise InvariantViolated(f"{after} survived a clear in its own journal")
        if before:
            dot = engine.journal.read_blocking(lambda conn: last_dot(conn, name))
            # Operations dropped here count as seen here, wherever else they are.
            named = frozenset(before) | self.lineage.dropped.get(name, set())
            oracle.removal(self.lineage, Removal(name, dot, named))
        world.note(f"{process.name} cleared {len(before)}")

    async def _do_read(self, process: Process, name: str, args: dict[str, Any]) -> None:
        session, limit = process.session(name), args.get("limit")
        items = await session.get_items(limit)
        # From here on nothing is awaited: the journal is unchanged since the read.
        engine, oracle = process.engine, self.world.oracle
        found = oracle.check_items(items)
        keys = engine.journal.read_blocking(lambda conn: oracle.keys_of(conn, name))
        wanted = keys
        if limit is not None:
            rows = engine.journal.read_blocking(items_of, name)[-limit:] if limit > 0 else []
            tail = [json.loads(payload) for *_, payload in rows]
            # A limited read leaves out the answers of calls that it cuts off.
            wanted = oracle.check_items(drop_orphans(tail))
        if found != wanted:
            raise InvariantViolated(f"get_items({limit}) gave {found}, the journal has {wanted}")
        engine.journal.read_blocking(lambda conn: oracle.check_view(self.lineage, conn, name, keys))
        entries = await session.entries()
        if [entry.rank for entry in entries] != list(range(len(keys))):
            raise InvariantViolated(f"ranks are not dense: {[entry.rank for entry in entries]}")
        if oracle.check_items([entry.item for entry in entries]) != keys:
            raise InvariantViolated("entries() and get_items() differ")
        self.world.note(f"{process.name} read {len(keys)}")

    async def _do_sync(self, process: Process, name: str, args: dict[str, Any]) -> None:
        session = process.session(name)
        engine = await session._ready()
        waiting = engine.journal.read_blocking(lambda conn: _unsent(conn, name))
        retried = self.retried
        try:
            await session.sync(args.get("timeout", 10.0))
        except SyncError as error:
            self.world.note(f"{process.name} sync: {type(error).__name__}")
            return
        left = engine.journal.read_blocking(lambda conn: _unsent(conn, name))
        # Operations that were parked and retried in the meantime are later than the call.
        if waiting & left and self.retried == retried:
            raise InvariantViolated(f"sync returned with {waiting & left} unsent")
        self.world.note(f"{process.name} synced")

    async def _do_flush(self, process: Process, name: str, args: dict[str, Any]) -> None:
        try:
            await process.session(name).flush(args.get("timeout", 10.0))
        except SyncError as error:
            self.world.note(f"{process.name} flush: {type(error).__name__}")

    async def _do_audit(self, process: Process, name: str, args: dict[str, Any]) -> None:
        try:
            report = await process.session(name).audit()
            self.world.oracle.healed |= bool(report.healed)
        except SyncError as error:
            self.world.note(f"{process.name} audit: {type(error).__name__}")
        else:
            self.world.note(f"{process.name} {report}")

    async def _do_retry(self, process: Process, name: str, args: dict[str, Any]) -> None:
        moved = await process.session(name).retry_parked()
        self.retried += moved
        if moved:
            self.world.note(f"{process.name} retries {moved}")

    async def _do_drop(self, process: Process, name: str, args: dict[str, Any]) -> None:
        oracle = self.world.oracle
        session = process.session(name)
        parked = await session.parked()
        dots = [found.dot for found in parked if found.kind == "append"]
        if not dots:
            return
        dropped = await session.drop_parked(*dots)
        if dropped != len(dots):
            raise InvariantViolated(f"{dropped} of {len(dots)} parked appends were dropped")
        for dot in dots:
            oracle.drop(self.lineage, name, dot)
        self.world.note(f"{process.name} drops {dropped}")

    def _claimed(self, conn: sqlite3.Connection, name: str) -> set[str]:
        rows = conn.execute(
            "SELECT c.writer, c.counter, c.idx FROM claims c JOIN sessions s ON s.id = c.session "
            "WHERE s.session_id = ?",
            (name,),
        )
        return {self.world.oracle.key(name, Dot(*row[:2]), row[2]) for row in rows}

    def _was_local(self, step: int) -> None:
        if self.world.loop.steps != step:
            raise InvariantViolated("a local call has waited for something")

    # -- restarts, copies and backups ------------------------------------------------------------

    async def close(self) -> None:
        """Close all processes in an orderly way."""
        for process in self.processes:
            if process.is_alive:
                self.world.note(f"{process.name} closes")
                process.closing = True
                task = process.spawn(process.close())
                await asyncio.wait([task], timeout=60)
                if not (process.owner.dead or process.closed):
                    raise InvariantViolated(f"{process.name} does not close")
                task.result() if task.done() else None

    def crash(self, after: int, down: float, which: int) -> None:
        """Kill a process after a number of callbacks, and start it again later."""
        process = self.process(which)
        if process is None:
            return
        world = self.world

        def burn() -> None:
            process.kill()
            context = copy_context()
            context.run(OWNER.set, None)
            world.loop.call_later(down, self.reopen, context=context)

        process.owner.on_fuse = burn
        process.owner.fuse = after

    def reopen(self) -> None:
        if not self.world.ending:
            self.open()

    def copy_to(self, path: Path) -> Lineage:
        """Copy an open journal with SQLite's backup."""
        source, target = self.open_read_only(), sqlite3.connect(path)
        source.backup(target)
        source.close()
        target.close()
        return self.lineage.copy()

    def restore(self, backup: Path, lineage: Lineage) -> None:
        """Restore the journal from a backup."""
        for process in self.world.processes:
            if process.device is self and not process.closed:
                process.kill()
        conn = self.open_read_only()
        had = names_of(conn)
        conn.close()
        for path in self.path.parent.glob(self.path.name + "-*"):
            path.unlink()
        shutil.copyfile(backup, self.path)
        conn = self.open_read_only()
        self.world.oracle.discarded |= had - names_of(conn)
        self.world.oracle.shared |= unsent_of(conn)
        conn.close()
        self.world.oracle.doubled = True
        # A pop that the server granted may be missing in the backup.
        self.world.oracle.needs_audit |= self.world.schedule.plan.confirmed
        self.lineage = lineage.copy()


def _applied(conn: sqlite3.Connection) -> int:
    (count,) = conn.execute("SELECT coalesce(max(seq), 0) FROM ops").fetchone()
    return int(count)


def _unsent(conn: sqlite3.Connection, name: str) -> set[int]:
    return {
        seq
        for (seq,) in conn.execute(
            "SELECT w.seq FROM waiting w JOIN sessions s ON s.id = w.session "
            "WHERE s.session_id = ? AND w.state IN (0, 1)",
            (name,),
        )
    }
