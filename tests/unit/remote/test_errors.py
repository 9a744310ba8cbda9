from __future__ import annotations

import pytest

from cached_session.remote.errors import RemoteError, Scope, Verdict, judge

V, S = Verdict, Scope
TABLE = [
    (None, None, V.UNREACHABLE, S.SERVER),
    (301, None, V.DENIED, S.SERVER),
    (302, None, V.DENIED, S.SERVER),
    (307, None, V.DENIED, S.SERVER),
    (399, None, V.DENIED, S.SERVER),
    (400, None, V.REFUSED, S.SESSION),
    (400, "INVALID_REQUEST", V.REFUSED, S.SESSION),
    (401, None, V.DENIED, S.SERVER),
    (403, None, V.DENIED, S.SESSION),
    (404, None, V.ABSENT, S.SESSION),
    (404, "MEMORY_NOT_FOUND", V.ABSENT, S.SESSION),
    (404, "ROUTE_NOT_FOUND", V.DENIED, S.SERVER),
    (405, None, V.DENIED, S.SERVER),
    (408, None, V.UNREACHABLE, S.SERVER),
    (409, None, V.CONFLICT, S.SESSION),
    (413, None, V.REFUSED, S.SESSION),
    (413, "QUOTA_EXCEEDED", V.DENIED, S.SESSION),
    (415, None, V.DENIED, S.SERVER),
    (421, None, V.DENIED, S.SERVER),
    (422, None, V.REFUSED, S.SESSION),
    (429, None, V.BUSY, S.SESSION),
    (500, None, V.UNREACHABLE, S.SERVER),
    (501, None, V.DENIED, S.SERVER),
    (502, None, V.UNREACHABLE, S.SERVER),
    (503, None, V.BUSY, S.SERVER),
    (504, None, V.UNREACHABLE, S.SERVER),
]


@pytest.mark.parametrize(("status", "code", "verdict", "scope"), TABLE)
def test_each_answer_has_its_verdict(
    status: int | None, code: str | None, verdict: Verdict, scope: Scope
) -> None:
    """Only what can never be taken is refused; what a person must change is denied; the rest
    waits, for one session or for the server."""
    assert judge(status, code) == (verdict, scope)


def test_an_unknown_answer_is_transient() -> None:
    """No status outside the table parks an operation or stops a session for good."""
    known = {status for status, *_ in TABLE}
    for status in {*range(100, 300), *range(400, 600), 0, 999} - known:
        assert judge(status) == (V.UNREACHABLE, S.SERVER), status
        assert judge(status, "QUOTA_EXCEEDED")[0] is V.UNREACHABLE, status


def test_a_remote_error_reads_as_its_reason() -> None:
    """What is logged and shown of a failed request is its reason."""
    assert str(RemoteError(V.BUSY, "the server asks for time")) == "the server asks for time"
