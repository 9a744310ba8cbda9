"""The calls that a session makes while statements or files fail, and the checks after each call.

A call that returned has taken effect. A call that raised a `JournalError` has not, and nothing else
is raised. Where a fault leaves this open (a process killed in the middle of a call, a commit that
took effect and then reported an error), both states are possible until something is read.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cached_session import CachedSession, JournalError
from cached_session.history.ids import session_key
from cached_session.history.parts import Part, split
from cached_session.history.session_ref import SessionRef
from cached_session.journal import compaction
from cached_session.journal.journal import MEMORY, Journal
from cached_session.journal.tables import inbox, outbox, writes

State = list[str]
LARGE = "x" * 20_000
"""Longer than one page of the file, and than one part on the wire."""


def text_message(*words: str) -> list[Any]:
    return [{"role": "user", "content": word} for word in words]


def content(items: Sequence[Any]) -> State:
    return [str(item["content"]) for item in items]


async def words(session: CachedSession) -> State:
    return content(await session.get_items())


def page(*batches: State) -> list[Part]:
    """Return what another device wrote an hour ago, as the server lists it."""
    earlier = writes.Author("elsewhere", time.time_ns() // 1_000_000 - 3_600_000, 600_000)
    journal = Journal(MEMORY, threaded=False)
    parts: list[Part] = []
    for batch in batches:
        encoded = [(json.dumps(item), 0) for item in text_message(*batch)]
        journal.write_blocking(
            lambda conn, encoded=encoded: writes.append(conn, earlier, "s", encoded, private=False)
        )
    for outgoing in journal.read_blocking(lambda conn: outbox.load(conn, "1", ())):
        parts += split(outgoing.op, outgoing.digest, session_key("s"))
    journal.close_blocking()
    return parts


FIRST, SECOND = ["p", "q"], ["r", f"s{LARGE}"]
PARTS = page(FIRST, SECOND)


@dataclass
class Work:
    """The calls on one session, and the states in which its history may be after them."""

    session: CachedSession
    possible: list[State] = field(default_factory=lambda: [[]])
    failed: Counter[str] = field(default_factory=Counter)
    is_unsure: Callable[[], bool] = lambda: False
    """Whether the call that has just failed may have taken effect."""
    tell: Callable[[list[State]], None] = lambda _: None
    """Receives the possible states if the process ends now."""

    async def change(
        self, call: Callable[[], Awaitable[Any]], after: Callable[[State], State]
    ) -> None:
        then = [after(state) for state in self.possible]
        either = [*self.possible, *then]
        self.tell(either)
        try:
            await call()
        except JournalError as error:
            self.failed[type(error).__name__] += 1
            if self.is_unsure():
                self.possible = either
        else:
            self.possible = then
        self.tell(self.possible)

    def observe(self, fits: Callable[[State], bool], what: object) -> None:
        """Keep only the possible states that agree with what was read."""
        left = [state for state in self.possible if fits(state)]
        assert left, f"{str(what)[:300]} fits none of {str(self.possible)[:300]}"
        self.possible = left

    async def look(self, call: Callable[[], Awaitable[Any]], of: Callable[[State], object]) -> None:
        try:
            found = await call()
        except JournalError as error:
            self.failed[type(error).__name__] += 1
        else:
            self.observe(lambda state: of(state) == found, found)

    async def add(self, *batch: str) -> None:
        await self.change(
            lambda: self.session.add_items(text_message(*batch)), lambda state: [*state, *batch]
        )

    async def pop(self) -> None:
        async def pop() -> None:
            item: Any = await self.session.pop_item()
            last = None if item is None else item["content"]
            self.observe(lambda state: last == (state[-1] if state else None), last)

        await self.change(pop, lambda state: state[:-1])

    async def clear(self) -> None:
        await self.change(self.session.clear_session, lambda _: [])

    async def pull(self, parts: list[Part], batch: State) -> None:
        """Apply a page. Its items are older than all local ones, in the order of the pages."""

        def after(state: State) -> State:
            before = sum(word in FIRST for word in state)
            return [*state[:before], *batch, *state[before:]]

        await self.change(
            lambda: self.session._engine.journal.write(
                lambda conn: inbox.apply_page(conn, SessionRef.of("s"), parts, [], 0)
            ),
            after,
        )

    async def compact(self) -> None:
        await self.change(lambda: compaction.compact(self.session._engine.journal), list)

    async def read(self, limit: int | None = None) -> None:
        async def read() -> State:
            return content(await self.session.get_items(limit))

        await self.look(read, lambda state: state if limit is None else state[-limit:])

    async def entries(self) -> None:
        async def read() -> State:
            return content([entry.item for entry in await self.session.entries()])

        await self.look(read, list)

    async def search(self, word: str) -> None:
        async def search() -> State:
            return content([entry.item for entry in await self.session.search(word)])

        await self.look(search, lambda state: [text for text in state[::-1] if word in text])

    async def status(self) -> None:
        async def count() -> int:
            return self.session.status().items

        await self.look(count, len)

    async def everything(self) -> None:
        """Make each kind of call at least once, with its short path before its long one."""
        ours = [part for part in PARTS if part.dot.counter == 1]
        theirs = [part for part in PARTS if part.dot.counter == 2]
        await self.add("a", "b")
        await self.pull(ours, FIRST)
        await self.pop()
        await self.read()
        await self.add("c", f"needle{LARGE}", "d")
        await self.search("needle")
        await self.clear()
        await self.compact()
        await self.add("e")
        await self.pull(theirs, SECOND)
        await self.add("f", "g")
        await self.compact()
        await self.read(3)
        await self.pop()
        await self.entries()
        await self.status()

    async def check_after_fault(self) -> None:
        """Check after the fault that the same session shows what it must and accepts more."""
        found = await words(self.session)
        self.observe(lambda state: state == found, found)
        await self.session.add_items(text_message("after"))
        self.possible = [[*found, "after"]]
        await self.look(lambda: words(self.session), list)
