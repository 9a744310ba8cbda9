"""A parser of the server's event stream. Its events are hints about what to pull.

The content of an event is never applied. An event longer than `MOST_BYTES` is dropped and counts as
a hint that any memory may have changed.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

__all__ = ["Event", "EventParser"]

Event = tuple[str, str] | None
"""Hint (agent id, memory id) that a memory was stored; None if any memory may have changed."""

MOST_BYTES = 1024 * 1024
"""Maximum size of one event in bytes: 100,000 bytes of content, each escaped as six bytes, and a
margin."""
STORED = frozenset({"stored", "restored"})
"""Types of events that name one memory to pull."""
MISSED = frozenset({"connected", "stream_lagged"})
"""Types of events that mean that any number of earlier events may have been missed."""


class EventParser:
    """An incremental parser of ``text/event-stream``: bytes in, events out."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._is_dropping = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that are complete after this piece of the stream."""
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._extend_line(line)
            whole = bytes(self._line)
            self._line.clear()
            if whole.startswith(b"data:"):
                self._data.append(whole[5:].removeprefix(b" "))
            elif not whole:
                yield from self._end_event()
        self._extend_line(rest)

    def _extend_line(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MOST_BYTES:
            self._is_dropping = True
            self._data.clear()
            self._line.clear()
        else:
            self._line += piece

    def _end_event(self) -> Iterator[Event]:
        data, dropped = b"\n".join(self._data), self._is_dropping
        self._data.clear()
        self._size, self._is_dropping = 0, False
        if dropped:
            yield None
        elif data:
            yield from _parse(data)


def _parse(data: bytes) -> Iterator[Event]:
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        # The unreadable event may have named any memory.
        yield None
        return
    if not isinstance(event, dict):
        return
    kind = event.get("event_type") or event.get("type")
    agent, memory = event.get("agent_id"), event.get("memory_id")
    if kind in MISSED:
        yield None
    elif kind in STORED and isinstance(agent, str):
        yield agent, memory if isinstance(memory, str) else ""
