"""Helpers of the tests of turns: items of one exchange, and the turns of a session."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from cached_session import CachedSession, Entry

__all__ = ["answer", "call", "kind", "output", "shape", "turns_of", "user"]

Item = dict[str, Any]


def user(text: str = "?") -> Item:
    """Return a message of a user."""
    return {"role": "user", "content": text}


def answer(text: str = ".") -> Item:
    """Return an answer of the assistant."""
    return {"role": "assistant", "content": text}


def call(name: str) -> Item:
    """Return the call of a tool."""
    return {"type": "function_call", "call_id": name, "name": "pay", "arguments": "{}"}


def output(name: str) -> Item:
    """Return the output of a tool."""
    return {"type": "function_call_output", "call_id": name, "output": "paid"}


def kind(item: Any) -> str:
    """Return the role or the type of an item."""
    return str(item.get("role") or item["type"])


async def turns_of(session: CachedSession) -> list[list[Entry]]:
    """Return the entries of a session by turn, in order; fail if a turn is torn."""
    found = [list(group) for _, group in groupby(await session.entries(), lambda e: e.turn)]
    assert len({turn[0].turn for turn in found}) == len(found), "a turn is torn"
    return found


async def shape(session: CachedSession) -> list[str]:
    """Return the kinds of the items of each turn, joined by spaces."""
    return [" ".join(kind(entry.item) for entry in turn) for turn in await turns_of(session)]
