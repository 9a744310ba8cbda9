"""The commands ``parked``: list, show, retry and drop operations that the server refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cached_session import Parked
from cached_session.cli import output, render_history
from cached_session.cli.common import (
    CONTEXT,
    Journal,
    Json,
    KeyPrefix,
    Sessions,
    open_existing,
    run,
    settings_of,
)
from cached_session.cli.config import Settings
from cached_session.cli.escape import safe_id
from cached_session.cli.exit_codes import CALLED_WRONGLY
from cached_session.cli.sessions import ChosenSession, JournalSessions
from cached_session.errors import InvalidArgument
from cached_session.humanize import count

if TYPE_CHECKING:
    from rich.console import RenderableType

SHORT_NAME = 8
"""Length of the short names of operations on a terminal, used if they are unambiguous."""
COLUMNS = ("operation", "session", "kind", "items", "written", "why")

app = typer.Typer(
    help="List, show, retry and drop operations that the server refuses for good.",
    no_args_is_help=True,
    context_settings=CONTEXT,
)

Operation = Annotated[str, typer.Argument(help="Name from parked list; its beginning is enough.")]
Operations = Annotated[
    list[str] | None,
    typer.Argument(help="Names from parked list; the beginning of each is enough."),
]


@app.command("list")
def list_(
    context: typer.Context,
    session: Sessions = None,
    as_json: Json = False,
    journal: Journal = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """List the parked operations, each with its name, its session and the reason."""
    settings = settings_of(context, journal, key_prefix=key_prefix)
    run(_list(settings, session or [], as_json=as_json))


@app.command("show")
def show(
    context: typer.Context,
    operation: Operation,
    journal: Journal = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Print the items of one parked operation, one JSON value per line."""
    run(_show(settings_of(context, journal, key_prefix=key_prefix), operation))


@app.command("retry")
def retry(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All parked operations.")] = False,
    journal: Journal = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Queue parked operations again; the next sync sends them."""
    settings = settings_of(context, journal, key_prefix=key_prefix)
    _run_retry_or_drop(settings, operation, every=every, drop=False)


@app.command("drop")
def drop(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All parked operations.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    journal: Journal = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Delete parked operations for good, with their items in this history."""
    settings = settings_of(context, journal, key_prefix=key_prefix)
    _run_retry_or_drop(settings, operation, every=every, drop=True, sure=yes)


def _run_retry_or_drop(
    settings: Settings,
    operations: list[str] | None,
    *,
    every: bool,
    drop: bool,
    sure: bool = True,
) -> None:
    if bool(operations) == every:
        output.complain("pass either names of operations or --all")
        raise typer.Exit(CALLED_WRONGLY)
    run(_retry_or_drop(settings, operations or [], drop=drop, sure=sure))


async def _list(settings: Settings, session_ids: list[str], *, as_json: bool) -> None:
    """Print the parked operations."""
    async with open_existing(settings) as sessions:
        found = await _parked(sessions, session_ids)
    if as_json:
        output.say_json([one.fields for one in found])
    else:
        _print(found)


async def _show(settings: Settings, operation: str) -> None:
    """Print one parked operation: the reason on standard error, and its items."""
    async with open_existing(settings) as sessions:
        (one,) = _find_by_name(await _parked(sessions, []), [operation])
    parked = one.parked
    output.complain(f"{parked.kind} of {safe_id(one.session.label)}: {parked.error}")
    render_history.print_items(parked.items)


async def _retry_or_drop(
    settings: Settings, operations: list[str], *, drop: bool, sure: bool
) -> None:
    """Retry or drop the named operations, or all parked operations if ``operations`` is empty.

    Ask for confirmation unless ``sure`` is true.
    """
    async with open_existing(settings) as sessions:
        found = await _parked(sessions, [])
        chosen = _find_by_name(found, operations) if operations else found
        if chosen and not sure:
            items = count(sum(len(one.parked.items) for one in chosen), "item")
            what = f"{count(len(chosen), 'operation')} with {items}"
            typer.confirm(
                f"{what} will be deleted from this history too. Drop them?", abort=True, err=True
            )
        moved = 0
        for one in chosen:
            session = one.session.open()
            if drop:
                moved += await session.drop_parked(one.parked.dot)
            else:
                moved += await session.retry_parked([one.parked.dot])
    output.say(
        f"{count(moved, 'operation')} dropped"
        if drop
        else f"{count(moved, 'operation')} queued again; the next sync sends"
    )


@dataclass(frozen=True)
class _Found:
    """A parked operation and its session."""

    session: ChosenSession
    parked: Parked

    @property
    def name(self) -> str:
        """Name of the operation on the command line."""
        return f"{self.parked.dot.writer}:{self.parked.dot.counter}"

    @property
    def fields(self) -> dict[str, Any]:
        """The operation as JSON output contains it."""
        return {"operation": self.name, **vars(self.parked), **self.session.fields}


async def _parked(sessions: JournalSessions, session_ids: list[str]) -> list[_Found]:
    """Return the parked operations of these sessions; of all if ``session_ids`` is empty."""
    chosen = [sessions.session(session_id) for session_id in session_ids] or sessions.all(
        lambda status: status.parked > 0
    )
    return [_Found(one, parked) for one in chosen for parked in await one.open().parked()]


def _find_by_name(found: Sequence[_Found], operations: Sequence[str]) -> list[_Found]:
    """Return the operation of each typed name; the beginning of a name is enough.

    Raises:
        InvalidArgument: a typed name matches no operation, or several operations.
    """
    chosen = []
    for typed in operations:
        exact = [one for one in found if one.name == typed]
        near = exact or [one for one in found if one.name.startswith(typed)]
        if len(near) != 1:
            matched = f"{len(near)} parked operations" if near else "no parked operation"
            raise InvalidArgument(f"{typed!r} matches {matched}; see cached-session parked list")
        chosen += near
    return chosen


def _print(found: Sequence[_Found]) -> None:
    """Print one line per operation: its name, its session and the reason."""
    rows = [
        (
            one.name,
            safe_id(one.session.label),
            one.parked.kind,
            str(len(one.parked.items)),
            output.when(one.parked.said_at),
            output.cut(one.parked.error),
        )
        for one in found
    ]
    if not rows:
        output.say("no operation is parked")
        return
    if output.is_terminal():
        output.show(_screen(rows))
        return
    for line in output.table(COLUMNS, rows):
        output.say(line.rstrip())


def _screen(rows: Sequence[tuple[str, ...]]) -> RenderableType:
    """Draw the table; shorten names if that is unambiguous, to leave space for the reason."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(
            name,
            justify="right" if name == "items" else "left",
            no_wrap=name in ("operation", "items"),
            overflow="fold",
        )
    short = {name[:SHORT_NAME] for name, *_ in rows}
    for name, *row in rows:
        table.add_row(*map(Text, [name[:SHORT_NAME] if len(short) == len(rows) else name, *row]))
    return table
