"""What OpenTelemetry is told, where its API package is installed; nothing otherwise.

Loaded with the first connection to a server: a local session never pays for it. No attribute of a
metric names a session, and nothing here knows a key or a word of what was said.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from cached_session import fork_safety

__all__ = ["Backlog", "load", "step", "unwatch", "watch"]

NAME = "cached_session"
GAUGES = {
    "pending": ("{operation}", "Operations that the server has not acknowledged"),
    "parked": ("{operation}", "Operations that the server refuses for good"),
    "absent": ("{operation}", "Operations known to exist that are looked for in vain"),
    "oldest_pending_age": ("s", "Age of the oldest operation that is pending"),
}


@dataclass(frozen=True)
class Backlog:
    """What waits in one journal, all sessions together."""

    pending: int
    parked: int
    absent: int
    oldest_pending_age: float


class _Watched(Protocol):
    def backlog(self) -> Backlog | None: ...


class _Instruments:
    """Made once a process; a provider that is set later is found all the same."""

    def __init__(self, trace: Any, metrics: Any) -> None:
        self.tracer = trace.get_tracer(NAME)
        meter = metrics.get_meter(NAME)
        self.duration = meter.create_histogram(
            f"{NAME}.step.duration", unit="s", description="Time of one push or pull of a session"
        )
        for name, (unit, description) in GAUGES.items():
            meter.create_observable_gauge(
                f"{NAME}.{name}",
                callbacks=[_observer(name, metrics.Observation)],
                unit=unit,
                description=description,
            )


def _observer(name: str, observation: Any) -> Callable[[Any], Any]:
    def observe(_options: Any) -> Iterator[Any]:
        with _guard:
            watched = list(_watched)
        found = [getattr(backlog, name) for each in watched if (backlog := each.backlog())]
        # Of several journals: the sum, or the age of what is oldest in any.
        total = max(found, default=0.0) if name == "oldest_pending_age" else sum(found)
        yield observation(total)

    return observe


_guard = threading.Lock()
fork_safety.wait_for(_guard, _guard)
_watched: weakref.WeakSet[_Watched] = weakref.WeakSet()
_instruments: _Instruments | None = None


def load() -> None:
    """Look for the API package. Takes a while the first time: not for the event loop."""
    global _instruments  # noqa: PLW0603 - instruments belong to the process, as providers do
    with _guard:
        if _instruments is not None:
            return
        try:
            from opentelemetry import metrics, trace  # noqa: PLC0415 - optional, and not free
        except ImportError:
            return
        _instruments = _Instruments(trace, metrics)


def watch(watched: _Watched) -> None:
    """Count a journal's backlog in the gauges from now on, as long as it lives."""
    with _guard:
        _watched.add(watched)


def unwatch(watched: _Watched) -> None:
    """Count it no longer."""
    with _guard:
        _watched.discard(watched)


@contextmanager
def step(kind: str, session_id: str, clock: Callable[[], float]) -> Iterator[None]:
    """A push or a pull of one session, as a span and in the histogram."""
    found = _instruments
    if found is None:
        yield
        return
    began, outcome = clock(), "ok"
    with found.tracer.start_as_current_span(
        f"{NAME}.{kind}",
        attributes={f"{NAME}.session": session_id},
        record_exception=False,  # a server's words could quote what was said
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception as error:
            verdict = getattr(error, "verdict", None)
            outcome = verdict.value if verdict is not None else "error"
            raise
        finally:
            span.set_attribute(f"{NAME}.outcome", outcome)
            found.duration.record(
                max(0.0, clock() - began), {f"{NAME}.step": kind, f"{NAME}.outcome": outcome}
            )
