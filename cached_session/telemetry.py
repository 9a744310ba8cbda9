"""OpenTelemetry spans and metrics, if its API package is installed.

The package is loaded with the first connection to a server, so local sessions do not load it.
Metric attributes contain no session ids, and neither metrics nor spans contain keys or items.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from cached_session import fork_safety

__all__ = ["Backlog", "load", "step", "unwatch", "watch"]

NAME = "cached_session"
GAUGES = {
    "pending": ("{operation}", "Operations that the server has not acknowledged"),
    "parked": ("{operation}", "Operations that the server refused permanently"),
    "absent": ("{operation}", "Operations that are known to exist and were not found"),
    "oldest_pending_age": ("s", "Age of the oldest operation that is pending"),
}


@dataclass(frozen=True)
class Backlog:
    """Counts of unfinished operations in one journal, all sessions together."""

    pending: int
    parked: int
    absent: int
    oldest_pending_age: float


class _Source(Protocol):
    def backlog(self) -> Backlog | None: ...


class _Instruments:
    """The instruments of this process. They also use a provider that is set later."""

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
            sources = list(_sources)
        found = [getattr(backlog, name) for each in sources if (backlog := each.backlog())]
        # Add up the counts of all journals, and take the highest age.
        total = max(found, default=0.0) if name == "oldest_pending_age" else sum(found)
        yield observation(total)

    return observe


_guard = threading.Lock()
fork_safety.wait_for(_guard, _guard)
_sources: weakref.WeakSet[_Source] = weakref.WeakSet()
_instruments: _Instruments | None = None


def load() -> None:
    """Import the API package if it is installed.

    The first call can take long: do not call it on an event loop's thread.
    """
    global _instruments  # noqa: PLW0603 - instruments belong to the process, as providers do
    with _guard:
        if _instruments is not None:
            return
        try:
            from opentelemetry import metrics, trace  # noqa: PLC0415 - optional, and slow to import
        except ImportError:
            return
        _instruments = _Instruments(trace, metrics)


def watch(source: _Source) -> None:
    """Include a journal's backlog in the gauges, until `unwatch` or garbage collection."""
    with _guard:
        _sources.add(source)


def unwatch(source: _Source) -> None:
    """Remove a journal's backlog from the gauges."""
    with _guard:
        _sources.discard(source)


@contextmanager
def step(kind: str, session: Mapping[str, str], clock: Callable[[], float]) -> Iterator[None]:
    """Record a push or a pull of one session as a span and in the histogram.

    ``session`` contains the span's attributes that identify the session.
    """
    found = _instruments
    if found is None:
        yield
        return
    began, outcome = clock(), "ok"
    with found.tracer.start_as_current_span(
        f"{NAME}.{kind}",
        attributes={f"{NAME}.{field}": value for field, value in session.items()},
        record_exception=False,  # a server's error message can quote items
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
