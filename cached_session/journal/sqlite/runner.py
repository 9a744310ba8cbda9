"""The interface through which tables run SQL. Its methods differ in the thread and the transaction
that they use."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

__all__ = ["Runner"]

P = ParamSpec("P")
T = TypeVar("T")


class Runner(Protocol):
    """A journal file that runs functions over its connections.

    Each method calls ``function`` with a connection, followed by the other arguments.
    """

    async def write(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a function in a write transaction; return its result after the commit."""

    async def read(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a short query on the calling thread."""

    def read_aside(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Awaitable[T]:
        """Run a query that takes milliseconds in a thread, in parallel with short reads and
        writes."""

    def write_soon(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> asyncio.Future[T]:
        """Start a write transaction without waiting; the future completes after the commit."""

    def read_blocking(
        self,
        function: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a short query without an event loop. The journal must be open."""
