"""Tuning options, with their defaults and range checks (`SyncOptions.__post_init__`).

Arguments that change the meaning of a call are keywords of that call instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import orjson

from cached_session.errors import InvalidArgument

__all__ = ["SyncOptions", "Window", "estimate_tokens"]


def estimate_tokens(item: Any) -> int:
    """Return an estimate of the number of tokens of an item: one for four bytes of its JSON text,
    rounded up."""
    return -(-len(orjson.dumps(item, default=repr)) // 4)


@dataclass(frozen=True)
class Window:
    """Limits on the items that a model gets. A limit of None does not apply.

    The window has the latest items. It consists of whole turns. If the latest turn alone exceeds a
    limit, the items at its end are kept. The window never has the output of a tool without its
    call, nor an item whose reasoning is cut off, so it may have fewer items than the limits allow.

    Raises:
        InvalidArgument: a limit is not an integer above zero, or no limit is given.
    """

    items: int | None = None
    """Maximum number of items."""
    turns: int | None = None
    """Maximum number of turns."""
    tokens: int | None = None
    """Maximum number of tokens, as `count_tokens` counts them."""
    count_tokens: Callable[[Any], int] = estimate_tokens
    """A function that returns the number of tokens of an item. It runs in a thread."""

    def __post_init__(self) -> None:
        limits = (self.items, self.turns, self.tokens)
        if all(limit is None for limit in limits):
            raise InvalidArgument("a Window needs a limit: items, turns or tokens")
        for limit in limits:
            if limit is not None and (type(limit) is not int or limit < 1):
                raise InvalidArgument(f"the limit {limit!r:.80} of a Window must be at least 1")
        if not callable(self.count_tokens):
            raise InvalidArgument(f"count_tokens={self.count_tokens!r:.80} must be a function")

    def count(self, item: Any) -> int:
        """Return the number of tokens of an item.

        Raises:
            InvalidArgument: `count_tokens` failed, or did not return a number of tokens.
        """
        try:
            found = self.count_tokens(item)
        except Exception as error:
            raise InvalidArgument(
                f"count_tokens raised {type(error).__name__}: {error!s:.200}"
            ) from error
        if type(found) is not int or found < 0:
            raise InvalidArgument(f"count_tokens returned {found!r:.80}, not a number of tokens")
        return found


@dataclass(frozen=True)
class SyncOptions:
    """Intervals, limits, timeouts and durability. Times are in seconds, sizes in bytes."""

    durability: Literal["full", "normal"] = "full"
    """``full``: a write that has returned survives power loss (SQLite's ``synchronous=FULL``).
    ``normal``: such a write survives a crash of the process, but power loss may undo the last
    writes."""
    busy_timeout: float = 5.0
    """Longest time that a write waits for another process's lock on the journal. After this time,
    the write raises `JournalError`."""
    search_index: bool = True
    """True: the journal has a full-text index, updated with each item. Without the index, `search`
    scans the session. This is a property of the journal file: the last process that opens the file
    decides."""
    max_pending_items: int | None = None
    """Quota of unsent items in the journal, all sessions together; None for no quota. Only
    `add_items` of a session with a server checks the quota. Parked operations do not count."""
    max_pending_bytes: int | None = None
    """Quota of unsent payload bytes in the journal (each item as JSON in UTF-8), under the rules of
    `max_pending_items`; None for no quota."""
    when_full: Literal["block", "reject"] = "block"
    """Behaviour of `add_items` at a quota. ``block``: wait at most `full_timeout` until
    the batch fits. ``reject``: do not wait. If the batch does not fit, `JournalFull` is raised and
    nothing of the batch is stored."""
    full_timeout: float = 5.0
    """Longest time that `add_items` waits at a quota."""
    run_gap: float = 600.0
    """Longest pause within a run. After a longer pause a writer starts a new run, and its next
    items sort by the current time."""
    hydrate_timeout: float = 2.0
    """Longest time that the first read of a session waits for its history from the server."""
    close_timeout: float = 2.0
    """Longest time that `close` waits until unsent operations are sent. The rest stays in the
    outbox."""
    push_delay: float = 0.02
    """Time from the first unsent write to the request. Writes during this time join the request."""
    poll_interval: float = 5.0
    """Time between two pulls of a session that is in use."""
    poll_interval_idle: float = 300.0
    """Longest time between two pulls of an idle session. The interval grows up to this value."""
    audit_interval: float = 86_400.0
    """Approximate time between two automatic audits of a session. An audit compares the session
    with the server, and sends again what the server lost. 0 disables automatic audits. Audits of
    sessions and devices are spread over the interval, also after restarts. At most 96 audits start
    in one interval: with more sessions, each session is audited less often."""
    listen: bool = True
    """True: keep one event stream open, so that the server can report new operations."""
    poll_interval_listening: float = 300.0
    """Time between two pulls, of any sessions, while the event stream is open. An open stream does
    not replace pulls, because events can be lost. A session in use is pulled at least every 45
    seconds. If a pull finds an item that no event has named, `poll_interval` applies until events
    bring new items."""
    watch_interval: float = 0.5
    """Time between two checks for writes of other processes, by the process that replicates and by
    each `changes` iterator. It is also the time between two attempts of another process to take
    over replication from a process that has ended."""
    backoff_base: float = 0.5
    """Longest pause before the first retry. Each further failure doubles the longest pause."""
    backoff_max: float = 60.0
    """Upper limit of the pause between two attempts. A server may request a longer pause."""
    denied_retry: float = 60.0
    """Pause after an answer that only a person can change (401, 403, an exhausted server quota)."""
    request_timeout: float = 30.0
    """Longest time for one request and its whole answer. After this time, the request counts as
    unanswered."""
    connect_timeout: float = 5.0
    """Longest time to connect to the server."""
    max_batch_memories: int = 1000
    """Upper limit of memories in one store request. The server accepts at most 1000."""
    max_batch_bytes: int = 2 * 1024 * 1024
    """Upper limit of the encoded size of one store request. A single larger memory is sent alone.
    The first requests have at most 512 KiB; they grow while answers are fast, and shrink after
    requests without an answer."""
    page_size: int = 500
    """Largest number of memories in a page of a listing (server maximum 1000). A pull of a session
    that was listed before begins with 3 memories, and the pages grow while all of them are new."""
    first_page_size: int = 100
    """Number of memories in the first page of a session that is new to the journal. The page is
    small, so that the latest items arrive soon."""
    parallel_sessions: int = 4
    """Number of sessions that are pushed or pulled in parallel."""
    parallel_requests: int = 8
    """Number of parallel requests of one session, where their order does not matter."""
    claim_patience: float = 10.0
    """Time after which the memory of an item counts as deleted if it is still missing, after a
    confirmed pop of the item got no answer. A node of a cluster may lag behind the other nodes."""
    prune_interval: float = 600.0
    """Time between two searches for bookkeeping rows that are no longer needed, by the process that
    replicates (see `SessionCache.compact`). 0 disables the searches."""
    hole_patience: float = 600.0
    """Time during which a missing operation is requested often. After this time the operation is
    reported as absent and requested every `poll_interval_idle`."""

    def __post_init__(self) -> None:
        if self.durability not in ("full", "normal"):
            raise InvalidArgument(
                f"durability={self.durability!r} is not known; use 'full' or 'normal'"
            )
        for name in ("search_index", "listen"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgument(f"{name}={getattr(self, name)!r} must be True or False")
        if self.when_full not in ("block", "reject"):
            raise InvalidArgument(
                f"when_full={self.when_full!r} is not known; use 'block' or 'reject'"
            )
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.name in ("durability", "listen", "search_index", "when_full"):
                continue
            if value is None and spec.type == "int | None":
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise InvalidArgument(
                    f"{spec.name}={value!r} must be a finite number, zero or more"
                )
            if spec.type in ("int", "int | None") and not isinstance(value, int):
                raise InvalidArgument(f"{spec.name}={value!r} must be a whole number")
        for name in ("max_batch_memories", "page_size", "first_page_size"):
            if not 1 <= getattr(self, name) <= 1000:
                raise InvalidArgument(
                    f"{name}={getattr(self, name)!r} must be between 1 and 1000, "
                    "the server's own limit"
                )
        for name in (
            "max_batch_bytes",
            "max_pending_items",
            "max_pending_bytes",
            "parallel_sessions",
            "parallel_requests",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidArgument(f"{name}={getattr(self, name)!r} must be at least 1")
