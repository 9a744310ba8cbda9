from __future__ import annotations

from typing import Any

import orjson
import pytest

from cached_session.remote.errors import RemoteError, Verdict
from cached_session.remote.retention import POLICY, guard, policy_problem

DEFAULTS = {"episodic_ttl_seconds": 2_592_000, "dedup_on_store": True, "other": 1}


class PolicyServer:
    """A namespace's policy, and the requests for it; ``failures`` are raised by method."""

    def __init__(self, policy: Any, **failures: RemoteError) -> None:
        self.policy = policy
        self.failures = failures
        self.requests: list[str] = []
        self.keeps = True

    async def request(self, method: str, path: str, body: bytes | None) -> Any:
        self.requests.append(method)
        if method in self.failures:
            raise self.failures[method]
        if method == "PUT":
            assert body is not None
            if self.keeps:
                self.policy = orjson.loads(body)
        return self.policy


def refusal(status: int) -> RemoteError:
    return RemoteError(Verdict.DENIED, f"[{status}]: no", status=status)


async def test_a_policy_is_edited_and_read_again() -> None:
    """Only the fields that protect a history change; a counter of the server is not written."""
    server = PolicyServer({**DEFAULTS, "consolidated_count": 3})
    created: set[str] = set()
    assert not (await guard(server.request, "cs-x", created)).unguarded
    assert server.policy == {**DEFAULTS, **POLICY}
    assert server.requests == ["POST", "GET", "PUT", "GET"]
    assert created == set()


async def test_a_policy_that_protects_is_left_alone() -> None:
    """A repeat writes nothing."""
    server = PolicyServer({**POLICY, "other": 1})
    assert not (await guard(server.request, "cs-x", set())).unguarded
    assert server.requests == ["POST", "GET"]


async def test_a_policy_that_the_server_does_not_keep_is_reported() -> None:
    """The report names the fields."""
    server = PolicyServer({**POLICY, "dedup_on_store": True})
    server.keeps = False
    report = await guard(server.request, "cs-x", set())
    assert report.unguarded == "the server did not keep dedup_on_store"


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_refusal_is_reported(method: str) -> None:
    """A key without that right still stores; the status names the reason."""
    server = PolicyServer(DEFAULTS, **{method: refusal(403)})
    assert (await guard(server.request, "cs-x", set())).unguarded == "[403]: no"


async def test_an_agent_that_cannot_be_created_is_guarded_all_the_same() -> None:
    """Older servers have no such route, and create the agent with its first memory."""
    server = PolicyServer(DEFAULTS, POST=refusal(405))
    assert not (await guard(server.request, "cs-x", set())).unguarded


@pytest.mark.parametrize("answer", [None, [], "policy"])
async def test_a_server_without_policies_is_reported(answer: Any) -> None:
    """The reason is that it has none."""
    report = await guard(PolicyServer(answer).request, "cs-x", set())
    assert report.unguarded == "the server has no memory policies"


@pytest.mark.parametrize(
    "failure",
    [
        RemoteError(Verdict.UNREACHABLE, "no answer"),
        RemoteError(Verdict.BUSY, "later"),
        refusal(401),
    ],
)
async def test_an_attempt_that_failed_continues_after_its_first_step(failure: RemoteError) -> None:
    """Nothing is known about the policy, so the failure is raised, and the agent is not created
    again: a server that fails each third request would never let a guard finish."""
    server = PolicyServer(DEFAULTS, PUT=failure)
    created: set[str] = set()
    with pytest.raises(RemoteError):
        await guard(server.request, "cs-x", created)
    assert created == {"cs-x"}
    server.failures = {}
    server.requests = []
    await guard(server.request, "cs-x", created)
    assert server.requests == ["GET", "PUT", "GET"]
    assert created == set()


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (POLICY, ""),
        (
            {**POLICY, "dedup_on_store": True},
            "its policy does not protect a history: dedup_on_store",
        ),
    ],
)
async def test_a_policy_is_judged_without_changing_it(policy: Any, problem: str) -> None:
    """The check of the doctor only reads."""
    server = PolicyServer(policy)
    assert await policy_problem(server.request, "cs-x") == problem
    assert server.requests == ["GET"]


async def test_a_namespace_that_is_not_there_has_no_problem() -> None:
    """A 404 means that nothing is stored there; another refusal is an error."""
    missing = PolicyServer(None, GET=RemoteError(Verdict.ABSENT, "no", status=404))
    assert await policy_problem(missing.request, "cs-x") is None
    with pytest.raises(RemoteError):
        await policy_problem(PolicyServer(None, GET=refusal(403)).request, "cs-x")
    assert "consolidation_enabled" in str(await policy_problem(PolicyServer([]).request, "cs-x"))
