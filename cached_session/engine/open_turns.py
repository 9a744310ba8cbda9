"""The open turns of a session object: one for each task that appends, and blocks of `turn`.

Context variables hold them, so that tasks side by side over one session object keep their turns
apart, and a child task begins with the turn of its parent. A context holds keys and call ids only:
it keeps no session alive, and holds a bounded number of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple

from cached_session.history.ops import TurnKey
from cached_session.history.tool_calls import ToolBatch, read_batch
from cached_session.history.turns import OpenTurn, TurnChoice, after_append, after_removal, choose
from cached_session.journal.tables.entry_rows import turn_of
from cached_session.models import Entry

__all__ = ["JoinedAppend", "OpenTurns", "Scope"]

RECORDS = 16
"""Maximum number of session objects whose turns one context holds: the latest. For any other, the
latest open turn of the session object is used."""

Scope = tuple[int, str]
"""The identity of a session in this process: (number of the engine, session id)."""


class _Record(NamedTuple):
    """The turn that a context has joined last over one session object."""

    owner: int
    """Number of the `OpenTurns`."""
    clears: int
    """Number of clears of the session before this record. A record from before the latest clear
    is not used."""
    turn: OpenTurn


_records: ContextVar[tuple[_Record, ...]] = ContextVar("cached_session_turns", default=())
_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("cached_session_blocks", default=())
_numbers = itertools.count()


class OpenTurns:
    """The turns that a session object has joined last, for each context and for all together.

    Safe to use from any task, event loop and thread.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._number = next(_numbers)
        self._clears = 0
        self._latest: OpenTurn | None = None

    def append(self, batch: ToolBatch, replaced: Sequence[Entry] = ()) -> JoinedAppend:
        """Return the context manager around one append of this batch.

        If the items that it replaces are of the current turn, the batch joins the turn too.
        """
        return JoinedAppend(self, batch, replaced)

    @asynccontextmanager
    async def block(self) -> AsyncIterator[None]:
        """Make one turn of all appends to the session in this context and its child tasks.

        A block inside another one of the same session has no effect.
        """
        if self.current_block() is not None:
            yield
            return
        block = _Block(self._scope)
        _blocks.set((*(each for each in _blocks.get() if not each.ended), block))
        try:
            yield
        finally:
            block.ended = True
            _blocks.set(tuple(each for each in _blocks.get() if not each.ended))

    def popped(self, turn: TurnKey, item: ToolBatch) -> None:
        """Record that an item of a turn was popped: corrected items may join the turn."""
        self.keep(after_removal(self.current(), turn, item))

    def removed(self, entries: Sequence[Entry]) -> None:
        """Record that items were removed: corrected items may join their turn if it is current."""
        current = self.current()
        if current is not None and _are_of(current, entries):
            self.keep(_without(current, entries))

    def cleared(self) -> None:
        """Record that the session was cleared: the next append outside a block opens a turn."""
        self._clears += 1
        self._latest = None

    def current(self) -> OpenTurn | None:
        """Return the open turn of this context, or else the latest open turn of the session object.
        If both turns are closed, return the turn of this context, or else the latest turn.
        """
        latest = self._latest
        for record in _records.get():
            if record.owner == self._number and record.clears == self._clears:
                if record.turn.is_open or latest is None or not latest.is_open:
                    return record.turn
                break
        return latest

    def current_block(self) -> _Block | None:
        """Return the block around this context, if there is one for the session."""
        for block in _blocks.get():
            if block.scope == self._scope and not block.ended:
                return block
        return None

    def keep(self, turn: OpenTurn) -> None:
        """Record the turn that this context has joined."""
        self._latest = turn
        record = _Record(self._number, self._clears, turn)
        records = _records.get()
        if records and records[0].owner != self._number:
            others = [each for each in records if each.owner != self._number]
            _records.set((record, *others[: RECORDS - 1]))
        else:
            _records.set((record, *records[1:]))


class JoinedAppend:
    """One append and the turn that it joins: ``async with turns.append(batch) as joined``.

    Inside, pass ``choice`` to the journal and call `stored` after the commit.
    """

    __slots__ = (
        "_batch",
        "_block",
        "_current",
        "_is_head",
        "_key",
        "_replaced",
        "_turns",
        "choice",
    )

    choice: TurnChoice

    def __init__(self, turns: OpenTurns, batch: ToolBatch, replaced: Sequence[Entry]) -> None:
        self._turns = turns
        self._batch = batch
        self._replaced = replaced
        self._block: _Block | None = None
        self._current: OpenTurn | None = None
        self._is_head = False
        self._key: TurnKey | None = None

    async def __aenter__(self) -> JoinedAppend:
        self._block = block = self._turns.current_block()
        if block is not None and block.key is None:
            await block.begin_head()
            self._is_head = True
        current, batch = self._turns.current(), self._batch
        if self._replaced and current is not None and _are_of(current, self._replaced):
            current = _without(current, self._replaced)
            batch = batch._replace(has_input=False)
        self._current = current
        self.choice = choose(
            batch,
            current,
            in_block=block is not None,
            block=None if block is None else block.key,
        )
        return self

    def stored(self, key: TurnKey) -> None:
        """Record the turn of the append. Call this after the commit, also if the caller is
        cancelled. The context may be another one."""
        self._key = key

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._key is not None:
            self._turns.keep(after_append(self._current, self._key, self._batch))
        if self._block is not None and self._is_head:
            self._block.end_head(self._key)


def _are_of(turn: OpenTurn, entries: Sequence[Entry]) -> bool:
    name = turn_of(*turn.key)
    return all(entry.turn == name for entry in entries)


def _without(turn: OpenTurn, entries: Sequence[Entry]) -> OpenTurn:
    return after_removal(turn, turn.key, read_batch([entry.item for entry in entries]))


class _Block:
    """A block of `OpenTurns.block`, and its turn once an append is stored in it."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.key: TurnKey | None = None
        self.ended = False
        """True after the block: tasks that were started in it may go on."""
        self._writing: dict[str, Future[None]] = {}
        """Holds a future while the first append of the block is being stored. A dict, because its
        `setdefault` is atomic: the tasks may run in several threads."""

    async def begin_head(self) -> None:
        """Reserve the first append of the block for the caller, which then calls `end_head`. Wait
        while another task stores it; afterwards the block may have a turn."""
        while True:
            mine: Future[None] = Future()
            other = self._writing.setdefault("head", mine)
            if other is mine:
                return
            # Without the shield, a cancelled task would cancel the future of all.
            await asyncio.shield(asyncio.wrap_future(other))

    def end_head(self, key: TurnKey | None) -> None:
        """Record the turn of the caller's append; None if it was not stored."""
        if key is not None:
            self.key = key
        self._writing.pop("head").set_result(None)
