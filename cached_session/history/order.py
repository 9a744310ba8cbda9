"""The order of a history: the sort key of an item.

Every replica sorts the items of a session by this key, ascending. The key follows from the item's
operation alone, so that replicas with the same operations show the same order. `clock` computes
stamps; the SQL of the journal sorts by the columns of the same names.
"""

from __future__ import annotations

__all__ = ["Position"]

Position = tuple[int, str, int, int]
"""The sort key of an item in its session: (stamp, writer, counter, index)."""
