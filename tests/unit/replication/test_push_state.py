"""What pushes to one server remember between requests."""

from __future__ import annotations

from cached_session.replication.push_state import MAX_SENT_IDS, SentIds, StoreProgress
from tests.unit.replication.fakes import memory

MEMORIES = [memory(number) for number in range(5)]


def test_sent_ids_are_remembered_up_to_a_bound() -> None:
    """The oldest ones are forgotten first."""
    sent = SentIds()
    sent.add(f"m{number}" for number in range(MAX_SENT_IDS + 10))
    assert "m9" not in sent
    assert "m10" in sent
    assert f"m{MAX_SENT_IDS + 9}" in sent


def test_acknowledged_memories_are_not_sent_again() -> None:
    """A store that was broken off goes on behind them, in the same session alone."""
    progress = StoreProgress()
    assert progress.unsent("talk", MEMORIES) == MEMORIES
    progress.acknowledge("talk", {"m0", "m1"})
    assert progress.unsent("talk", MEMORIES) == MEMORIES[2:]
    assert progress.unsent("other", MEMORIES) == MEMORIES


def test_the_last_acknowledged_memory_is_verified() -> None:
    """None is verified where nothing was acknowledged by an earlier store."""
    progress = StoreProgress()
    assert progress.to_verify("talk", MEMORIES) is None
    progress.acknowledge("talk", {"m0", "m1"})
    assert progress.to_verify("talk", MEMORIES) is MEMORIES[1]
    assert progress.to_verify("talk", MEMORIES[2:]) is None


def test_lost_memories_are_sent_again_and_believed_once() -> None:
    """A server whose reads lag is not sent an operation without end."""
    progress = StoreProgress()
    progress.acknowledge("talk", {"m0", "m1"})
    progress.lost("talk")
    assert progress.unsent("talk", MEMORIES) == MEMORIES
    progress.acknowledge("talk", {"m0"})
    assert progress.to_verify("talk", MEMORIES) is None
    progress.finish("talk")
    progress.acknowledge("talk", {"m0"})
    assert progress.to_verify("talk", MEMORIES) is MEMORIES[0]


def test_a_finished_store_is_forgotten() -> None:
    """The next one sends everything that it is given."""
    progress = StoreProgress()
    progress.acknowledge("talk", {"m0"})
    progress.finish("talk")
    assert progress.unsent("talk", MEMORIES) == MEMORIES
