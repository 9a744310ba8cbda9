"""Helpers of the session tests: items, child processes, a scripted model, checks for leaks."""

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


def messages(*texts: object) -> list[Any]:
    """Return one user message for each text."""
    return [{"role": "user", "content": str(text)} for text in texts]


def contents(items: Sequence[Any]) -> list[str]:
    """Return the texts of user messages."""
    return [item["content"] for item in items]


def exact(value: Any) -> str:
    """Return a value as JSON text, which tells 1, 1.0 and True apart and keeps the key order."""
    return json.dumps(value)


def journal_threads() -> set[threading.Thread]:
    """Return the writing threads of open journals."""
    return {thread for thread in threading.enumerate() if thread.name == "cached-session-journal"}


def library_threads() -> set[threading.Thread]:
    """Return every thread that the library has started."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("cached-session-")}


def is_locked(journal: Path) -> bool:
    """Return whether any process, including this one, holds a journal's replicator lock."""
    try:
        with FileLock(f"{journal}.lock", blocking=False):
            return False
    except Timeout:
        return True


def server_connections(server: DevServer) -> int:
    """Return the number of connections from this process to the server."""
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


def leaks(journal: Path, server: DevServer) -> dict[str, object]:
    """Return what a closed session has left behind, by kind; empty if there is nothing."""
    gc.collect()
    tasks = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    found = {
        "tasks": tasks,
        "threads": library_threads(),
        "lock": is_locked(journal),
        "connections": server_connections(server),
        "files": [name for name in open_files(journal.parent) if not name.endswith(".lock")],
    }
    return {kind: what for kind, what in found.items() if what}


def replicators() -> set[asyncio.Task[Any]]:
    """Return the background tasks of the running event loop."""
    return {task for task in asyncio.all_tasks() if task.get_name() == "cached-session-replicator"}


def open_files(directory: Path) -> list[str]:
    """Return the files below a directory that this process holds open."""
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
def messages(*texts):
    return [{"role": "user", "content": str(text)} for text in texts]
def contents(items):
    return [item["content"] for item in items]
def report(*values):
    print(json.dumps(values), flush=True)
def wait():
    return sys.stdin.readline()
"""


class Child:
    """A child process that runs some code and exchanges lines with the test."""

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

    def resume(self) -> None:
        """Let the child return from its `wait`."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def read_line(self) -> list[Any]:
        """Return the values of the next line that the child reports."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended: {self.process.communicate()[1]}"
        found: list[Any] = json.loads(line)
        return found

    def end(self) -> list[list[Any]]:
        """Wait until the child ends with success, and return its remaining lines."""
        out, err = self.process.communicate(timeout=CHILD_SECONDS)
        assert self.process.returncode == 0, err
        return [json.loads(line) for line in out.splitlines()]

    def kill(self) -> list[list[Any]]:
        """End the child as a power cut would, and return its remaining whole lines."""
        assert self.process.stdout is not None
        self.process.kill()
        # Not `communicate`: it omits what `read_line` has read ahead.
        lines = self.process.stdout.readlines()
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=CHILD_SECONDS)


class ScriptedModel(Model):
    """A model that returns scripted answers, one a call, and records its inputs."""

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
        items = messages(given) if isinstance(given, str) else given
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
