from __future__ import annotations

import email.utils

import pytest

from cached_session.remote.errors import RemoteError, Scope, Verdict, judge, retry_after

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


NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("Wed, 99 Foo 2999 25:61:61 GMT", None),
    ],
)
def test_retry_after_is_read_in_seconds_or_as_a_date(text: str, seconds: float | None) -> None:
    """``Retry-After`` has two forms, and an unreadable value asks for nothing."""
    assert retry_after({"retry-after": text}, NOW) == seconds


@pytest.mark.parametrize("skew", [-86_400, 0, 86_400])
def test_a_date_is_compared_with_the_server_s_clock(skew: int) -> None:
    """A device whose clock is a day wrong waits as long as the server meant."""
    headers = {
        "retry-after": email.utils.formatdate(NOW + 30, usegmt=True),
        "date": email.utils.formatdate(NOW, usegmt=True),
    }
    assert retry_after(headers, NOW + skew) == 30.0
