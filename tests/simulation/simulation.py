"""One run of one schedule: a safety phase with faults, then a liveness phase without."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import sqlite3
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import Dot, decode_clear, decode_pop
from cached_session.history.parts import part_count
from cached_session.journal import get_items, search
from cached_session.journal.tables.schema import FORMAT
from cached_session.remote.ids import memory_id
from cached_session.replication import listing_scan
from tests.simulation.device import Device, Process
from tests.simulation.loop import OWNER, SimLoop, Stuck, deterministic
from tests.simulation.network import Network
from tests.simulation.oracle import Broken, Lineage, Oracle, held_by, names_of, unsent_of
from tests.simulation.schedule import Schedule, Step
from tests.simulation.server import SimServer
from tests.simulation.strangers import is_stranger, nonsense

__all__ = ["Outcome", "World", "run"]

PATIENCE = 900.0
"""Simulated seconds in which the queue must reach zero and the replicas agree, once all is well."""
HANGS = 300.0
"""Simulated seconds after which a call that is still under way counts as hanging."""


@dataclass
class Outcome:
    """What became of one run."""

    schedule: Schedule
    error: str | None = None
    hash: str = ""
    seconds: float = 0.0
    """Simulated."""
    requests: int = 0
    checks: int = 0
    history: list[str] = field(default_factory=list)


class World:
    """Everything in one run."""

    def __init__(self, schedule: Schedule, directory: Path, loop: SimLoop) -> None:
        self.schedule = schedule
        self.seed = schedule.seed
        self.loop = loop
        self.directory = directory
        self.history: list[str] = []
        self._hash = hashlib.sha256()
        self.oracle = Oracle()
        self.adds = 0
        self.ending = False
        self.has_nonsense = False
        """Whether somebody else has stored something under our names."""
        plan = schedule.plan
        self.names = ["talk-ü", "other"][: plan.sessions]
        self.server = SimServer(
            lambda: 1_700_000_000 + loop.time(),
            Random(f"{self.seed}/server"),
            plan.existing,  # type: ignore[arg-type]
            shuffles=plan.shuffles,
        )
        self.server.poison = "POISON" if plan.poison and not plan.picky else None
        self.server.on_forget = self._may_forget
        self.network = Network(loop, self.server, str(self.seed), self.note)
        self.devices = {n: self._device(n) for n in range(plan.devices)}
        self._calls: dict[asyncio.Task[Any], Process | None] = {}
        self.processes: list[Process] = []
        """Every one there was: what a dead one held must not be tidied up before the end."""
        self.errors: list[str] = []

    def _device(self, number: int, lineage: Lineage | None = None) -> Device:
        return Device(self, number, self.directory / f"{number}.db", lineage or Lineage())

    # -- what the others use ---------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line of the trace."""
        line = f"{self.loop.time() - 1000:9.3f} {text}"
        self.history.append(line)
        self._hash.update(line.encode("utf-8", "surrogatepass") + b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()

    def new_items(self, count: int, size: int, poison: bool) -> tuple[list[Any], tuple[str, ...]]:
        """Items that know who they are."""
        self.adds += 1
        random = Random(f"{self.seed}/items/{self.adds}")
        made, keys = [], []
        for index in range(count):
            key = f"{self.adds}.{index}"
            text = key + " " + random.choice(("hello", "grüße \U0001f30d", 'a "quote"\n', "1e400"))
            if size and index == 0:
                text += " " + "é\u20ac" * (size // 5)
            if poison and index == count - 1:
                text += " POISON"
            item = {"role": random.choice(("user", "assistant")), "content": text}
            if random.random() < 0.3:
                item["extra"] = random.choice((None, [1.5, -0.0, 2**70], {"b": 1, "a": "\x00"}))
            self.oracle.items[key] = item
            made.append(item)
            keys.append(key)
        return made, tuple(keys)

    def expect(self, task: asyncio.Task[Any], process: Process | None = None) -> None:
        """A call that must end, and without an exception, unless its process is killed."""
        self._calls[task] = process

        def done(task: asyncio.Task[Any]) -> None:
            self._calls.pop(task, None)
            if not task.cancelled() and task.exception() is not None:
                self.fail(task.exception())

        context = copy_context()
        context.run(OWNER.set, None)
        task.add_done_callback(done, context=context)

    def fail(self, error: BaseException | None) -> None:
        if isinstance(error, Broken):
            self.errors.append(str(error))
        elif error is not None:
            self.errors.append("".join(traceback.format_exception(error))[-3000:])

    def check(self) -> None:
        errors = self.errors + self.loop.failures
        if errors:
            raise Broken(errors[0])

    def _may_forget(self, agent: str, identity: str) -> None:
        """What the server is asked to forget is covered by a removal that it holds already: a
        replica that sees the memory missing must be able to learn why.

        A confirmed pop deletes first, and an eviction may have taken the removal.
        """
        if self.schedule.plan.confirmed or self.oracle.needs_audit or identity.endswith("-void"):
            return
        _, _, writer, counter, index, *_ = identity.split("-")
        dot = Dot(writer, int(counter))
        clears: dict[Dot, dict[int, str]] = {}
        for other in self.server.ids(agent):
            said = (self.server.memory(agent, other) or {})["metadata"]
            if said["cs_op"] == "pop":
                ref = decode_pop(said["cs_x"])
                if ref.dot == dot and ref.index == int(index):
                    return
            elif said["cs_op"] == "clear":
                parts = clears.setdefault(Dot(said["cs_w"], said["cs_c"]), {})
                parts[said["cs_j"]] = said["cs_x"]
                if len(parts) == said["cs_p"]:
                    payload = "".join(text for _, text in sorted(parts.items()))
                    if dot in decode_clear(payload):
                        return
        self.errors.append(f"{identity} is forgotten before its removal is on the server")

    # -- the safety phase ------------------------------------------------------------------------

    async def live(self) -> None:
        """Both phases."""
        for device in self.devices.values():
            device.open()
        for step in self.schedule.steps:
            pause = 1000 + step.at - self.loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            self.check()
            self._take(step)
        await asyncio.sleep(1.0)
        await self._heal()
        await self._settle()

    def _take(self, step: Step) -> None:
        device = self.devices.get(step.who)
        args = step.args
        self.note(f"* {step.what} {step.who}")
        weather = self.network.weather
        if step.what == "down":
            weather.down = True
            self._later(args["lasts"], lambda: setattr(weather, "down", False))
        elif step.what == "lag":
            weather.lag = args["seconds"]
            self._later(args["lasts"], lambda: setattr(weather, "lag", 0.0))
        elif step.what == "storm":
            weather.chances = dict(args["chances"])
            self._later(args["lasts"], weather.chances.clear)
        elif step.what == "picky":
            self.server.poison = "POISON"
            self._later(args["lasts"], lambda: setattr(self.server, "poison", None))
        elif step.what == "nonsense":
            random = Random(f"{self.seed}/nonsense/{step.at}")
            name = self.names[args["session"]]
            self.server.store(agent_id(name), [nonsense(random, name)])
            self.has_nonsense = True
        elif step.what == "rewind":
            changed = self.server.rewind(args["seconds"])
            self.oracle.needs_audit |= bool(changed)
            self.note(f"rewound {changed}")
        elif step.what == "evict":
            self._evict(args.get("share", 0.0), newest=args.get("newest", False))
        elif device is None:
            return
        elif step.what == "cut":
            weather.cut.add(device.name)
            self._later(args["lasts"], lambda: weather.cut.discard(device.name))
        elif step.what == "deaf":
            weather.deaf.add(device.name)
            self._later(args["lasts"], lambda: weather.deaf.discard(device.name))
        elif step.what == "clock":
            device.clock.move(args["to"], args["by"])
        elif step.what == "crash":
            device.crash(args["after"], args["down"], args["which"])
        elif step.what == "reopen":
            self._aside(self._reopen(device))
        elif step.what == "copy_open":
            self._copied(args["new"], device, device.path.exists())
        elif step.what == "copy_closed":
            self._aside(self._copy_closed(device, args["new"]))
        elif step.what == "backup":
            if device.path.exists():
                path = self.directory / f"backup-{device.number}-{len(device.backups)}.db"
                device.backups.append((path, device.copy_to(path)))
        elif step.what == "restore":
            if device.backups:
                device.restore(*device.backups[-1])
                device.open()
        else:
            device.do(step.what, args)

    def _later(self, delay: float, work: Any) -> None:
        self.loop.call_later(delay, work)

    def _aside(self, work: Any) -> None:
        self.expect(self.loop.create_task(work))

    async def _reopen(self, device: Device) -> None:
        await device.close()
        device.step_back()
        device.reopen()

    async def _copy_closed(self, device: Device, new: int) -> None:
        await device.close()
        if device.path.exists() and new not in self.devices:
            target = self.directory / f"{new}.db"
            wal = device.path.with_name(device.path.name + "-wal")
            if not wal.exists():
                shutil.copyfile(device.path, target)
                self._born(new, device.lineage.copy())
        device.reopen()

    def _copied(self, new: int, device: Device, exists: bool) -> None:
        if exists and new not in self.devices:
            self._born(new, device.copy_to(self.directory / f"{new}.db"))

    def _born(self, new: int, lineage: Lineage) -> None:
        self.devices[new] = device = self._device(new, lineage)
        self.oracle.doubled = True
        conn = device.look()
        self.oracle.shared |= unsent_of(conn)
        (claims,) = conn.execute("SELECT count(*) FROM claims").fetchone()
        conn.close()
        self.oracle.unresolved += claims
        device.open()

    def _evict(self, share: float, *, newest: bool) -> None:
        random = Random(f"{self.seed}/evict/{self.loop.time()}")
        for agent in self.server.agents():
            ids = self.server.ids(agent)
            gone = random.sample(ids, int(len(ids) * share))
            if newest:
                gone = self.server.newest(agent, ids)
            self.server.evict(agent, gone)
            self.oracle.needs_audit |= bool(gone)
            self.note(f"evicted {len(gone)}")

    # -- the liveness phase ----------------------------------------------------------------------

    async def _heal(self) -> None:
        """No more faults; everyone is up. Clocks stay as they are: they may be wrong for ever."""
        self.note("* the faults end")
        weather = self.network.weather
        weather.end()
        self.server.poison = None
        self.ending = True
        for device in self.devices.values():
            for process in device.processes:
                process.owner.fuse = None
        await self._calls_end()
        # The network's stragglers arrive: what was sent during the faults is on the server or lost.
        while self.network.stragglers:  # noqa: ASYNC110 - on virtual time
            await asyncio.sleep(1.0)
        weather.end()
        for device in self.devices.values():
            device.open()
        if self.schedule.plan.poison:
            for device in self.devices.values():
                for number, _ in enumerate(self.names):
                    device.do("retry", {"session": number})

    async def _calls_end(self) -> None:
        until = self.loop.time() + HANGS
        while waiting := self._waiting():
            if self.loop.time() > until:
                raise Broken(f"calls hang: {waiting}")
            await asyncio.sleep(1.0)
            self.check()

    def _waiting(self) -> list[str]:
        """Calls under way in processes that live."""
        return [
            repr(task)[:500]
            for task, process in self._calls.items()
            if process is None or not process.owner.dead
        ]

    async def _settle(self) -> None:
        if not (self.oracle.needs_audit or self.network.late_commits):
            self._newcomer()
            await self._converge("without an audit")
            # Who got no answer, an audit, a copy, and what was restored send again what others may
            # have removed meanwhile: it stays on the server until an audit.
            oracle = self.oracle
            sent_again = oracle.doubled or oracle.healed or self.network.unanswered
            self._check_server(exact=not sent_again)
        for number in [*sorted(self.devices), *sorted(self.devices)]:
            for which, _ in enumerate(self.names):
                self.devices[number].do("audit", {"session": which})
            await asyncio.sleep(1.0)
            await self._calls_end()
        self._newcomer()
        await self._converge("after an audit")
        self._check_server()

    def _newcomer(self) -> None:
        """A device that knows only what the server tells."""
        number = max(self.devices) + 1
        self.devices[number] = newcomer = self._device(number)
        newcomer.open()

    async def _converge(self, when: str) -> None:
        self.note(f"* converging {when}")
        until = self.loop.time() + PATIENCE
        while True:
            await asyncio.sleep(2.0)
            self.check()
            why = self._differences()
            if why is None:
                break
            if self.loop.time() > until:
                raise Broken(f"stalled {when}: {why}")
        await asyncio.sleep(10.0)
        self.check()
        why = self._differences()
        if why:
            raise Broken(f"agreed, and then did not, {when}: {why}")
        self._check_final()
        for device in self.devices.values():
            for which, _ in enumerate(self.names):
                device.do("read", {"session": which})
        await asyncio.sleep(1.0)
        self.check()
        self.note(f"* agreed {when}")

    def _differences(self) -> str | None:
        """Why it is not over yet."""
        views: dict[str, list[str]] = {}
        for number in sorted(self.devices):
            device = self.devices[number]
            conn = device.look()
            try:
                for table, where in (
                    ("ops", "state IN (0, 1)"),
                    ("forgets", "1"),
                    ("claims", "1"),
                ):
                    (count,) = conn.execute(
                        f"SELECT count(*) FROM {table} WHERE {where}"
                    ).fetchone()
                    if count:
                        return f"{device.name} has {count} {table} left"
                if gaps := self._gaps(conn):
                    return f"{device.name} has {len(gaps)} gaps left"
                for name in self.names:
                    keys = self.oracle.keys_of(conn, name)
                    first = views.setdefault(name, keys)
                    if keys != first:
                        return f"{device.name} shows {keys}, the first {first}"
            finally:
                conn.close()
        return None

    def _gaps(self, conn: sqlite3.Connection) -> list[Dot]:
        """What a journal misses, and need not miss."""
        rows = conn.execute(
            "SELECT s.session_id, h.writer, h.counter, h.explained FROM holes h "
            "JOIN sessions s ON s.id = h.session"
        ).fetchall()
        if self.oracle.discarded:
            return []
        # What was given up is explained by its placeholder, unless the server has lost that; what a
        # stranger began never comes.
        return [
            Dot(writer, counter)
            for name, writer, counter, explained in rows
            if not is_stranger(writer)
            and (
                (name, Dot(writer, counter)) not in self.oracle.dropped
                or not (explained or self.oracle.needs_audit)
            )
        ]

    def _check_final(self) -> None:
        conns = {n: device.look() for n, device in sorted(self.devices.items())}
        try:
            applied = {dot for conn in conns.values() for dot in names_of(conn)}
            held = {dot for conn in conns.values() for dot in held_by(conn)}
            gap_ms = int(self.devices[0].options.run_gap * 1000)
            popped = 0
            for name in self.names:
                settled = set().union(*(self.oracle.settled(c, name) for c in conns.values()))
                popped += len(settled - self.oracle.removed.get(name, set()))
                keys = self.oracle.keys_of(conns[0], name)
                wanted = self.oracle.expected(name, applied, held, settled)
                if set(keys) != wanted:
                    raise Broken(
                        f"lost: {sorted(wanted - set(keys))}, "
                        f"not removed: {sorted(set(keys) - wanted)}"
                    )
                self.oracle.check_runs(name, keys, gap_ms)
                for number, conn in conns.items():
                    self.oracle.check_view(self.devices[number].lineage, conn, name, keys)
            if popped > self.oracle.unresolved:
                raise Broken(f"{popped} items popped by nobody, {self.oracle.unresolved} claims")
            for number, conn in conns.items():
                (conflicts,) = conn.execute("SELECT sum(conflicts) FROM sessions").fetchone()
                (unreadable,) = conn.execute("SELECT sum(unreadable) FROM sessions").fetchone()
                (version,) = conn.execute("PRAGMA user_version").fetchone()
                if version != FORMAT:
                    raise Broken(f"d{number} has a journal of format {version}")
                for name in self.names:
                    wanted = search.scan(conn, name, search.words("hello"), 1000)
                    if search.find(conn, name, search.words("hello"), 1000) != wanted:
                        raise Broken(f"d{number} does not find what it has")
                if conflicts or (unreadable and not self.has_nonsense):
                    raise Broken(f"d{number} has {conflicts} conflicts, {unreadable} unreadable")
                if gaps := self._gaps(conn):
                    raise Broken(f"d{number} misses {gaps}")
        finally:
            for conn in conns.values():
                conn.close()

    def _check_server(self, *, exact: bool = True) -> None:
        """The server holds what the visible history needs, the pops and clears, and no more."""
        conns = [self.devices[number].look() for number in sorted(self.devices)]
        conn = conns[0]
        try:
            for name in self.names:
                key, wanted = session_key(name), set()
                # Not every journal has every one: what a clear covers nobody looks for.
                removals = {
                    row
                    for each in conns
                    for row in each.execute(
                        "SELECT o.writer, o.counter, o.body FROM ops o JOIN sessions s "
                        "ON s.id = o.session WHERE s.session_id = ? AND o.kind <> 'append'",
                        (name,),
                    )
                }
                rows = conn.execute(
                    "SELECT i.writer, i.counter, i.idx, i.payload FROM items i JOIN sessions s "
                    "ON s.id = i.session WHERE s.session_id = ?",
                    (name,),
                ).fetchall()
                for writer, counter, body in removals:
                    for part in range(part_count(body)):
                        wanted.add(memory_id(key, Dot(writer, counter), 0, part))
                for writer, counter, index, payload in rows:
                    for part in range(part_count(payload)):
                        wanted.add(memory_id(key, Dot(writer, counter), index, part))
                # The notes of claims stay, as the pops do.
                held = {
                    identity
                    for identity in self.server.ids(agent_id(name))
                    if not (identity.startswith("csn") or is_stranger(identity.split("-")[2]))
                }
                allowed = set()
                for whose, dot in self.oracle.discarded | self.oracle.dropped:
                    if whose != name:
                        continue
                    mark = f"-{dot.writer}-{dot.counter}-"
                    allowed |= {i for i in held if mark in i}
                if wanted - held:
                    raise Broken(f"the server lacks {sorted(wanted - held)}")
                if exact and held - wanted - allowed:
                    raise Broken(f"the server still holds {sorted(held - wanted - allowed)}")
                if held and agent_id(name) not in self.server.guarded:
                    raise Broken("the namespace was never guarded")
        finally:
            for conn in conns:
                conn.close()


class _Errors(logging.Handler):
    """Errors that the library reports and nobody expects."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self.world.schedule.plan.poison and "is parked" in text:
            return
        if record.exc_info:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))[-3000:]
        self.world.errors.append(f"logged: {text}")


def run(schedule: Schedule) -> Outcome:
    """Run a schedule; what became of it."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="cached-session-sim-", dir=base))
    loop = SimLoop()
    asyncio.set_event_loop(loop)
    outcome = Outcome(schedule)
    log = logging.getLogger("cached_session")
    with deterministic():
        world = World(schedule, directory, loop)
        handler = _Errors(world)
        log.addHandler(handler)
        propagates, log.propagate = log.propagate, False
        tuned = listing_scan.OVERLAP, listing_scan.SAFETY_SECONDS, get_items.SHORT_ITEMS
        plan = schedule.plan
        listing_scan.OVERLAP, listing_scan.SAFETY_SECONDS, get_items.SHORT_ITEMS = (
            plan.overlap,
            plan.ground,
            plan.short,
        )
        try:
            loop.run_until_complete(world.live())
            world.check()
        except Stuck:
            outcome.error = "everything waits, and no timer is set"
        except Broken as error:
            outcome.error = str(error)
        except Exception:  # noqa: BLE001 - whatever it is, the seed is told with it
            outcome.error = "the simulation failed:\n" + traceback.format_exc()[-3000:]
        finally:
            log.removeHandler(handler)
            log.propagate = propagates
            listing_scan.OVERLAP, listing_scan.SAFETY_SECONDS, get_items.SHORT_ITEMS = tuned
            with _silence():
                for process in world.processes:
                    process.kill()
            outcome.hash, outcome.history = world.digest(), world.history[:]
            outcome.seconds = loop.time() - 1000
            outcome.requests, outcome.checks = world.network.requests, world.oracle.checks
            left = _bury(loop)
            shutil.rmtree(directory, ignore_errors=True)
    if left and outcome.error is None:
        outcome.error = f"cancelled, and not ended: {left}"
    return outcome


def _bury(loop: SimLoop) -> list[str]:
    """Let everything that was dropped on the way end, without a word; what does not."""
    with _silence():
        left = sorted(str(task.get_coro()) for task in loop.bury())
        asyncio.set_event_loop(None)
        loop.close()
    return left


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # A coroutine that was never begun has nothing to tidy up.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook
