"""The fault plan: which requests go wrong, how, and how often.

A fault is data; `fault_middleware.py` carries it out. The plan may be changed from any thread
while the server runs, and each fault is also a context manager that withdraws itself.
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

NATURAL_ROUTES: dict[str, tuple[str, ...]] = {
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
"""What a kind can hit at all; other requests do not use up its count or its turns."""

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
"""The nonsense a `garbled` fault can answer with, by name."""


@dataclass
class Fault:
    """One way in which matching requests go wrong; see `FaultPlan` for what each kind does."""

    kind: str
    route: str = "*"
    """Pattern over `METHOD /path` (`*` and `?` match anything); events are `EVENT type`."""
    count: int | None = None
    """How many requests it hits before it is used up; None for no end."""
    probability: float = 1.0
    seed: int = 0
    """Seed of the probability, so that a run can be repeated."""
    skip: int = 0
    """How many matching requests it lets pass first."""
    every: int = 1
    """It hits each `every`-th matching request after that, starting with the first."""
    lasting: float | None = None
    """Seconds of real time after which it ends by itself."""
    seconds: float = 0.0
    """How much latency, or how far behind a stale read is."""
    status: int = 500
    code: str | None = None
    message: str | None = None
    after_commit: bool = False
    """Whether the request is carried out before it goes wrong."""
    retry_after: float | None = None
    """Seconds to announce in Retry-After."""
    retry_after_date: bool = False
    """Whether Retry-After is an HTTP date instead of seconds."""
    body: str = "html"
    """Which nonsense a `garbled` answer is: a key of `GARBLED`."""
    items: int = 0
    """How many items of a batch are stored before it fails."""
    notice: bool = True
    """Whether consumers are told that events were lost."""

    id: int = field(default=0, init=False)
    seen: int = field(default=0, init=False)
    """Matching requests so far."""
    fired: int = field(default=0, init=False)
    """Requests hit so far."""

    def __post_init__(self) -> None:
        for name, wanted in _SETTINGS.items():
            value = getattr(self, name)
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                kinds = _SPOKEN[next(kind for kind in wanted if kind in _SPOKEN)]
                raise ValueError(f"{name}={value!r} is no {kinds}")
        if self.kind not in KINDS:
            raise ValueError(f"unknown fault kind {self.kind!r}; one of {', '.join(sorted(KINDS))}")
        if self.body not in GARBLED:
            raise ValueError(f"unknown body {self.body!r}; one of {', '.join(sorted(GARBLED))}")
        if self.every < 1:
            raise ValueError("every must be at least 1")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability!r} is not between 0 and 1")
        if not 200 <= self.status <= 599:
            raise ValueError(f"status={self.status!r} is no status of an answer")
        self._random = random.Random(self.seed)
        self._born = time.monotonic()
        self._plan: FaultPlan | None = None

    @property
    def is_over(self) -> bool:
        """Whether it will never hit again."""
        used_up = self.count is not None and self.fired >= self.count
        return used_up or (self.lasting is not None and self.remaining <= 0)

    @property
    def remaining(self) -> float:
        """Seconds of real time until a `lasting` fault ends."""
        return (self.lasting or 0.0) - (time.monotonic() - self._born)

    def hits(self, request: str) -> bool:
        """Decide about one request (`METHOD /path`) and count it."""
        if self.is_over or not self._concerns(request):
            return False
        self.seen += 1
        turn = self.seen - self.skip - 1
        if turn < 0 or turn % self.every:
            return False
        # Drawn only on its turn, so skip and every do not shift the sequence of a seed.
        if self.probability < 1 and self._random.random() >= self.probability:
            return False
        self.fired += 1
        return True

    def _concerns(self, request: str) -> bool:
        if request.startswith("EVENT ") != (self.kind in EVENT_KINDS):
            return False
        natural = NATURAL_ROUTES.get(self.kind, ("*",))
        return fnmatchcase(request, self.route) and any(
            fnmatchcase(request, pattern) for pattern in natural
        )

    def as_dict(self) -> dict[str, Any]:
        """Return its settings and counters as plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def remove(self) -> None:
        """Withdraw the fault from its plan."""
        if self._plan is not None:
            self._plan.remove(self)

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def _kinds(hint: Any) -> tuple[type, ...]:
    kinds = get_args(hint) or (hint,)
    return (*kinds, int) if float in kinds else kinds


_SETTINGS = {
    item.name: _kinds(get_type_hints(Fault)[item.name]) for item in fields(Fault) if item.init
}
"""Of what kind each setting's value is: a plan may come from a command line or over HTTP."""
_SPOKEN = {int: "whole number", float: "number", bool: "true or false", str: "text"}


class FaultPlan:
    """The faults in force, in the order they were added. Safe to use from any thread.

    Every method that adds one takes the common settings of `Fault` (`route`, `count`,
    `probability`, `seed`, `skip`, `every`, `lasting`) as keywords and returns the fault.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._next_id = 1

    def add(self, fault: Fault) -> Fault:
        """Put a fault in force."""
        with self._lock:
            fault.id = self._next_id
            fault._plan = self
            self._next_id += 1
            self._faults.append(fault)
            return fault

    def add_all(self, faults: Iterable[Mapping[str, Any]]) -> list[Fault]:
        """Put faults in force that were described as plain values; all of them or none."""
        known = {item.name for item in fields(Fault) if item.init}
        made: list[Fault] = []
        for description in faults:
            unknown = set(description) - known
            if unknown:
                raise ValueError(f"unknown fault setting: {', '.join(sorted(unknown))}")
            made.append(Fault(**description))
        return [self.add(fault) for fault in made]

    def remove(self, fault: Fault) -> None:
        """Withdraw a fault; one that is gone already is fine."""
        with self._lock:
            self._faults = [other for other in self._faults if other is not fault]

    def clear(self) -> None:
        """Withdraw everything: the server behaves again."""
        with self._lock:
            self._faults.clear()

    def active(self) -> list[Fault]:
        """Return the faults that can still hit."""
        with self._lock:
            return [fault for fault in self._faults if not fault.is_over]

    def take(self, method: str, path: str) -> list[Fault]:
        """Return the faults that hit this request, counting it for each that matches."""
        with self._lock:
            if not self._faults:
                return []
            hit = [fault for fault in self._faults if fault.hits(f"{method} {path}")]
            self._faults = [fault for fault in self._faults if not fault.is_over]
            return hit

    def down(self, **common: Any) -> Fault:
        """Close the connection of every request at once; nothing is read or answered."""
        return self.add(Fault("down", **common))

    def latency(self, seconds: float, *, after_commit: bool = False, **common: Any) -> Fault:
        """Wait before carrying the request out, or (`after_commit`) before answering."""
        return self.add(Fault("latency", seconds=seconds, after_commit=after_commit, **common))

    def lose_request(self, **common: Any) -> Fault:
        """Drop the connection before anything is carried out."""
        return self.add(Fault("drop", **common))

    def lose_response(self, **common: Any) -> Fault:
        """Carry the request out, then drop the connection instead of answering."""
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
        """Answer with an error status, before or after carrying the request out."""
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
        """Refuse with 429 and Retry-After."""
        return self.status(429, retry_after=retry_after, **common)

    def unavailable(self, retry_after: float = 1, **common: Any) -> Fault:
        """Refuse with 503 and Retry-After."""
        return self.status(503, retry_after=retry_after, **common)

    def timeout_after_commit(self, **common: Any) -> Fault:
        """Carry the request out, then answer 408 as if it had taken too long."""
        return self.status(408, after_commit=True, **common)

    def truncate(self, **common: Any) -> Fault:
        """Carry the request out and cut the answer in the middle of its announced length."""
        return self.add(Fault("truncated", **common))

    def garble(self, body: Literal["html"] | str = "html", **common: Any) -> Fault:
        """Carry the request out and answer 200 with nonsense (a key of `GARBLED`)."""
        return self.add(Fault("garbled", body=body, **common))

    def duplicate(self, **common: Any) -> Fault:
        """Carry the request out twice and answer with the second result."""
        return self.add(Fault("duplicate", **common))

    def stale(self, seconds: float, **common: Any) -> Fault:
        """Answer reads from the memories as they stood that long ago on the server's clock.

        With `every=2` fresh and stale answers alternate, as behind a balancer with a slow replica.
        """
        return self.add(Fault("stale", seconds=seconds, **common))

    def starting(self, seconds: float, **common: Any) -> Fault:
        """For that long, answer 503 as a server that loads its models; `/health/live` is 200."""
        return self.add(Fault("starting", lasting=seconds, **common))

    def partial_batch(self, items: int, **common: Any) -> Fault:
        """Store only the first `items` of a batch, then answer 500."""
        return self.add(Fault("partial_batch", items=items, **common))

    def lose_events(self, *, notice: bool = True, **common: Any) -> Fault:
        """Drop events (route `EVENT type`); with `notice` consumers then hear that they lag."""
        return self.add(Fault("lose_events", notice=notice, **common))

    def delay_events(self, seconds: float, **common: Any) -> Fault:
        """Deliver events (route `EVENT type`) that much later."""
        return self.add(Fault("delay_events", seconds=seconds, **common))
