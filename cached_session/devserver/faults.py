"""The fault plan: which requests fail, how, and how often.

A fault is data; `fault_middleware.py` applies it. The plan can be changed from any thread while the
server runs. Each fault is also a context manager that removes it from the plan on exit.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_type_hints

KINDS = frozenset(
    {
        "down",
        "latency",
        "drop",
        "status",
        "truncated",
        "garbled",
        "duplicate",
        "stale",
        "starting",
        "partial_batch",
        "lose_events",
        "delay_events",
    }
)

EVENT_KINDS = frozenset({"lose_events", "delay_events"})

APPLICABLE_ROUTES: dict[str, tuple[str, ...]] = {
    "partial_batch": ("POST /v1/memories/store/batch",),
    "stale": (
        "GET /v1/agents/*/memories",
        "GET /v1/agents/*/stats",
        "GET /v1/memory/get/*",
        "GET /v1/export",
        "POST /v1/memories/recall/batch",
        "POST /v1/memory/recall",
        "POST /v1/memory/search",
    ),
}
"""Routes to which a kind can apply. Other requests do not count for `count` or `skip`."""

GARBLED: dict[str, tuple[str, bytes]] = {
    "html": ("text/html", b"<html><body><h1>It works!</h1></body></html>"),
    "text": ("text/plain", b"ok"),
    "empty": ("application/json", b""),
    "list": ("application/json", b"[]"),
    "object": ("application/json", b"{}"),
    "null": ("application/json", b"null"),
    "cut": ("application/json", b'{"stored":[{"id":"'),
    "binary": ("application/json", b"\xff\xfe\x00\x80"),
}
"""Bodies of a `garbled` response by name: (media type, bytes)."""


@dataclass
class Fault:
    """A failure of requests that match `route`. The methods of `FaultPlan` describe the kinds."""

    kind: str
    route: str = "*"
    """Pattern for `METHOD /path` with the wildcards `*` and `?`; for events, `EVENT type`."""
    count: int | None = None
    """Maximum number of requests to which the fault applies; None for no limit."""
    probability: float = 1.0
    """Probability that the fault applies to a matching request, 0 to 1."""
    seed: int = 0
    """Seed of the random draws for `probability`; the same seed repeats the draws."""
    skip: int = 0
    """Number of matching requests that pass before the fault applies."""
    every: int = 1
    """After `skip`, apply to the first matching request and to each `every`-th after it."""
    lasting: float | None = None
    """Seconds of real time after which the fault ends; None for no end."""
    seconds: float = 0.0
    """Seconds of latency, of event delay, or of the age of a stale read."""
    status: int = 500
    """HTTP status of a `status` fault."""
    code: str | None = None
    """Error code in the body; None for the usual code of the status."""
    message: str | None = None
    """Error message in the body; None for a default."""
    after_commit: bool = False
    """True if the route runs first, and its changes are committed, before the fault applies."""
    retry_after: float | None = None
    """Seconds in the Retry-After header; None for no header."""
    retry_after_date: bool = False
    """True if Retry-After is an HTTP date instead of seconds."""
    body: str = "html"
    """Body of a `garbled` response: a key of `GARBLED`."""
    items: int = 0
    """Number of items of a batch that are stored before it fails."""
    notice: bool = True
    """True if consumers get a notice that events were lost."""

    id: int = field(default=0, init=False)
    """Number of the fault in its plan."""
    seen: int = field(default=0, init=False)
    """Number of matching requests until now."""
    fired: int = field(default=0, init=False)
    """Number of requests until now to which the fault applied."""

    def __post_init__(self) -> None:
        for name, wanted in _SETTING_TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                expected = _TYPE_NAMES[next(kind for kind in wanted if kind in _TYPE_NAMES)]
                raise ValueError(f"{name}={value!r} is not {expected}")
        if self.kind not in KINDS:
            raise ValueError(
                f"unknown fault kind {self.kind!r}; choose one of {', '.join(sorted(KINDS))}"
            )
        if self.body not in GARBLED:
            raise ValueError(
                f"unknown body {self.body!r}; choose one of {', '.join(sorted(GARBLED))}"
            )
        if self.every < 1:
            raise ValueError(f"every={self.every!r} is less than 1")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability!r} is not between 0 and 1")
        if not 200 <= self.status <= 599:
            raise ValueError(f"status={self.status!r} is not an HTTP status from 200 to 599")
        self._random = random.Random(self.seed)
        self._created_at = time.monotonic()
        self._plan: FaultPlan | None = None

    @property
    def is_over(self) -> bool:
        """Return whether the fault cannot apply again."""
        used_up = self.count is not None and self.fired >= self.count
        return used_up or (self.lasting is not None and self.remaining <= 0)

    @property
    def remaining(self) -> float:
        """Return the seconds of real time until a `lasting` fault ends."""
        return (self.lasting or 0.0) - (time.monotonic() - self._created_at)

    def hits(self, request: str) -> bool:
        """Count one request (`METHOD /path`) and return whether the fault applies to it."""
        if self.is_over or not self._applies_to(request):
            return False
        self.seen += 1
        position = self.seen - self.skip - 1
        if position < 0 or position % self.every:
            return False
        # Draw after the checks above, so that skip and every do not shift the draws of a seed.
        if self.probability < 1 and self._random.random() >= self.probability:
            return False
        self.fired += 1
        return True

    def _applies_to(self, request: str) -> bool:
        if request.startswith("EVENT ") != (self.kind in EVENT_KINDS):
            return False
        applicable = APPLICABLE_ROUTES.get(self.kind, ("*",))
        return fnmatchcase(request, self.route) and any(
            fnmatchcase(request, pattern) for pattern in applicable
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the settings and counters as a JSON object."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def remove(self) -> None:
        """Remove the fault from its plan."""
        if self._plan is not None:
            self._plan.remove(self)

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def _accepted_types(hint: Any) -> tuple[type, ...]:
    types = get_args(hint) or (hint,)
    return (*types, int) if float in types else types


_SETTING_TYPES = {
    item.name: _accepted_types(get_type_hints(Fault)[item.name])
    for item in fields(Fault)
    if item.init
}
"""The accepted types of each setting; faults from the CLI or HTTP can have wrong types."""
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class FaultPlan:
    """The active faults, in the order in which they were added. Safe to use from any thread.

    Each method that adds a fault accepts the common settings of `Fault` (`route`, `count`,
    `probability`, `seed`, `skip`, `every`, `lasting`) as keywords and returns the fault.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._next_id = 1

    def add(self, fault: Fault) -> Fault:
        """Add a fault to the plan and return it."""
        with self._lock:
            fault.id = self._next_id
            fault._plan = self
            self._next_id += 1
            self._faults.append(fault)
            return fault

    def add_all(self, faults: Iterable[Mapping[str, Any]]) -> list[Fault]:
        """Add faults that are described as JSON objects, all of them or none.

        Raises:
            ValueError: a kind is missing, or a setting or its value is wrong; no fault was added.
        """
        settings = {item.name for item in fields(Fault) if item.init}
        created: list[Fault] = []
        for description in faults:
            unknown = set(description) - settings
            if unknown:
                raise ValueError(f"unknown fault setting: {', '.join(sorted(unknown))}")
            if "kind" not in description:
                raise ValueError("a fault needs a kind")
            created.append(Fault(**description))
        return [self.add(fault) for fault in created]

    def remove(self, fault: Fault) -> None:
        """Remove a fault; do nothing if it was removed before."""
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]

    def clear(self) -> None:
        """Remove all faults from the plan."""
        with self._lock:
            self._faults.clear()

    def active(self) -> list[Fault]:
        """Return the faults that can still apply."""
        with self._lock:
            return [fault for fault in self._faults if not fault.is_over]

    def take(self, method: str, path: str) -> list[Fault]:
        """Count a request for each matching fault and return the faults that apply to it."""
        with self._lock:
            if not self._faults:
                return []
            applied = [fault for fault in self._faults if fault.hits(f"{method} {path}")]
            self._faults = [fault for fault in self._faults if not fault.is_over]
            return applied

    def down(self, **common: Any) -> Fault:
        """Close the connection of every request immediately, without reading or answering it."""
        return self.add(Fault("down", **common))

    def latency(self, seconds: float, *, after_commit: bool = False, **common: Any) -> Fault:
        """Wait before the route runs or, with `after_commit`, before the response is sent."""
        return self.add(Fault("latency", seconds=seconds, after_commit=after_commit, **common))

    def lose_request(self, **common: Any) -> Fault:
        """Drop the connection before the route runs."""
        return self.add(Fault("drop", **common))

    def lose_response(self, **common: Any) -> Fault:
        """Run the route, then drop the connection instead of answering."""
        return self.add(Fault("drop", after_commit=True, **common))

    def status(
        self,
        status: int,
        *,
        after_commit: bool = False,
        retry_after: float | None = None,
        retry_after_date: bool = False,
        code: str | None = None,
        message: str | None = None,
        **common: Any,
    ) -> Fault:
        """Answer with an error status, before or (`after_commit`) after the route runs."""
        return self.add(
            Fault(
                "status",
                status=status,
                after_commit=after_commit,
                retry_after=retry_after,
                retry_after_date=retry_after_date,
                code=code,
                message=message,
                **common,
            )
        )

    def too_many(self, retry_after: float = 1, **common: Any) -> Fault:
        """Answer 429 with Retry-After; `retry_after` is in seconds."""
        return self.status(429, retry_after=retry_after, **common)

    def unavailable(self, retry_after: float = 1, **common: Any) -> Fault:
        """Answer 503 with Retry-After; `retry_after` is in seconds."""
        return self.status(503, retry_after=retry_after, **common)

    def timeout_after_commit(self, **common: Any) -> Fault:
        """Run the route, then answer 408 as if it had taken too long."""
        return self.status(408, after_commit=True, **common)

    def truncate(self, **common: Any) -> Fault:
        """Run the route, send half of the announced body, and close the connection."""
        return self.add(Fault("truncated", **common))

    def garble(self, body: Literal["html"] | str = "html", **common: Any) -> Fault:
        """Run the route and answer 200 with an unusable body (a key of `GARBLED`)."""
        return self.add(Fault("garbled", body=body, **common))

    def duplicate(self, **common: Any) -> Fault:
        """Run the route twice and answer with the second result."""
        return self.add(Fault("duplicate", **common))

    def stale(self, seconds: float, **common: Any) -> Fault:
        """Answer reads from the memories as they were `seconds` ago on the server's clock.

        With `every=2`, current and stale answers alternate, as behind a load balancer with one
        replica that lags.
        """
        return self.add(Fault("stale", seconds=seconds, **common))

    def starting(self, seconds: float, **common: Any) -> Fault:
        """Answer 503 for `seconds`, as a server that loads models; `/health/live` answers 200."""
        return self.add(Fault("starting", lasting=seconds, **common))

    def partial_batch(self, items: int, **common: Any) -> Fault:
        """Store only the first `items` of a batch, then answer 500."""
        return self.add(Fault("partial_batch", items=items, **common))

    def lose_events(self, *, notice: bool = True, **common: Any) -> Fault:
        """Drop events (route `EVENT type`); with `notice`, consumers get a notice of the loss."""
        return self.add(Fault("lose_events", notice=notice, **common))

    def delay_events(self, seconds: float, **common: Any) -> Fault:
        """Delay events (route `EVENT type`) by `seconds`."""
        return self.add(Fault("delay_events", seconds=seconds, **common))
