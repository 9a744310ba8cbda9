"""The server as a process of its own: started like the CLI starts it, commanded over HTTP."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cached_session.devserver import DevServer

PROGRAM = """
import sys
from cached_session.devserver import serve
serve(port=0, data=sys.argv[1] or None, log=True)
"""

Start = Callable[..., tuple["subprocess.Popen[str]", httpx.Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start server processes; each is killed at the end."""
    started: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def run(data: Path | str = "") -> tuple[subprocess.Popen[str], httpx.Client]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(data)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        client = httpx.Client(base_url=line.split()[-1], timeout=60)
        started.append((process, client))
        return process, client

    yield run
    for process, client in started:
        client.close()
        process.kill()
        process.communicate()


def store(client: httpx.Client, *ids: str) -> httpx.Response:
    items = [{"content": f"text of {i}", "id": i, "metadata": {"id": i}} for i in ids]
    body = {"agent_id": "ada", "memories": items}
    return client.post("/v1/memories/store/batch", json=body)


def listed(client: httpx.Client) -> set[str]:
    return {memory["id"] for memory in client.get("/v1/agents/ada/memories").json()}


def test_acknowledged_stores_survive_kill_9(start: Start, tmp_path: Path) -> None:
    """Whatever was acknowledged before `kill -9` is there afterwards, whole."""
    data = tmp_path / "dakera.db"
    process, client = start(data)
    stored = 0
    while stored < 50:
        assert store(client, f"m{stored}").status_code == 200
        stored += 1
    client.put("/v1/namespaces/_dakera_agent_ada/memory_policy", json={"dedup_on_store": True})
    process.kill()
    assert process.wait() == -signal.SIGKILL
    _, again = start(data)
    assert listed(again) == {f"m{number}" for number in range(50)}
    memory = again.get("/v1/memory/get/m7?agent_id=ada").json()
    assert (memory["content"], memory["metadata"]) == ("text of m7", {"id": "m7"})
    policy = again.get("/v1/namespaces/_dakera_agent_ada/memory_policy").json()
    assert policy["dedup_on_store"] is True


def test_memory_only_process_forgets(start: Start) -> None:
    """Without a data file a new process starts empty."""
    process, client = start()
    store(client, "a")
    process.kill()
    _, again = start()
    assert listed(again) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_process_cleanly(start: Start, number: int) -> None:
    """SIGINT and SIGTERM end the process with status 0 and no traceback."""
    process, client = start()
    client.get("/health")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert err == "GET /health 200\n"


def test_process_is_commanded_over_http(start: Start) -> None:
    """Faults, clock, log, eviction, backups and modes of another process obey `/_dev/`."""
    _, client = start()

    def command(path: str, **body: Any) -> dict[str, Any]:
        answer = client.post(f"/_dev/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    store(client, "a", "b", "c")
    backup = command("snapshot")["snapshot"]
    assert command("evict", agent_id="ada", ids=["a"])["evicted"] == 1
    assert command("evict", agent_id="ada", filter={"min_importance": 0.9})["evicted"] == 0
    assert command("memories", agent_id="ada")["count"] == 2
    command("restore", snapshot=backup)
    assert listed(client) == {"a", "b", "c"}
    frozen = command("clock", freeze=True)["now"]
    assert command("clock", advance=31 * 86_400)["now"] == frozen + 31 * 86_400
    assert listed(client) == set()
    assert command("modes", existing_id="refuse")["existing_id"] == "refuse"
    command("keys", secret="s", scope="read")
    assert store(client, "d").status_code == 401
    log = client.get("/_dev/requests").json()["requests"]
    assert (log[0]["path"], log[0]["status"]) == ("/v1/memories/store/batch", 200)
    assert client.delete("/_dev/requests").json()["count"] == 0
    command("reset")
    assert command("memories", agent_id="ada")["count"] == 0


def test_faults_are_put_read_and_deleted_over_http(start: Start) -> None:
    """The plan of another process can be replaced, extended, read with counters, and cleared."""
    _, client = start()
    lost = {"kind": "drop", "after_commit": True, "route": "POST *", "count": 1}
    assert client.put("/_dev/faults", json={"faults": [lost]}).status_code == 200
    with pytest.raises(httpx.TransportError):
        store(client, "a")
    assert listed(client) == {"a"}
    client.post("/_dev/faults", json={"kind": "status", "status": 503, "retry_after": 2})
    assert client.get("/health").headers["Retry-After"] == "2"
    (fault,) = client.get("/_dev/faults").json()["faults"]
    assert (fault["kind"], fault["fired"]) == ("status", 1)
    wrong = client.put("/_dev/faults", json={"faults": [{"kind": "explode"}]})
    assert (wrong.status_code, "unknown fault kind" in wrong.json()["error"]) == (400, True)
    assert client.delete("/_dev/faults").json() == {"faults": []}
    assert client.get("/health").status_code == 200


def test_process_refuses_for_a_while_on_command(start: Start) -> None:
    """Told to refuse, a process refuses connections, then serves the same data again."""
    _, client = start()
    store(client, "a")
    refused = False
    for seconds in (0.2, 1, 5, 25):
        client.post("/_dev/refuse", json={"seconds": seconds})
        deadline = time.monotonic() + 2 * seconds
        while time.monotonic() < deadline:
            try:
                if listed(client) == {"a"} and refused:
                    break
            except httpx.ConnectError:
                refused = True
            except httpx.TransportError:
                pass
            time.sleep(0.01)
        if refused:  # else this process stood still all the while
            break
    assert refused
    assert listed(client) == {"a"}


def test_data_file_carries_sessions_and_settings(tmp_path: Path) -> None:
    """Everything but the root key and the clock's offset is read back from the data file."""
    data = tmp_path / "nested" / "dakera.db"
    with DevServer(data=data, api_key="old-root") as server:
        server.add_key("kept", "super_admin")
        with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer kept"}) as http:
            session = http.post("/v1/sessions/start", json={"agent_id": "ada"}).json()["session"]
            http.put("/v1/admin/decay/config", json={"min_importance": 0.0})
            store(http, "a")
            http.post("/v1/memory/forget", json={"agent_id": "ada", "memory_ids": ["a"]})
            store(http, "b")
    with DevServer(data=data) as server:
        with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer kept"}) as http:
            assert http.get(f"/v1/sessions/{session['id']}").json() == session
            assert http.get("/v1/admin/decay/config").json()["min_importance"] == 0.0
            assert listed(http) == {"b"}
            old = http.get("/v1/agents", headers={"Authorization": "Bearer old-root"})
            assert old.status_code == 401


def test_reset_empties_the_data_file(tmp_path: Path) -> None:
    """After a reset the data file is as empty as the server."""
    data = tmp_path / "dakera.db"
    with DevServer(data=data) as server, httpx.Client(base_url=server.url) as http:
        store(http, "a")
        server.reset()
        store(http, "b")
    with DevServer(data=data) as server, httpx.Client(base_url=server.url) as http:
        assert listed(http) == {"b"}
