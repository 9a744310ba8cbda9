from __future__ import annotations

import orjson
import pytest

from cached_session.remote import sse
from cached_session.remote.sse import EventParser


def event(**fields: object) -> bytes:
    return b"event: x\r\ndata: " + orjson.dumps(fields) + b"\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_stream_is_parsed_however_it_is_cut(step: int) -> None:
    """Stored memories and gaps in the stream are events; other events and comments are not."""
    stream = b": keep-alive\n\n".join(
        [
            event(type="connected", timestamp=1),
            event(event_type="stored", agent_id="a", memory_id="m"),
            event(event_type="recalled", agent_id="a", memory_id="m"),
            event(type="stream_lagged", dropped=3),
            b"data: no json\n\n",
            event(event_type="restored", agent_id="b"),
            b"data: 7\n\n",
        ]
    )
    found, parser = [], EventParser()
    for at in range(0, len(stream), step):
        found += list(parser.feed(stream[at : at + step]))
    assert found == [None, ("a", "m"), None, None, ("b", "")]


def test_data_of_several_lines_is_one_event() -> None:
    """The lines are joined, as the format requires."""
    stream = b'data: {"event_type": "stored",\rdata: "agent_id": "a", "memory_id": "m"}\r\r'
    assert list(EventParser().feed(stream)) == [("a", "m")]


def test_an_endless_event_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no more memory than the limit, anything may have changed, and the next is read."""
    monkeypatch.setattr(sse, "MOST_BYTES", 100)
    parser = EventParser()
    for _ in range(50):
        assert list(parser.feed(b"data: " + b"x" * 50)) == []
        assert len(parser._line) <= 100
    assert list(parser.feed(b"\n\n")) == [None]
    stored = event(event_type="stored", agent_id="a", memory_id="m")
    assert list(parser.feed(stored)) == [("a", "m")]
