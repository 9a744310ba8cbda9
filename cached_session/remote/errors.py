"""What an answer, or its absence, means for the work that waits. One table; nothing is judged
anywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["RemoteError", "Scope", "Verdict", "judge"]


class Verdict(str, Enum):
    """What to do with work that did not get a plain yes."""

    UNREACHABLE = "unreachable"
    """No usable answer; the outcome is unknown. Wait, then send the same again."""
    BUSY = "busy"
    """The server asks for time. Wait as long as it says."""
    DENIED = "denied"
    """Only a person can change this: key, scope, quota, address. Report, and try rarely."""
    REFUSED = "refused"
    """This very request will never be taken. Find the operation at fault and park it."""
    CONFLICT = "conflict"
    """The server says that an id exists. Read it and compare."""
    ABSENT = "absent"
    """What was asked for is not there."""


class Scope(str, Enum):
    """What waits: one session or everything that goes to the server."""

    SESSION = "session"
    SERVER = "server"


@dataclass
class RemoteError(Exception):
    """A request that got no plain yes."""

    verdict: Verdict
    reason: str
    scope: Scope = Scope.SERVER
    retry_after: float | None = None
    """Seconds the server asked for."""
    status: int | None = None

    def __str__(self) -> str:
        return self.reason


_ROWS: dict[int, tuple[Verdict, Scope]] = {
    400: (Verdict.REFUSED, Scope.SESSION),
    401: (Verdict.DENIED, Scope.SERVER),
    403: (Verdict.DENIED, Scope.SESSION),
    404: (Verdict.ABSENT, Scope.SESSION),
    405: (Verdict.DENIED, Scope.SERVER),
    # The server gave up waiting for itself: it may have stored all the same.
    408: (Verdict.UNREACHABLE, Scope.SERVER),
    409: (Verdict.CONFLICT, Scope.SESSION),
    413: (Verdict.REFUSED, Scope.SESSION),
    415: (Verdict.DENIED, Scope.SERVER),
    421: (Verdict.DENIED, Scope.SERVER),
    422: (Verdict.REFUSED, Scope.SESSION),
    # A limit of one namespace or of the server: the narrower reading costs one more request.
    429: (Verdict.BUSY, Scope.SESSION),
    500: (Verdict.UNREACHABLE, Scope.SERVER),
    501: (Verdict.DENIED, Scope.SERVER),
    502: (Verdict.UNREACHABLE, Scope.SERVER),
    503: (Verdict.BUSY, Scope.SERVER),
    504: (Verdict.UNREACHABLE, Scope.SERVER),
}
_CODES: dict[tuple[int, str], tuple[Verdict, Scope]] = {
    # Full until an operator acts: no operation is at fault.
    (413, "QUOTA_EXCEEDED"): (Verdict.DENIED, Scope.SESSION),
    # Nobody's memories are missing: the address is wrong.
    (404, "ROUTE_NOT_FOUND"): (Verdict.DENIED, Scope.SERVER),
}


def judge(status: int | None, code: str | None = None) -> tuple[Verdict, Scope]:
    """The verdict on an HTTP status (None: no answer). What is unknown counts as transient."""
    if status is None:
        return Verdict.UNREACHABLE, Scope.SERVER
    if (status, code or "") in _CODES:
        return _CODES[status, code or ""]
    if 300 <= status < 400:
        # A redirect is not followed: the key must not travel to another host.
        return Verdict.DENIED, Scope.SERVER
    return _ROWS.get(status, (Verdict.UNREACHABLE, Scope.SERVER))
