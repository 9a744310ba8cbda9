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
from collections.abc import Iterator, Sequence
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
from tests.journal_rows import items_of
from tests.simulation.device import Device, Process
from tests.simulation.forged_memories import forged_memory, is_forged
from tests.simulation.loop import OWNER, Deadlock, SimLoop, deterministic
from tests.simulation.network import Network
from tests.simulation.oracle import InvariantViolated, Lineage, Oracle, held_by, names_of, unsent_of
from tests.simulation.schedule import Schedule, Step
from tests.simulation.server import SimServer

__all__ = ["Outcome", "World", "run"]

PATIENCE = 900.0
"""Simulated seconds after the faults in which the outboxes must be empty and the replicas must
agree."""
HANGS = 300.0
"""Simulated seconds after which a running call counts as hanging."""


@dataclass
class Outcome:
    """The result of one run."""

    schedule: Schedule
    error: str | None = None
    hash: str = ""
    seconds: float = 0.0
    """Simulated seconds."""
    requests: int = 0
    checks: int = 0
    history: list[str] = field(default_factory=list)


class World:
    """All devices, the network, the server and the oracle of one run."""

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
        """Whether the schedule contains forged memories under our names."""
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
        """Every process of the run. The objects of killed ones must not be collected before the
        end."""
        self.errors: list[str] = []

    def _device(self, number: int, lineage: Lineage | None = None) -> Device:
        return Device(self, number, self.directory / f"{number}.db", lineage or Lineage())

    # -- services for devices and network --------------------------------------------------------

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{self.loop.time() - 1000:9.3f} {text}"
        self.history.append(line)
        self._hash.update(line.encode("utf-8", "surrogatepass") + b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()

    def new_items(
        self, count: int, size: int, poison: bool, calls: Sequence[str] = ()
    ) -> tuple[list[Any], tuple[str, ...]]:
        """Make items with their keys. The first one may answer one of these tool calls."""
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
            if index == 0 and calls and random.random() < 0.5:
                item = {"role": "tool", "content": text}
                item["tool_call_id"] = f"call-{random.choice(calls)}"
            elif item["role"] == "assistant" and random.random() < 0.4:
                item["tool_calls"] = [{"id": f"call-{key}", "type": "function"}]
            if random.random() < 0.3:
                item["extra"] = random.choice((None, [1.5, -0.0, 2**70], {"b": 1, "a": "\x00"}))
            self.oracle.items[key] = item
            made.append(item)
            keys.append(key)
        return made, tuple(keys)

    def expect(self, task: asyncio.Task[Any], process: Process | None = None) -> None:
        """Start a call that must end without an exception, unless its process is killed."""
        self._calls[task] = process

        def done(task: asyncio.Task[Any]) -> None:
            self._calls.pop(task, None)
            if not task.cancelled() and task.exception() is not None:
                self.fail(task.exception())

        context = copy_context()
        context.run(OWNER.set, None)
        task.add_done_callback(done, context=context)

    def fail(self, error: BaseException | None) -> None:
        if isinstance(error, InvariantViolated):
            self.errors.append(str(error))
        elif error is not None:
            self.errors.append("".join(traceback.format_exception(error))[-3000:])

    def check(self) -> None:
        errors = self.errors + self.loop.failures
        if errors:
            raise InvariantViolated(errors[0])

    def _may_forget(self, agent: str, identity: str) -> None:
        """Check that a removal on the server covers what it is asked to delete: a replica that sees
        the memory missing must be able to learn why. A confirmed pop deletes first, and an eviction
        may have lost the removal."""
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
        """Run both phases."""
        for device in self.devices.values():
            device.open()
        for step in self.schedule.steps:
            pause = 1000 + step.at - self.loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            self.check()
            self._take(step)
        await asyncio.sleep(1.0)
        await self._end_faults()
        await self._settle()

    def _take(self, step: Step) -> None:
        device = self.devices.get(step.who)
        args = step.args
        self.note(f"* {step.what} {step.who}")
        faults = self.network.faults
        if step.what == "down":
            faults.down = True
            self._later(args["lasts"], lambda: setattr(faults, "down", False))
        elif step.what == "lag":
            faults.lag = args["seconds"]
            self._later(args["lasts"], lambda: setattr(faults, "lag", 0.0))
        elif step.what == "storm":
            faults.chances = dict(args["chances"])
            self._later(args["lasts"], faults.chances.clear)
        elif step.what == "picky":
            self.server.poison = "POISON"
            self._later(args["lasts"], lambda: setattr(self.server, "poison", None))
        elif step.what == "nonsense":
            random = Random(f"{self.seed}/nonsense/{step.at}")
            name = self.names[args["session"]]
            self.server.store(agent_id(name), [forged_memory(random, name)])
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
            faults.cut.add(device.name)
            self._later(args["lasts"], lambda: faults.cut.discard(device.name))
        elif step.what == "deaf":
            faults.deaf.add(device.name)
            self._later(args["lasts"], lambda: faults.deaf.discard(device.name))
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
        conn = device.open_read_only()
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

    async def _end_faults(self) -> None:
        """End all faults and start every device. Clocks stay wrong, as they may forever."""
        self.note("* the faults end")
        faults = self.network.faults
        faults.end()
        self.server.poison = None
        self.ending = True
        for device in self.devices.values():
            for process in device.processes:
                process.owner.fuse = None
        await self._calls_end()
        # The delayed requests arrive: everything sent during the faults is on the server or lost.
        while self.network.stragglers:  # noqa: ASYNC110 - on virtual time
            await asyncio.sleep(1.0)
        faults.end()
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
                raise InvariantViolated(f"calls hang: {waiting}")
            await asyncio.sleep(1.0)
            self.check()

    def _waiting(self) -> list[str]:
        """Return the running calls of live processes."""
        return [
            repr(task)[:500]
            for task, process in self._calls.items()
            if process is None or not process.owner.dead
        ]

    async def _settle(self) -> None:
        if not (self.oracle.needs_audit or self.network.late_commits):
            self._new_device()
            await self._converge("without an audit")
            # A sender without an answer, an audit, a copy and a restored backup send operations
            # again that others may have removed in the meantime. They stay on the server until an
            # audit.
            oracle = self.oracle
            sent_again = oracle.doubled or oracle.healed or self.network.unanswered
            self._check_server(exact=not sent_again)
        for number in [*sorted(self.devices), *sorted(self.devices)]:
            for which, _ in enumerate(self.names):
                self.devices[number].do("audit", {"session": which})
            await asyncio.sleep(1.0)
            await self._calls_end()
        self._new_device()
        await self._converge("after an audit")
        self._check_server()

    def _new_device(self) -> None:
        """Add a device that knows only what the server lists."""
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
                raise InvariantViolated(f"stalled {when}: {why}")
        await asyncio.sleep(10.0)
        self.check()
        why = self._differences()
        if why:
            raise InvariantViolated(f"agreed, and then did not, {when}: {why}")
        self._check_final()
        for device in self.devices.values():
            for which, _ in enumerate(self.names):
                device.do("read", {"session": which})
        await asyncio.sleep(1.0)
        self.check()
        self.note(f"* agreed {when}")

    def _differences(self) -> str | None:
        """Return the reasons why the run has not converged yet."""
        views: dict[str, list[str]] = {}
        for number in sorted(self.devices):
            device = self.devices[number]
            conn = device.open_read_only()
            try:
                for table, where in (
                    ("waiting", "state IN (0, 1)"),
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
        """Return the gaps of a journal that it ought to fill."""
        rows = conn.execute(
            "SELECT s.session_id, h.writer, h.counter, h.explained FROM holes h "
            "JOIN sessions s ON s.id = h.session"
        ).fetchall()
        if self.oracle.discarded:
            return []
        # A dropped operation is explained by its placeholder, unless the server has lost that. The
        # rest of a forged operation never comes.
        return [
            Dot(writer, counter)
            for name, writer, counter, explained in rows
            if not is_forged(writer)
            and (
                (name, Dot(writer, counter)) not in self.oracle.dropped
                or not (explained or self.oracle.needs_audit)
            )
        ]

    def _check_final(self) -> None:
        conns = {n: device.open_read_only() for n, device in sorted(self.devices.items())}
        try:
            applied = {dot for conn in conns.values() for dot in names_of(conn)}
            held = {dot for conn in conns.values() for dot in held_by(conn)}
            gap_ms = int(self.devices[0].options.run_gap * 1000)
            popped = 0
            for name in self.names:
                settled = set().union(
                    *(self.oracle.claims_resolved(c, name) for c in conns.values())
                )
                popped += len(settled - self.oracle.removed.get(name, set()))
                keys = self.oracle.keys_of(conns[0], name)
                wanted = self.oracle.expected(name, applied, held, settled)
                if set(keys) != wanted:
                    raise InvariantViolated(
                        f"lost: {sorted(wanted - set(keys))}, "
                        f"not removed: {sorted(set(keys) - wanted)}"
                    )
                self.oracle.check_runs(name, keys, gap_ms)
                for number, conn in conns.items():
                    self.oracle.check_view(self.devices[number].lineage, conn, name, keys)
            if popped > self.oracle.unresolved:
                raise InvariantViolated(
                    f"{popped} items popped by nobody, {self.oracle.unresolved} claims"
                )
            for number, conn in conns.items():
                (conflicts,) = conn.execute("SELECT sum(conflicts) FROM sessions").fetchone()
                (unreadable,) = conn.execute("SELECT sum(unreadable) FROM sessions").fetchone()
                (version,) = conn.execute("PRAGMA user_version").fetchone()
                if version != FORMAT:
                    raise InvariantViolated(f"d{number} has a journal of format {version}")
                for name in self.names:
                    wanted = search.scan(conn, name, search.words("hello"), 1000)
                    if search.find(conn, name, search.words("hello"), 1000) != wanted:
                        raise InvariantViolated(f"d{number} does not find what it has")
                if conflicts or (unreadable and not self.has_nonsense):
                    raise InvariantViolated(
                        f"d{number} has {conflicts} conflicts, {unreadable} unreadable"
                    )
                if gaps := self._gaps(conn):
                    raise InvariantViolated(f"d{number} misses {gaps}")
        finally:
            for conn in conns.values():
                conn.close()

    def _check_server(self, *, exact: bool = True) -> None:
        """Check that the server holds the memories of the visible history, the pops and clears, and
        nothing else."""
        conns = [self.devices[number].open_read_only() for number in sorted(self.devices)]
        conn = conns[0]
        try:
            for name in self.names:
                key, wanted = session_key(name), set()
                # Not every journal has every operation: one that a clear covers is not looked for.
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
                    "SELECT o.writer, o.counter, o.version FROM ops o "
                    "JOIN sessions s ON s.id = o.session WHERE s.session_id = ?",
                    (name,),
                )
                versions = {(writer, counter): version for writer, counter, version in rows}
                for writer, counter, body in removals:
                    for part in range(part_count(body)):
                        wanted.add(memory_id(key, Dot(writer, counter), 0, part))
                for writer, counter, index, payload in items_of(conn, name):
                    version = versions[writer, counter]
                    for part in range(part_count(payload)):
                        wanted.add(memory_id(key, Dot(writer, counter), index, part, version))
                # The notes of claims stay, as the pops do.
                held = {
                    identity
                    for identity in self.server.ids(agent_id(name))
                    if not (identity.startswith("csn") or is_forged(identity.split("-")[2]))
                }
                allowed = set()
                for whose, dot in self.oracle.discarded | self.oracle.dropped:
                    if whose != name:
                        continue
                    mark = f"-{dot.writer}-{dot.counter}-"
                    allowed |= {i for i in held if mark in i}
                if wanted - held:
                    raise InvariantViolated(f"the server lacks {sorted(wanted - held)}")
                if exact and held - wanted - allowed:
                    raise InvariantViolated(
                        f"the server still holds {sorted(held - wanted - allowed)}"
                    )
                if held and agent_id(name) not in self.server.guarded:
                    raise InvariantViolated("the namespace was never guarded")
        finally:
            for conn in conns:
                conn.close()


class _Errors(logging.Handler):
    """The unexpected errors that the library logs."""

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
    """Run a schedule and return its outcome."""
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
        except Deadlock:
            outcome.error = "everything waits, and no timer is set"
        except InvariantViolated as error:
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
            left = _end_tasks(loop)
            shutil.rmtree(directory, ignore_errors=True)
    if left and outcome.error is None:
        outcome.error = f"cancelled, and not ended: {left}"
    return outcome


def _end_tasks(loop: SimLoop) -> list[str]:
    """End all leftover tasks quietly, and return those that do not end."""
    with _silence():
        left = sorted(str(task.get_coro()) for task in loop.end_tasks())
        asyncio.set_event_loop(None)
        loop.close()
    return left


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # A coroutine that was never started has nothing to clean up.
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        sys.unraisablehook = hook
