"""The event stream: a hint to pull now, over real sockets."""

from __future__ import annotations

import time
from dataclasses import replace

import orjson
import pytest
from devices import MANUAL, Devices, said, texts, until

from cached_session.remote import events
from cached_session.remote.events import Events

LISTENING = replace(MANUAL, listen=True, push_delay=0.0, backoff_base=0.01)
"""Nothing is polled for: what arrives was announced."""


async def test_a_write_reaches_another_device_at_once(device: Devices) -> None:
    """Without a poll, what one device writes is on the other within a moment, again and again."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    took = []
    for number in range(5):
        await first.add_items([said(f"word {number}")])
        began = time.monotonic()
        await until(lambda wanted=number + 1: _has(second, wanted))
        took.append(time.monotonic() - began)
    assert texts(await second.get_items()) == [f"word {number}" for number in range(5)]
    assert sorted(took)[2] < 1.0, took


async def _has(session: object, count: int) -> bool:
    return len(await session.get_items()) == count  # type: ignore[attr-defined]


async def test_own_words_cause_no_pull(device: Devices) -> None:
    """The event of a memory that was written here is no reason to ask the server."""
    first = await device("first", options=LISTENING)
    second = await device("second", options=LISTENING)
    await until(lambda: _up(first) and _up(second))
    await first.sync(timeout=20)
    plan = first._core.home.replicator()._schedules["talk"]  # type: ignore[union-attr]
    wanted = plan.wanted
    for number in range(3):
        await first.add_items([said(f"word {number}")])
        await first.flush(timeout=20)
    await until(lambda: _has(second, 3))
    assert plan.wanted == wanted


def _up(session: object) -> bool:
    replicator = session._core.home.replicator()  # type: ignore[attr-defined]
    return replicator is not None and replicator.listener.is_up


def sse(**said: object) -> bytes:
    return b"event: x\r\ndata: " + orjson.dumps(said) + b"\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_the_stream_is_taken_apart_however_it_is_cut(step: int) -> None:
    """Stored memories, and whatever may stand for more; the rest, comments too, is no news."""
    stream = b": keep-alive\n\n".join(
        [
            sse(type="connected", timestamp=1),
            sse(event_type="stored", agent_id="a", memory_id="m"),
            sse(event_type="recalled", agent_id="a", memory_id="m"),
            sse(type="stream_lagged", dropped=3),
            b"data: no json\n\n",
            sse(event_type="restored", agent_id="b"),
            b"data: 7\n\n",
        ]
    )
    taken, decoder = [], Events()
    for at in range(0, len(stream), step):
        taken += list(decoder.feed(stream[at : at + step]))
    assert taken == [None, ("a", "m"), None, None, ("b", "")]


def test_an_endless_event_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no more memory than the bound, counts as news of all, and the next is read."""
    monkeypatch.setattr(events, "MOST_BYTES", 100)
    decoder = Events()
    for _ in range(50):
        assert list(decoder.feed(b"data: " + b"x" * 50)) == []
        assert len(decoder._line) <= 100
    assert list(decoder.feed(b"\n\n")) == [None]
    assert list(decoder.feed(sse(event_type="stored", agent_id="a", memory_id="m"))) == [("a", "m")]
