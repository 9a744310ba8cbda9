"""What the tests of a session share: items, children, a scripted model, a look at what is left."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from agents import ModelResponse, Usage
from agents.models.interface import Model
from filelock import FileLock, Timeout
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from cached_session.devserver import DevServer
from cached_session.devserver.faults import Fault
from cached_session.remote.errors import RemoteError
from cached_session.replication.pauses import Pauses

Item = dict[str, Any]
CHILD_SECONDS = 120.0
"""The longest that a child may take on a busy machine; it takes well under a second."""


def said(*words: object) -> list[Any]:
    """User messages with these words."""
    return [{"role": "user", "content": str(word)} for word in words]


def words(items: Sequence[Any]) -> list[str]:
    """What `said` was given."""
    return [item["content"] for item in items]


def exact(value: Any) -> str:
    """A JSON value with its types and key order: 1, 1.0 and True are equal to Python, not here."""
    return json.dumps(value)


def journal_threads() -> set[threading.Thread]:
    """The writing threads of journals that are open."""
    return {thread for thread in threading.enumerate() if thread.name == "cached-session-journal"}


def threads_of_ours() -> set[threading.Thread]:
    """Every thread that the library has started."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("cached-session-")}


def is_locked(journal: Path) -> bool:
    """Whether a process, this one too, holds the lock of a journal's replicator."""
    try:
        with FileLock(f"{journal}.lock", blocking=False):
            return False
    except Timeout:
        return True


def server_connections(server: DevServer) -> int:
    """Connections of this process to the server, as the kernel counts them."""
    ours = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            ours.add(str(entry.readlink()))
        except OSError:
            continue
    count = 0
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        to_server = int(fields[2].split(":")[1], 16) == server.port
        count += to_server and f"socket:[{fields[9]}]" in ours
    return count


def left_over(journal: Path, server: DevServer) -> dict[str, object]:
    """What a session may leave behind and must not: only the kinds of which there is something."""
    gc.collect()
    tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    found = {
        "tasks": tasks,
        "threads": threads_of_ours(),
        "lock": is_locked(journal),
        "connections": server_connections(server),
        "files": [name for name in open_files(journal.parent) if not name.endswith(".lock")],
    }
    return {kind: what for kind, what in found.items() if what}


def replicators() -> set[asyncio.Task[Any]]:
    """The background tasks of the running event loop."""
    return {task for task in asyncio.all_tasks() if task.get_name() == "cached-session-replicator"}


def open_files(directory: Path) -> list[str]:
    """Files below a directory that this process holds open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the descriptor of this very listing
        if target.startswith(str(directory)):
            found.append(target)
    return sorted(found)


def failure_recorded(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set when the replicator has recorded a failure of the server."""
    recorded, record = asyncio.Event(), Pauses.record_failure

    async def observed(self: Pauses, session_id: str, error: RemoteError) -> float:
        seconds = await record(self, session_id, error)
        recorded.set()
        return seconds

    monkeypatch.setattr(Pauses, "record_failure", observed)
    return recorded


def fault_applied(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set when a fault of the server applies to a request."""
    loop, applied, hits = asyncio.get_running_loop(), asyncio.Event(), fault.hits

    def observed(request: str) -> bool:
        hit = hits(request)
        if hit:
            loop.call_soon_threadsafe(applied.set)
        return hit

    monkeypatch.setattr(fault, "hits", observed)
    return applied


PRELUDE = """
import asyncio, json, os, sqlite3, sys
from cached_session import CachedSession, CachedSessionError, SessionCache, SyncOptions
def said(*words):
    return [{"role": "user", "content": str(word)} for word in words]
def words(items):
    return [item["content"] for item in items]
def tell(*values):
    print(json.dumps(values), flush=True)
def wait():
    return sys.stdin.readline()
"""


class Child:
    """Another process, which runs some code beside this one; it is told and asked by lines."""

    def __init__(self, code: str, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)]
            + [str(argument) for argument in arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=None if env is None else {**os.environ, **env},
        )

    def go(self) -> None:
        """Let it pass its `wait`."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def told(self) -> list[Any]:
        """The next line that it tells."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended: {self.process.communicate()[1]}"
        found: list[Any] = json.loads(line)
        return found

    def end(self) -> list[list[Any]]:
        """Wait for its end, which must be a good one; the lines that were left."""
        out, err = self.process.communicate(timeout=CHILD_SECONDS)
        assert self.process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def kill(self) -> list[list[Any]]:
        """End it as a power cut does; the whole lines that were left."""
        assert self.process.stdout is not None
        self.process.kill()
        # Not `communicate`: it passes over what `told` has read ahead.
        lines = self.process.stdout.readlines()
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=CHILD_SECONDS)


class ScriptedModel(Model):
    """Says what its script says, one answer a call, and keeps what it was given."""

    def __init__(self, *answers: str | tuple[str, dict[str, Any]]) -> None:
        self.answers = list(answers)
        self.seen: list[list[Any]] = []

    async def get_response(
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        return ModelResponse(
            output=self._answer(input), usage=Usage(), response_id=f"resp_{len(self.seen)}"
        )

    async def stream_response(
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002 - the SDK's name
        *args: Any,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        output = self._answer(input)
        response = Response(
            id=f"resp_{len(self.seen)}",
            created_at=0,
            model="scripted",
            object="response",
            output=output,
            parallel_tool_calls=False,
            tool_choice="auto",
            tools=[],
        )
        yield ResponseCompletedEvent(
            response=response, sequence_number=0, type="response.completed"
        )

    def _answer(self, given: Any) -> list[Any]:
        items = said(given) if isinstance(given, str) else given
        self.seen.append(json.loads(json.dumps(items)))
        number = len(self.seen)
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            text = ResponseOutputText(text=answer, type="output_text", annotations=[])
            return [
                ResponseOutputMessage(
                    id=f"msg_{number}",
                    content=[text],
                    role="assistant",
                    status="completed",
                    type="message",
                )
            ]
        name, arguments = answer
        return [
            ResponseFunctionToolCall(
                id=f"fc_{number}",
                call_id=f"call_{number}",
                name=name,
                arguments=json.dumps(arguments),
                type="function_call",
                status="completed",
            )
        ]
