"""The check of the server before the first request."""

from __future__ import annotations

import logging

import pytest

from cached_session.journal.journal import Journal
from cached_session.remote.errors import RemoteError
from cached_session.replication.server_check import ServerCheck
from tests.unit.replication.fakes import SESSION, UNREACHABLE, FakeServer, add, open_journal


def check(journal: Journal, server: FakeServer, *, move: bool = False) -> ServerCheck:
    return ServerCheck(journal, server, move=move)  # type: ignore[arg-type]


async def acknowledged() -> Journal:
    """Return a journal whose only operation a first server has acknowledged."""
    journal = open_journal()
    await check(journal, FakeServer()).run("talk")
    add(journal, "a")
    await journal.outbox.acknowledge([1], 1)
    assert await journal.known_server.answered() == "http://fake"
    return journal


async def test_the_first_server_is_recorded_without_a_request() -> None:
    """The journal has no acknowledgements that could be wrong."""
    journal, server = open_journal(), FakeServer()
    await check(journal, server).run("talk")
    assert await journal.known_server.url() == server.server
    assert server.requests == []


async def test_the_same_server_costs_nothing() -> None:
    """Its acknowledgements stay."""
    journal, server = await acknowledged(), FakeServer()
    await check(journal, server).run("talk")
    assert server.requests == []
    assert not await journal.outbox.has_unsent(SESSION)


async def test_another_server_is_sent_everything(caplog: pytest.LogCaptureFixture) -> None:
    """Once it has answered. That is logged, and not repeated."""
    journal, other = await acknowledged(), FakeServer()
    other.server = "http://other"
    checked = check(journal, other, move=True)
    with caplog.at_level(logging.WARNING):
        await checked.run("talk")
        await checked.run("talk")
    assert other.requests == ["list"]
    assert await journal.outbox.has_unsent(SESSION)
    assert await journal.known_server.url() == "http://other"
    assert len(caplog.records) == 1


async def test_another_server_is_refused_unless_the_journal_moves() -> None:
    """It gets no request, and the journal keeps its server."""
    journal, other = await acknowledged(), FakeServer()
    other.server = "http://other"
    for _ in range(2):
        with pytest.raises(RemoteError, match=r"http://fake.*http://other.*--move"):
            await check(journal, other).run("talk")
    assert other.requests == []
    assert not await journal.outbox.has_unsent(SESSION)
    assert await journal.known_server.url() == "http://fake"


async def test_a_server_that_does_not_answer_changes_nothing() -> None:
    """A mistyped address does not send everything again; the next attempt checks anew."""
    journal, other = await acknowledged(), FakeServer()
    other.server = "http://typo"
    other.failures["list"] = [UNREACHABLE]
    checked = check(journal, other, move=True)
    with pytest.raises(RemoteError):
        await checked.run("talk")
    assert not await journal.outbox.has_unsent(SESSION)
    assert await journal.known_server.url() == "http://fake"
    await checked.run("talk")
    assert await journal.known_server.url() == "http://typo"
