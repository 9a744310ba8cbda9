"""Sizes that a backlog reaches: what is asked of it costs no more because of them. Costs are
compared, as CPU time of this process, because machines differ, and stall."""

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
    """Of ten batches of a thousand the later ones are no dearer, with a data file as well."""
    with DevServer(data=tmp_path / "dakera.db" if durable else None) as server:
        async with AsyncDakeraClient(server.url, max_retries=1) as client:
            taken = []
            for number in range(10):
                items = [
                    BatchStoreMemoryItem("x" * 200, id=f"m{number}-{i}", metadata={"seq": i})
                    for i in range(1000)
                ]
                began = time.process_time()
                await client.store_memories_batch(BatchStoreMemoryRequest("ada", items))
                taken.append(time.process_time() - began)
            assert min(taken[5:]) < 3 * min(taken[:5]), taken
        assert len(server.memories("ada")) == 10_000


def _filled(count: int) -> AgentMemories:
    known = AgentMemories()
    for number in range(count):
        doc = {"id": f"m{number}", "created_at": number // 100}
        known.put(Record(doc=doc, base_importance=0.5), now=0)
    return known


def test_deep_page_of_a_large_agent_is_quick() -> None:
    """With a hundred thousand memories, paging and deleting do not walk over all of them."""

    def cost(known: AgentMemories, deepest: int) -> float:
        """Of a hundred pages and as many deletions."""
        began = time.process_time()
        for offset in range(0, deepest, deepest // 100):
            assert len(known.page(offset, 100, with_children=False)) == 100
        for number in range(0, deepest, deepest // 100):
            known.remove(f"m{number}", now=1)
        return time.process_time() - began

    small, known = _filled(10_000), _filled(100_000)
    assert cost(known, 100_000) < 5 * cost(small, 10_000)
    assert known.page(0, 1, with_children=False)[0].created_at == 999
    assert known.page(99_900, 10, with_children=False) == []
