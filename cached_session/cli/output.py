"""How the commands speak: Rich on a terminal, plain lines and JSON everywhere else.

Whatever comes from a history, a journal or a server is escaped (`safe`) and reaches Rich as plain
text, never as markup.
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

WIDTH = 100  # characters of an item's text that stand on its line


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def show(what: RenderableType) -> None:
    """Draw on the terminal."""
    from rich.console import Console

    Console(highlight=False, markup=False, emoji=False).print(what)


def complain(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"cached-session: {safe(message)}\n")
    sys.stderr.flush()


def say(line: str) -> None:
    """One line on standard output, at once: whoever follows through a pipe waits for it."""
    with writing():
        print(line, flush=True)


class Unwritable(CachedSessionError):
    """Standard output takes no more: a disk that is full."""


@contextmanager
def writing() -> Iterator[None]:
    """What is written to standard output inside, to the end or told.

    Raises:
        BrokenPipeError: whoever read it has gone, and has what was wanted.
        Unwritable: it cannot be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # Python would try to write the rest once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Unwritable(f"standard output cannot be written: {error.strerror}") from error


def say_json(value: Any, indent: int | None = 2) -> None:
    """One value, for programs; dataclasses as objects."""
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
    """A sign of life on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows under a header, each as wide as it must be; numbers to the right."""
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    numbers = {"items", "pending", "parked", "age"}
    for row in [header, *rows]:
        yield "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )


def cut(text: str) -> str:
    """A line's worth of a text."""
    text = safe(" ".join(text.split()))
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def age(seconds: float | None) -> str:
    """How long, to a person."""
    return "-" if seconds is None else lasting(seconds)


def when(moment: float) -> str:
    """A moment by this machine's own time."""
    try:
        found = datetime.fromtimestamp(moment, tz=timezone.utc)
        return found.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        # A clock of somebody else, far off.
        return f"{moment:.0f}"
