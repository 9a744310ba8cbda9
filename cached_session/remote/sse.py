"""The server's event stream, taken apart: what was stored, and when all may have changed.

Bounded: an event longer than any that a server has reason to send is dropped, and counts as news of
everything. What an event says is a hint to look, and is never applied.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

__all__ = ["Event", "Events"]

Event = tuple[str, str] | None
"""(agent, memory) of a memory that was stored; None: anything may have changed."""

MOST_BYTES = 1024 * 1024
"""Of one event: 100,000 bytes of content, escaped as wastefully as JSON allows, and room."""
NEWS = frozenset({"stored", "restored"})
ALL = frozenset({"connected", "stream_lagged"})


class Events:
    """Bytes in, events out."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._dropping = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that a piece of the stream completes."""
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._grow(line)
            whole = bytes(self._line)
            self._line.clear()
            if whole.startswith(b"data:"):
                self._data.append(whole[5:].removeprefix(b" "))
            elif not whole:
                yield from self._end()
        self._grow(rest)

    def _grow(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > MOST_BYTES:
            self._dropping = True
            self._data.clear()
            self._line.clear()
        else:
            self._line += piece

    def _end(self) -> Iterator[Event]:
        data, dropped = b"\n".join(self._data), self._dropping
        self._data.clear()
        self._size, self._dropping = 0, False
        if dropped:
            yield None
        elif data:
            yield from _event(data)


def _event(data: bytes) -> Iterator[Event]:
    try:
        said = orjson.loads(data)
    except orjson.JSONDecodeError:
        # It may have been about anything.
        yield None
        return
    if not isinstance(said, dict):
        return
    kind = said.get("event_type") or said.get("type")
    agent, memory = said.get("agent_id"), said.get("memory_id")
    if kind in ALL:
        yield None
    elif kind in NEWS and isinstance(agent, str):
        yield agent, memory if isinstance(memory, str) else ""
