"""Printing for all commands: Rich on a terminal, plain lines and JSON elsewhere.

Text from a history, a journal or a server is escaped (`safe`) and passed to Rich as plain text,
never as markup.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cached_session.cli.escape import safe, safe_json
from cached_session.errors import CachedSessionError
from cached_session.humanize import lasting

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
"""Maximum number of characters of an item's text on one line."""


def is_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def show(what: RenderableType) -> None:
    """Print a Rich renderable on the terminal."""
    from rich.console import Console

    Console(highlight=False, markup=False, emoji=False).print(what)


def complain(message: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write(f"cached-session: {safe(message)}\n")
    sys.stderr.flush()


def say(line: str) -> None:
    """Print one line on standard output, and flush it: a reader of a pipe may wait for it."""
    with writing():
        print(line, flush=True)


class Unwritable(CachedSessionError):
    """Standard output cannot be written, for example because a disk is full."""


@contextmanager
def writing() -> Iterator[None]:
    """Convert errors of writes to standard output in the ``with`` block.

    Raises:
        BrokenPipeError: the reader has closed the pipe, because it needs no more output.
        Unwritable: standard output cannot be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python flushes its buffer again at exit. Redirect it, or the flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Unwritable(f"standard output cannot be written: {error.strerror}") from error


def say_json(value: Any, indent: int | None = 2) -> None:
    """Print one value as JSON; a dataclass becomes an object."""
    say(safe_json(_plain(value), indent))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner with a text on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table; columns of numbers are aligned to the right."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    numbers = {"items", "pending", "parked", "age"}
    for row in [header, *rows]:
        yield "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )


def cut(text: str) -> str:
    """Shorten a text to one line of `WIDTH` characters."""
    text = safe(" ".join(text.split()))
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def age(seconds: float | None) -> str:
    """Format a duration in seconds; return ``-`` for None."""
    return "-" if seconds is None else lasting(seconds)


def when(moment: float) -> str:
    """Format a Unix time as local time."""
    try:
        found = datetime.fromtimestamp(moment, tz=timezone.utc)
        return found.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        # Another device's clock may be out of the range of dates.
        return f"{moment:.0f}"
