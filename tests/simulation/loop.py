"""An asyncio event loop on virtual time: no selector, no threads, no waiting.

When nothing is ready, the clock advances to the next timer. Each callback belongs to an *owner* (a
simulated process) by its context. Callbacks of a killed owner do not run, as after ``kill -9``. At
the end of a run, `SimLoop.end_tasks` ends all tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, ContextVar
from typing import Any

from anyio._backends import _asyncio as backend

__all__ = ["OWNER", "Deadlock", "Owner", "SimLoop", "deterministic"]


ROUNDS = 5
"""Rounds of cancelling all tasks: a task that ends may start others."""
ROUND = 100.0
"""Simulated seconds for each round."""


class Deadlock(Exception):
    """Nothing is ready and no timer is set, so that every task waits forever."""


class Owner:
    """A simulated process, which owns the tasks that it started."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.fuse: int | None = None
        """Callbacks until it is killed, or None for never."""
        self.on_fuse: Callable[[], None] = lambda: None
        self.tasks: list[asyncio.Task[Any]] = []


OWNER: ContextVar[Owner | None] = ContextVar("owner", default=None)


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task with its number as its hash, so that a set of tasks has the same order in every
    run."""

    numbers = 0

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        _Task.numbers += 1
        self._number = _Task.numbers
        super().__init__(*arguments, **keywords)

    def __hash__(self) -> int:
        return self._number

    __eq__ = object.__eq__


class _Ordered(dict[Any, None]):
    """A set in insertion order."""

    def add(self, member: Any) -> None:
        self[member] = None

    def remove(self, member: Any) -> None:
        del self[member]

    def discard(self, member: Any) -> None:
        self.pop(member, None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Make anyio deliver cancellations in the order of entering, and not of memory addresses."""
    original = backend.CancelScope.__init__

    def init(self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        self._child_scopes = _Ordered()

    backend.CancelScope.__init__ = init  # type: ignore[method-assign]
    _Task.numbers = 0
    try:
        yield
    finally:
        backend.CancelScope.__init__ = original  # type: ignore[method-assign]


class SimLoop(asyncio.BaseEventLoop):
    """The event loop on virtual time."""

    def __init__(self, start: float = 1000.0) -> None:
        super().__init__()
        self._now = start
        self.steps = 0
        """The number of callbacks run so far."""
        self.failures: list[str] = []
        """Errors reported to asyncio: exceptions that were never retrieved, and callbacks that
        raised."""
        self._unrun: list[asyncio.Handle] = []
        """Callbacks of killed owners."""
        self._buries = False
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._report)

    def time(self) -> float:
        return self._now

    def run_for(self, main: Any) -> Any:
        """Run a coroutine to its end."""
        return self.run_until_complete(main)

    def end_tasks(self) -> set[asyncio.Task[Any]]:
        """Cancel all tasks, those of killed owners too, let each end in its own task as anyio
        requires, and return those that do not end. Tasks of killed owners continue where they were
        killed."""
        self._buries = True
        self._ready.extend(self._unrun)  # type: ignore[attr-defined]
        self._unrun.clear()
        for _ in range(ROUNDS):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                # A task that has not begun would leave its coroutine never awaited.
                if inspect.getcoroutinestate(task.get_coro()) != inspect.CORO_CREATED:  # type: ignore[arg-type]
                    task.cancel()
            with contextlib.suppress(Deadlock):
                self.run_until_complete(asyncio.wait(tasks, timeout=ROUND))
        self.run_until_complete(self.shutdown_asyncgens())
        return asyncio.all_tasks(self)

    @staticmethod
    def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
        context: Context | None = more.get("context")
        if context is None:
            more.pop("context", None)  # unknown to Python 3.10
        task = _Task(coro, loop=loop, **more)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks.append(task)
            if len(owner.tasks) > 256:
                owner.tasks = [old for old in owner.tasks if not old.done()]
        return task

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context.get('message')}: {error!r}")

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise Deadlock
            self._now = max(self._now, scheduled[0]._when)
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            owner = handle._context.get(OWNER)
            if owner is not None:
                if owner.dead and not self._buries:
                    self._unrun.append(handle)
                    continue
                if owner.fuse is not None:
                    owner.fuse -= 1
                    if owner.fuse < 0:
                        owner.fuse = None
                        owner.on_fuse()
                        self._unrun.append(handle)
                        continue
            self.steps += 1
            handle._run()

    # -- unused parts of the interface -----------------------------------------------------------

    def _process_events(self, event_list: Iterable[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise AssertionError(f"a thread in the simulation: {func!r}")
