"""The commands ``parked``: list, show, retry and drop operations that the server refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cached_session import Parked, SessionCache
from cached_session.cli import output, render_history
from cached_session.cli.common import (
    CONTEXT,
    Journal,
    Json,
    Sessions,
    open_existing,
    run,
    settings_of,
)
from cached_session.cli.config import Settings
from cached_session.cli.escape import safe_id
from cached_session.cli.exit_codes import CALLED_WRONGLY
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
) -> None:
    """List the parked operations, each with its name, its session and the reason."""
    run(_list(settings_of(context, journal), session or [], as_json=as_json))


@app.command("show")
def show(context: typer.Context, operation: Operation, journal: Journal = None) -> None:
    """Print the items of one parked operation, one JSON value per line."""
    run(_show(settings_of(context, journal), operation))


@app.command("retry")
def retry(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All parked operations.")] = False,
    journal: Journal = None,
) -> None:
    """Queue parked operations again; the next sync sends them."""
    _run_retry_or_drop(context, operation, journal, every=every, drop=False)


@app.command("drop")
def drop(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All parked operations.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    journal: Journal = None,
) -> None:
    """Delete parked operations for good, with their items in this history."""
    _run_retry_or_drop(context, operation, journal, every=every, drop=True, sure=yes)


def _run_retry_or_drop(
    context: typer.Context,
    operations: list[str] | None,
    journal: Path | None,
    *,
    every: bool,
    drop: bool,
    sure: bool = True,
) -> None:
    if bool(operations) == every:
        output.complain("pass either names of operations or --all")
        raise typer.Exit(CALLED_WRONGLY)
    run(_retry_or_drop(settings_of(context, journal), operations or [], drop=drop, sure=sure))


async def _list(settings: Settings, session_ids: list[str], *, as_json: bool) -> None:
    """Print the parked operations."""
    async with open_existing(settings) as cache:
        found = await _parked(cache, session_ids)
    if as_json:
        output.say_json([{"operation": _name(one), **vars(one)} for one in found])
    else:
        _print(found)


async def _show(settings: Settings, operation: str) -> None:
    """Print one parked operation: the reason on standard error, and its items."""
    async with open_existing(settings) as cache:
        (one,) = _find_by_name(await _parked(cache, []), [operation])
    output.complain(f"{one.kind} of {safe_id(one.session_id)}: {one.error}")
    render_history.print_items(one.items)


async def _retry_or_drop(
    settings: Settings, operations: list[str], *, drop: bool, sure: bool
) -> None:
    """Retry or drop the named operations, or all parked operations if ``operations`` is empty.

    Ask for confirmation unless ``sure`` is true.
    """
    async with open_existing(settings) as cache:
        found = await _parked(cache, [])
        chosen = _find_by_name(found, operations) if operations else found
        if chosen and not sure:
            items = count(sum(len(one.items) for one in chosen), "item")
            what = f"{count(len(chosen), 'operation')} with {items}"
            typer.confirm(
                f"{what} will be deleted from this history too. Drop them?", abort=True, err=True
            )
        moved = 0
        for one in chosen:
            session = cache.session(one.session_id)
            if drop:
                moved += await session.drop_parked(one.dot)
            else:
                moved += await session.retry_parked([one.dot])
    output.say(
        f"{count(moved, 'operation')} dropped"
        if drop
        else f"{count(moved, 'operation')} queued again; the next sync sends"
    )


async def _parked(cache: SessionCache, session_ids: list[str]) -> list[Parked]:
    names = [name for name, one in cache.status().sessions.items() if one.parked]
    found: list[Parked] = []
    for name in names:
        if not session_ids or name in session_ids:
            found += await cache.session(name).parked()
    return found


def _find_by_name(found: Sequence[Parked], operations: Sequence[str]) -> list[Parked]:
    """Return the operation of each typed name; the beginning of a name is enough.

    Raises:
        InvalidArgument: a typed name matches no operation, or several operations.
    """
    chosen = []
    for typed in operations:
        exact = [one for one in found if _name(one) == typed]
        near = exact or [one for one in found if _name(one).startswith(typed)]
        if len(near) != 1:
            matched = f"{len(near)} parked operations" if near else "no parked operation"
            raise InvalidArgument(f"{typed!r} matches {matched}; see cached-session parked list")
        chosen += near
    return chosen


def _name(parked: Parked) -> str:
    """Return the name of a parked operation on the command line."""
    return f"{parked.dot.writer}:{parked.dot.counter}"


def _print(found: Sequence[Parked]) -> None:
    """Print one line per operation: its name, its session and the reason."""
    rows = [
        (
            _name(one),
            safe_id(one.session_id),
            one.kind,
            str(len(one.items)),
            output.when(one.said_at),
            output.cut(one.error),
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
