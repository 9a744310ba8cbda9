"""A pure model of replicas on which agents take turns, for the rules of `history.turns`.

A replica applies operations in any order. An exchange is what one agent stores: a question, calls,
outputs and an answer, in several batches. It goes on in its own task, or, after a restart, with the
outputs of its calls on any replica that has the calls.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from cached_session.history import turns
from cached_session.history.clock import next_run
from cached_session.history.ops import Dot, Kind, Operation, TurnKey
from cached_session.history.order import position
from cached_session.history.tool_calls import ToolBatch, read_batch
from cached_session.history.turns import OpenTurn, TurnChoice

__all__ = ["Schedule", "Violation"]

GAP_MS = 600_000
REPLICAS = 3


class Violation(AssertionError):
    """A history in which a turn is torn, or an effect is before its cause."""


@dataclass(eq=False)
class SessionObject:
    """A session object of a replica: it ends with the process."""

    latest: OpenTurn | None = None


@dataclass(eq=False)
class Block:
    """A block of `CachedSession.turn`."""

    key: TurnKey | None = None


@dataclass(eq=False)
class Exchange:
    """One exchange, and the task in which it goes on."""

    name: str
    plan: list[list[dict[str, str]]]
    """The batches that are not stored yet."""
    session: SessionObject | None
    """The session object of the task; None after the process has ended."""
    replica: Replica
    current: OpenTurn | None = None
    """The turn that this task joined last."""
    block: Block | None = None
    before: frozenset[str] = frozenset()
    """The exchanges that the replica had when this one began."""
    stored: int = 0
    waits_for: set[str] = field(default_factory=set)
    """Ids of its calls that are stored and not answered."""

    @property
    def needs_call(self) -> bool:
        """True if its next batch answers a stored call: then it can go on anywhere."""
        return bool(self.plan) and not self.waits_for.isdisjoint(read_batch(self.plan[0]).answered)


@dataclass
class Stored:
    """An operation, with the exchange and the place in the exchange that the rules do not know."""

    op: Operation
    exchange: str
    number: int
    made: tuple[str, ...]
    """Ids of the calls that the batch makes, which the journal stores with it."""
    causes: frozenset[int]
    """The numbers of the exchange's operations that the writer had when it wrote this one."""


class Replica:
    """The operations of one device, and its writer."""

    def __init__(self, name: str, clock_ms: int) -> None:
        self.name = name
        self.now_ms = clock_ms
        self.applied: dict[Dot, Stored] = {}
        self.processes = 0
        self.restart()

    def restart(self) -> None:
        """End the process: the next one is a new writer, and has no session object."""
        self.processes += 1
        self.writer = f"{self.name}{self.processes}"
        self.counter = 0
        self.run: int | None = None
        self.last_ms = 0
        self.last_writer = ""
        self.sessions = [SessionObject(), SessionObject()]

    def resolve(self, choice: TurnChoice) -> TurnKey | None:
        """Return the turn that a choice means, as the journal does; None for a new one."""
        if choice.block is not None:
            return choice.block
        if choice.answers:
            for each in sorted(
                self.applied.values(), key=lambda one: position(one.op), reverse=True
            ):
                if not set(each.made).isdisjoint(choice.answers):
                    return each.op.turn_key
        return choice.open

    def append(self, choice: TurnChoice, exchange: Exchange, batch: ToolBatch) -> TurnKey:
        """Write an append; return its turn."""
        run = next_run(
            now_ms=self.now_ms,
            highest_seen=max((each.op.stamp for each in self.applied.values()), default=0),
            current=self.run,
            last_was_mine=self.last_writer == self.writer,
            last_ms=self.last_ms,
            gap_ms=GAP_MS,
        )
        self.counter += 1
        dot = Dot(self.writer, self.counter)
        turn = self.resolve(choice)
        op = Operation(dot, Kind.APPEND, run.stamp, self.now_ms, ("{}",), turn=turn)
        self.run, self.last_ms, self.last_writer = run.stamp, self.now_ms, self.writer
        causes = frozenset(
            each.number for each in self.applied.values() if each.exchange == exchange.name
        )
        self.applied[dot] = Stored(op, exchange.name, exchange.stored, batch.made, causes)
        return op.turn_key

    def apply(self, stored: Stored) -> None:
        """Apply an operation of another replica."""
        self.applied[stored.op.dot] = stored
        self.last_writer = stored.op.dot.writer

    def exchanges(self) -> frozenset[str]:
        """Return the names of the exchanges of which the replica has something."""
        return frozenset(each.exchange for each in self.applied.values())


