"""The chat service: separate users, a restart, and no need of a server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx

CHAT = Path(__file__).parent.parent.parent / "examples" / "chat_service"
sys.path.insert(0, str(CHAT))

from service import create_service  # noqa: E402


def client_of(service: object) -> httpx.AsyncClient:
    """Make a client that calls the service without a socket."""
    transport = httpx.ASGITransport(app=service)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://chat")


async def test_sessions_of_users_are_separate_and_survive_a_restart(tmp_path: Path) -> None:
    """A service on the same journal continues the conversation of each user."""
    for heard in (1, 2):
        service = create_service(tmp_path / "chat.db", url=None)
        async with service.router.lifespan_context(service), client_of(service) as client:
            answer = await client.post("/users/ada/messages", json={"text": "hello"})
            assert f"heard {heard} from you" in answer.json()["reply"]
    async with service.router.lifespan_context(service), client_of(service) as client:
        ada = (await client.get("/users/ada/messages")).json()
        bob = (await client.get("/users/bob/messages")).json()
    assert [message["role"] for message in ada["messages"]] == ["user", "assistant"] * 2
    assert bob["messages"] == []


async def test_an_unreachable_server_delays_no_request(tmp_path: Path) -> None:
    """With a server that refuses connections the turn is answered and counted as pending."""
    service = create_service(tmp_path / "chat.db", url="http://127.0.0.1:9")
    async with service.router.lifespan_context(service), client_of(service) as client:
        answer = await client.post("/users/ada/messages", json={"text": "hello"})
        assert answer.status_code == 200
        assert (await client.get("/status")).json()["pending"] == 2


async def test_an_empty_message_is_refused(tmp_path: Path) -> None:
    """The response is a client error, and nothing is stored."""
    service = create_service(tmp_path / "chat.db", url=None)
    async with service.router.lifespan_context(service), client_of(service) as client:
        assert (await client.post("/users/ada/messages", json={"text": ""})).status_code == 422
        assert (await client.get("/users/ada/messages")).json()["messages"] == []


async def test_a_page_gets_changes_until_the_service_ends(tmp_path: Path) -> None:
    """The stream starts with the current items and continues with each change on this journal. The
    shutdown ends it without an error."""
    service = create_service(tmp_path / "chat.db", url=None)
    (route,) = [route for route in service.routes if getattr(route, "path", "").endswith("/events")]
    async with service.router.lifespan_context(service), client_of(service) as client:
        response = await route.endpoint("ada")  # type: ignore[attr-defined]
        assert response.media_type == "text/event-stream"
        events = response.body_iterator
        assert '"messages": []' in await anext(events)
        await client.post("/users/ada/messages", json={"text": "hello"})
        shown = ""
        while "heard 1 from you" not in shown:
            shown = await asyncio.wait_for(anext(events), 60)
        waiting = asyncio.ensure_future(anext(events, "the end"))
        await asyncio.sleep(0)
    assert await asyncio.wait_for(waiting, 60) == "the end"
