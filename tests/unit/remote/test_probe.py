from __future__ import annotations

from typing import Any

import pytest

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.http import Answer
from cached_session.remote.probe import probe

DATE = {"date": "Tue, 14 Nov 2023 22:13:20 GMT"}
MISSING = RemoteError(Verdict.DENIED, "no such route", status=404)


class Server:
    """Answers by path."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    async def request(self, method: str, path: str) -> Answer:
        assert method == "GET"
        answer = self.answers[path.rsplit("/", 1)[1]]
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, DATE)


async def test_a_new_server_describes_itself() -> None:
    """Version, capabilities, key and clock are read from three answers."""
    server = Server(
        health={"version": "0.12.3"}, capabilities={"records": {}}, whoami={"scope": "write"}
    )
    facts = await probe(server.request)
    assert facts.version == "0.12.3"
    assert facts.capabilities == {"records": {}}
    assert facts.key == {"scope": "write"}
    assert facts.date == 1_700_000_000.0
    assert facts.seconds >= 0


async def test_an_old_server_lacks_two_routes() -> None:
    """A 404 on a route that came later is not a failure."""
    facts = await probe(
        Server(health={"version": "0.11"}, capabilities=MISSING, whoami=MISSING).request
    )
    assert (facts.capabilities, facts.key) == (None, None)


@pytest.mark.parametrize("health", [None, [], {"version": 7}, "up"])
async def test_a_server_may_name_no_version(health: Any) -> None:
    """Another program may answer at that address."""
    facts = await probe(Server(health=health, capabilities=[], whoami=None).request)
    assert (facts.version, facts.capabilities, facts.key) == (None, None, None)


@pytest.mark.parametrize("route", ["health", "capabilities", "whoami"])
async def test_a_refused_key_is_an_error(route: str) -> None:
    """It must not look like an old server."""
    refused = RemoteError(Verdict.DENIED, "[401] INVALID_API_KEY", status=401)
    answers = {"health": {}, "capabilities": {}, "whoami": {}, route: refused}
    with pytest.raises(RemoteError, match="INVALID_API_KEY"):
        await probe(Server(**answers).request)