class Schedule:
    """A random schedule of exchanges, deliveries, pauses and restarts, checked at each step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        starts = [self.random.choice([0, 1_000, 10_000_000]) for _ in range(REPLICAS)]
        self.replicas = [Replica(f"r{n}", start) for n, start in enumerate(starts)]
        self.exchanges: dict[str, Exchange] = {}

    def run(self, steps: int) -> None:
        """Take so many random steps; then exchange all operations.

        Raises:
            Violation: a replica's history is wrong after some step.
        """
        actions = [
            self._begin,
            *[self._go_on] * 6,
            *[self._deliver] * 6,
            *[self._restart] * 2,
            self._wait,
        ]
        for _ in range(steps):
            self.random.choice(actions)()
        for replica in self.replicas:
            for other in self.replicas:
                for stored in list(other.applied.values()):
                    if stored.op.dot not in replica.applied:
                        replica.apply(stored)
            self._check(replica)
        orders = [_sorted(replica) for replica in self.replicas]
        if any(order != orders[0] for order in orders):
            raise Violation("replicas with the same operations differ")

    # -- steps -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        replica = self.random.choice(self.replicas)
        name = f"e{len(self.exchanges)}"
        exchange = Exchange(
            name,
            self._plan(name),
            self.random.choice(replica.sessions),
            replica,
            block=Block() if self.random.random() < 0.2 else None,
            before=replica.exchanges(),
        )
        self.exchanges[name] = exchange
        self._store(exchange)

    def _plan(self, name: str) -> list[list[dict[str, str]]]:
        plan = [[{"role": "user", "content": "?"}]]
        for step in range(self.random.randrange(3)):
            ids = [f"{name}-{step}-{n}" for n in range(self.random.randrange(1, 3))]
            calls = [{"type": "function_call", "call_id": each} for each in ids]
            outputs = [{"type": "function_call_output", "call_id": each} for each in ids]
            shape = self.random.randrange(4)
            if shape == 0:
                plan += [calls + outputs]
            elif shape == 1:
                plan += [calls, outputs]
            elif shape == 2:
                plan += [calls + outputs[:1], *([outputs[1:]] if outputs[1:] else [])]
            else:
                plan += [calls, *[[each] for each in outputs]]
        return [*plan, [{"role": "assistant", "content": "."}]]

    def _go_on(self) -> None:
        going = [each for each in self.exchanges.values() if each.plan and self._can_go_on(each)]
        resumed = [each for each in going if each.session is None]
        if resumed and self.random.random() < 0.5:
            going = resumed
        if going:
            exchange = self.random.choice(going)
            if exchange.session is None:
                self._resume(exchange)
            self._store(exchange)

    def _can_go_on(self, exchange: Exchange) -> bool:
        if exchange.session is not None:
            return True
        if not exchange.needs_call:
            return False  # nothing connects an answer with a process that has ended
        return bool(self._places_to_resume(exchange))

    def _places_to_resume(self, exchange: Exchange) -> list[Replica]:
        answered = set(read_batch(exchange.plan[0]).answered)
        return [
            replica
            for replica in self.replicas
            if any(not answered.isdisjoint(each.made) for each in replica.applied.values())
        ]

    def _resume(self, exchange: Exchange) -> None:
        exchange.replica = self.random.choice(self._places_to_resume(exchange))
        exchange.session = self.random.choice(exchange.replica.sessions)
        exchange.block = Block() if self.random.random() < 0.2 else None

    def _deliver(self) -> None:
        source, target = self.random.sample(self.replicas, 2)
        missing = [each for dot, each in source.applied.items() if dot not in target.applied]
        if missing:
            target.apply(self.random.choice(missing))
            self._check(target)

    def _restart(self) -> None:
        replica = self.random.choice(self.replicas)
        replica.restart()
        for exchange in self.exchanges.values():
            if exchange.replica is replica:
                exchange.session = exchange.current = exchange.block = None

    def _wait(self) -> None:
        replica = self.random.choice(self.replicas)
        replica.now_ms += self.random.choice([1, 1_000, 2 * GAP_MS, -5 * GAP_MS])

    def _store(self, exchange: Exchange) -> None:
        session, block = exchange.session, exchange.block
        assert session is not None
        batch = read_batch(exchange.plan.pop(0))
        current = exchange.current
        if current is None or not current.is_open:
            current = session.latest
        choice = turns.choose(
            batch, current, in_block=block is not None, block=block.key if block else None
        )
        joined = exchange.replica.append(choice, exchange, batch)
        exchange.current = session.latest = turns.after_append(current, joined, batch)
        if block is not None:
            block.key = joined
        exchange.stored += 1
        self._note_calls(exchange, batch)
        self._check(exchange.replica)

    def _note_calls(self, exchange: Exchange, batch: ToolBatch) -> None:
        exchange.waits_for |= set(batch.waiting)
        exchange.waits_for -= set(batch.answered)

    # -- what must hold --------------------------------------------------------------------------

    def _check(self, replica: Replica) -> None:
        history = _sorted(replica)
        order = list(dict.fromkeys(name for name, _ in history))
        names = [name for name, _ in history]
        if [name for name in order for each in names if each == name] != names:
            raise Violation(f"a turn is torn: {history}")
        keys = {(each.exchange, each.op.turn_key) for each in replica.applied.values()}
        if len(keys) != len(order) or len({key for _, key in keys}) != len(order):
            raise Violation(f"the exchanges are not the turns: {keys}")
        earlier: dict[str, set[int]] = {name: set() for name in order}
        by_place = {(each.exchange, each.number): each for each in replica.applied.values()}
        present = {name: {number for each, number in by_place if each == name} for name in order}
        for name, number in history:
            stored = by_place[name, number]
            if not stored.causes & present[name] <= earlier[name]:
                raise Violation(f"an effect is before its cause in {name}: {history}")
            if number == 0 and earlier[name]:
                raise Violation(f"the head of {name} is not first: {history}")
            earlier[name].add(number)
        for rank, name in enumerate(order):
            late = self.exchanges[name].before.intersection(order[rank + 1 :])
            if late:
                raise Violation(f"{name} had seen {late}, which are after it: {history}")


def _sorted(replica: Replica) -> list[tuple[str, int]]:
    found = sorted(replica.applied.values(), key=lambda each: position(each.op))
    return [(each.exchange, each.number) for each in found]
