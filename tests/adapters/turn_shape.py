"""The turns of a session that an adapter stored."""

from __future__ import annotations

from itertools import groupby

from cached_session import CachedSession

__all__ = ["turn_shape"]


async def turn_shape(session: CachedSession) -> list[list[str]]:
    """Return the roles of the messages of each turn; fail if a turn is torn. Omit state."""
    turns = [list(group) for _, group in groupby(await session.entries(), lambda each: each.turn)]
    assert len({turn[0].turn for turn in turns}) == len(turns), "a turn is torn"
    roles = [[each.item["role"] for each in turn if "role" in each.item] for turn in turns]
    return [found for found in roles if found]
