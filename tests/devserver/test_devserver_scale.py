"""Sizes that a backlog reaches; bounds are generous, because machines differ."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from dakera import AsyncDakeraClient
from dakera.models import BatchStoreMemoryItem, BatchStoreMemoryRequest

from cached_session.devserver import DevServer
from cached_session.devserver.memories import AgentMemories, Record


@pytest.mark.parametrize("durable", [False, True])
async def test_backlog_of_ten_thousand_is_quick(tmp_path: Path, durable: bool) -> None:
    """Ten batches of a thousand are stored in seconds, with a data file as well."""
    with DevServer(data=tmp_path / "dakera.db" if durable else None) as server:
        async with AsyncDakeraClient(server.url, max_retries=1) as client:
            began = time.monotonic()
            for number in range(10):
                items = [
                    BatchStoreMemoryItem("x" * 200, id=f"m{number}-{i}", metadata={"seq": i})
                    for i in range(1000)
                ]
                await client.store_memories_batch(BatchStoreMemoryRequest("ada", items))
            assert time.monotonic() - began < 10
        assert len(server.memories("ada")) == 10_000


def test_deep_page_of_a_large_agent_is_quick() -> None:
    """With a hundred thousand memories, paging and deleting do not walk over all of them."""
    known = AgentMemories()
    for number in range(100_000):
        doc = {"id": f"m{number}", "created_at": number // 100}
        known.put(Record(doc=doc, base_importance=0.5), now=0)
    began = time.perf_counter()
    for offset in range(0, 100_000, 1000):
        assert len(known.page(offset, 1000, with_children=False)) == 1000
    for number in range(0, 100_000, 1000):
        known.remove(f"m{number}", now=1)
    assert time.perf_counter() - began < 2
    assert known.page(0, 1, with_children=False)[0].created_at == 999
    assert known.page(99_900, 10, with_children=False) == []
