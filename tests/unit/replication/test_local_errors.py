"""Errors of the journal that stop background work."""

from __future__ import annotations

import logging

import pytest

from cached_session.errors import JournalError
from cached_session.replication.local_errors import LocalErrors


def test_failures_in_a_row_are_counted_by_work_and_session() -> None:
    """A success starts the count again."""
    errors = LocalErrors()
    assert [errors.record("push", "talk", JournalError("full")) for _ in range(3)] == [0, 1, 2]
    assert errors.record("pull", "talk", JournalError("full")) == 0
    errors.clear("push", "talk")
    assert errors.record("push", "talk", JournalError("full")) == 0


def test_the_reason_is_that_of_the_session_or_of_any() -> None:
    """Other sessions are not affected."""
    errors = LocalErrors()
    assert errors.reason(None) is None
    errors.record("push", "talk", JournalError("full"))
    assert errors.reason("talk") == errors.reason(None) == "full"
    assert errors.reason("other") is None
    errors.clear("push", "talk")
    errors.clear("push", "talk")
    assert errors.reason(None) is None


def test_the_first_failure_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """The others do not fill the log."""
    errors = LocalErrors()
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            errors.record("push", "talk", JournalError("full"))
    assert [record.levelno for record in caplog.records] == [
        logging.ERROR,
        logging.DEBUG,
        logging.DEBUG,
    ]
