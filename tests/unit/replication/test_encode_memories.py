"""Encoding operations of the outbox."""

from __future__ import annotations

import pytest

from cached_session.replication import encode_memories as encode_module
from cached_session.replication.encode_memories import encode
from tests.unit.replication.fakes import SESSION, FakeServer, add, context_of, open_journal


@pytest.mark.parametrize("large", [1, 1 << 30])
async def test_operations_are_encoded_in_order(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    """In a thread or on the event loop, with the same result."""
    monkeypatch.setattr(encode_module, "LARGE_BYTES", large)
    monkeypatch.setattr(encode_module, "SLICE_BYTES", 1)
    journal = open_journal()
    add(journal, "a", "b", "c" * 3000)
    context = context_of(FakeServer(), journal)
    operations = await journal.outbox.load([1, 2, 3])
    encoded = await encode(context, SESSION, operations)
    assert [one.seq for one in encoded] == [1, 2, 3]
    assert [one.op for one in encoded] == [outgoing.op for outgoing in operations]
    assert [len(one.memories) for one in encoded] == [1, 1, 1]
    assert b'"c' in encoded[2].memories[0].data or b"ccc" in encoded[2].memories[0].data
    assert encoded[2].size > 3000


async def test_an_operation_whose_items_are_gone_has_no_memories() -> None:
    """Nothing of it is sent."""
    journal = open_journal()
    add(journal, "a")
    journal.write_blocking(lambda conn: conn.execute("UPDATE ops SET live = 0, body = NULL"))
    context = context_of(FakeServer(), journal)
    (encoded,) = await encode(context, SESSION, await journal.outbox.load([1]))
    assert encoded.memories == []
    assert encoded.size == 0
