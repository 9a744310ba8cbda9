"""Turns: which turn an append joins, and when a turn is open.

A turn is one exchange of an agent, which frameworks store in several batches. Rules, in this order:

1. Inside a block of `CachedSession.turn`, a batch joins the turn of the block.
2. A batch that answers tool calls joins the turn of the newest visible call that it answers.
3. A batch without input from outside joins the open turn of the same session object and task.
4. Any other batch opens a new turn.

`choose` applies the rules as far as they need no journal. The journal resolves the resulting
`TurnChoice` in the transaction of the append, because rule 2 looks for calls.
"""

from __future__ import annotations

from typing import NamedTuple

from cached_session.history.ops import TurnKey
from cached_session.history.tool_calls import ToolBatch

__all__ = ["OpenTurn", "TurnChoice", "after_append", "after_removal", "choose"]

UNANSWERED_MOST = 1_000
"""Maximum number of unanswered calls of a turn that are kept in memory. The newest calls are
kept. The turn of an older call is found in the journal when its answer arrives."""


class TurnChoice(NamedTuple):
    """The turns that an append may join, best first: ``block``, the turn of the newest visible call
    among ``answers``, ``open``. Without any of them the append opens a new turn."""

    block: TurnKey | None = None
    """The turn of the block around the append."""
    answers: tuple[str, ...] = ()
    """Ids of the calls whose turn the append joins."""
    open: TurnKey | None = None
    """The open turn that the append may join."""


class OpenTurn(NamedTuple):
    """A turn and its state, as far as one session object has seen it."""

    key: TurnKey
    unanswered: tuple[str, ...] = ()
    """Ids of the calls of the turn that are not answered, in order."""
    is_open: bool = True
    """True until a batch ends with an answer of the assistant and no call is unanswered."""

    def after(self, batch: ToolBatch) -> OpenTurn:
        """Return the turn after a batch has joined it."""
        if batch.is_state:
            return self
        unanswered = _updated(self.unanswered, gone=batch.answered, added=batch.waiting)
        is_open = bool(unanswered) or not batch.ends_with_answer
        return OpenTurn(self.key, unanswered, is_open)


def choose(
    batch: ToolBatch,
    current: OpenTurn | None,
    *,
    in_block: bool = False,
    block: TurnKey | None = None,
) -> TurnChoice:
    """Return the turns that a batch may join.

    Args:
        batch: the facts about the batch.
        current: the turn that the session object and task joined last.
        in_block: whether the append is inside a block of `CachedSession.turn`.
        block: the turn of this block; None if nothing was appended in it yet. The first batch of a
            block joins the turn of the call that it answers, so that the two are not separated.
    """
    if block is not None:
        return TurnChoice(block)
    if in_block or current is None:
        return TurnChoice(answers=batch.answered)
    # Ids need not be unique: some models number the calls of each turn. So a call that is
    # unanswered in the current turn is preferred to a newer call of another turn.
    if not set(current.unanswered).isdisjoint(batch.answered):
        return TurnChoice(open=current.key)
    # State belongs to the last turn, even if that has its answer: it is no turn of its own.
    may_join = batch.is_state or (current.is_open and not batch.has_input)
    return TurnChoice(answers=batch.answered, open=current.key if may_join else None)


def after_append(current: OpenTurn | None, joined: TurnKey, batch: ToolBatch) -> OpenTurn:
    """Return the current turn after a batch was appended to the turn ``joined``."""
    if current is not None and current.key == joined:
        return current.after(batch)
    return OpenTurn(joined).after(batch)


def after_removal(current: OpenTurn | None, turn: TurnKey, removed: ToolBatch) -> OpenTurn:
    """Return the current turn after items of ``turn`` were removed.

    The turn is open again, so that a corrected item joins it.

    Args:
        current: the current turn before the pop.
        turn: the turn of the removed items.
        removed: the facts about the removed items.
    """
    if current is None or current.key != turn:
        return OpenTurn(turn, removed.answered)
    if removed.is_state:
        return current
    unanswered = _updated(current.unanswered, gone=removed.made, added=removed.answered)
    return OpenTurn(turn, unanswered)


def _updated(
    unanswered: tuple[str, ...], *, gone: tuple[str, ...], added: tuple[str, ...]
) -> tuple[str, ...]:
    if not unanswered and not added:
        return ()
    kept = dict.fromkeys(unanswered)
    for call in gone:
        kept.pop(call, None)
    kept.update(dict.fromkeys(added))
    return tuple(kept)[-UNANSWERED_MOST:]
