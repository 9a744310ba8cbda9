"""The verdict on the outcome of a request: for example, retry it or park its operation.

One table defines the verdicts of all requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum

__all__ = ["RemoteError", "Scope", "Verdict", "judge", "retry_after", "unix_time"]


class Verdict(str, Enum):
    """The action to take after a request that got no 2xx answer."""

    UNREACHABLE = "unreachable"
    """No usable answer; the outcome is unknown. Wait, then send the same request again."""
    BUSY = "busy"
    """The server asks the client to wait. Wait for the time that the server names."""
    DENIED = "denied"
    """A person must fix the key, scope, quota or address. Report the error, and retry rarely."""
    REFUSED = "refused"
    """The server will never accept this request. Find the operation that causes it and park it."""
    CONFLICT = "conflict"
    """The server reports that the id of a memory exists. Fetch that memory and compare it."""
    ABSENT = "absent"
    """The server does not have the requested memory, agent or namespace."""


class Scope(str, Enum):
    """The requests that a failure pauses: those of one session, or all requests to the server."""

    SESSION = "session"
    SERVER = "server"


@dataclass
class RemoteError(Exception):
    """A request without a 2xx answer."""

    verdict: Verdict
    reason: str
    """Message for people. It never contains the API key."""
    scope: Scope = Scope.SERVER
    retry_after: float | None = None
    """Number of seconds to wait that the server requested; None if it requested no wait."""
    status: int | None = None
    """HTTP status; None if no answer arrived."""

    def __str__(self) -> str:
        return self.reason


_BY_STATUS: dict[int, tuple[Verdict, Scope]] = {
    400: (Verdict.REFUSED, Scope.SESSION),
    401: (Verdict.DENIED, Scope.SERVER),
    403: (Verdict.DENIED, Scope.SESSION),
    404: (Verdict.ABSENT, Scope.SESSION),
    405: (Verdict.DENIED, Scope.SERVER),
    # The server timed out on its own work, and may have stored the memories.
    408: (Verdict.UNREACHABLE, Scope.SERVER),
    409: (Verdict.CONFLICT, Scope.SESSION),
    413: (Verdict.REFUSED, Scope.SESSION),
    415: (Verdict.DENIED, Scope.SERVER),
    421: (Verdict.DENIED, Scope.SERVER),
    422: (Verdict.REFUSED, Scope.SESSION),
    # The rate limit may be that of one namespace or of the whole server. If it is the limit of the
    # whole server, pausing only this session costs one more request for each other session.
    429: (Verdict.BUSY, Scope.SESSION),
    500: (Verdict.UNREACHABLE, Scope.SERVER),
    501: (Verdict.DENIED, Scope.SERVER),
    502: (Verdict.UNREACHABLE, Scope.SERVER),
    503: (Verdict.BUSY, Scope.SERVER),
    504: (Verdict.UNREACHABLE, Scope.SERVER),
}
_BY_CODE: dict[tuple[int, str], tuple[Verdict, Scope]] = {
    # The quota is used up until an operator acts. No operation is the cause, so park none.
    (413, "QUOTA_EXCEEDED"): (Verdict.DENIED, Scope.SESSION),
    # This 404 means that the route does not exist, not that a memory is missing.
    (404, "ROUTE_NOT_FOUND"): (Verdict.DENIED, Scope.SERVER),
}


def judge(status: int | None, code: str | None = None) -> tuple[Verdict, Scope]:
    """Return the verdict on an HTTP status and error code (None: no answer).

    An unknown status counts as transient, so that no operation is parked because of it.
    """
    if status is None:
        return Verdict.UNREACHABLE, Scope.SERVER
    if (status, code or "") in _BY_CODE:
        return _BY_CODE[status, code or ""]
    if 300 <= status < 400:
        # No redirect is followed, because the key must not be sent to another host.
        return Verdict.DENIED, Scope.SERVER
    return _BY_STATUS.get(status, (Verdict.UNREACHABLE, Scope.SERVER))


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds to wait from ``Retry-After``; None if it is missing or unreadable.

    If the value is a date, it is compared with the answer's ``Date`` header. Without that header,
    it is compared with ``now``. A device whose clock is an hour wrong must neither wait an hour nor
    retry immediately.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until = unix_time(text)
        server_now = unix_time(headers.get("date", ""))
        if until is None:
            return None
        seconds = until - (now if server_now is None else server_now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def unix_time(text: str) -> float | None:
    """Return the time of an HTTP date in Unix seconds; None if it is unreadable."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
