"""``parked``: operations that the server refuses for good, looked at, retried, dropped."""

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
    existing,
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

SHORT = 8
COLUMNS = ("operation", "session", "kind", "items", "written", "why")

app = typer.Typer(
    help="Operations that the server refuses for good: look at them, retry them, drop them.",
    no_args_is_help=True,
    context_settings=CONTEXT,
)

Operation = Annotated[str, typer.Argument(help="As parked list names it; its beginning is enough.")]
Operations = Annotated[
    list[str] | None,
    typer.Argument(help="As parked list names them; the beginning is enough."),
]


@app.command("list")
def list_(
    context: typer.Context,
    session: Sessions = None,
    as_json: Json = False,
    journal: Journal = None,
) -> None:
    """Every refused operation: its name, its session, and why."""
    run(_list(settings_of(context, journal), session or [], as_json=as_json))


@app.command("show")
def show(context: typer.Context, operation: Operation, journal: Journal = None) -> None:
    """The items of one refused operation, one JSON value a line."""
    run(_show(settings_of(context, journal), operation))


@app.command("retry")
def retry(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    journal: Journal = None,
) -> None:
    """Put refused operations back in the queue; the next sync sends them."""
    _move(context, operation, journal, every=every, drop=False)


@app.command("drop")
def drop(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    journal: Journal = None,
) -> None:
    """Give refused operations up for good: their items leave this history too."""
    _move(context, operation, journal, every=every, drop=True, sure=yes)


def _move(
    context: typer.Context,
    operations: list[str] | None,
    journal: Path | None,
    *,
    every: bool,
    drop: bool,
    sure: bool = True,
) -> None:
    if bool(operations) == every:
        output.complain("name the operations, or say --all")
        raise typer.Exit(CALLED_WRONGLY)
    run(_moved(settings_of(context, journal), operations or [], drop=drop, sure=sure))


async def _list(settings: Settings, session_ids: list[str], *, as_json: bool) -> None:
    """List what the server refuses."""
    async with existing(settings) as cache:
        found = await _parked(cache, session_ids)
    if as_json:
        output.say_json([{"operation": _name(one), **vars(one)} for one in found])
    else:
        _print(found)


async def _show(settings: Settings, operation: str) -> None:
    """Print one refused operation: why, and its items."""
    async with existing(settings) as cache:
        (one,) = _named(await _parked(cache, []), [operation])
    output.complain(f"{one.kind} of {safe_id(one.session_id)}: {one.error}")
    render_history.print_items(one.items)


async def _moved(settings: Settings, operations: list[str], *, drop: bool, sure: bool) -> None:
    """Retry or give up the operations named; all of them if none is. Asks first, unless sure."""
    async with existing(settings) as cache:
        found = await _parked(cache, [])
        chosen = _named(found, operations) if operations else found
        if chosen and not sure:
            items = count(sum(len(one.items) for one in chosen), "item")
            what = f"{count(len(chosen), 'operation')} with {items}"
            typer.confirm(f"{what}: they leave this history. Drop them?", abort=True, err=True)
        moved = 0
        for one in chosen:
            session = cache.session(one.session_id)
            if drop:
                moved += await session.drop_parked(one.dot)
            else:
                moved += await session.retry_parked([one.dot])
    output.say(
        f"{moved} dropped" if drop else f"{moved} put back in the queue: the next sync sends"
    )


async def _parked(cache: SessionCache, session_ids: list[str]) -> list[Parked]:
    names = [name for name, one in cache.status().sessions.items() if one.parked]
    found: list[Parked] = []
    for name in names:
        if not session_ids or name in session_ids:
            found += await cache.session(name).parked()
    return found


def _named(found: Sequence[Parked], operations: Sequence[str]) -> list[Parked]:
    """Those whose name begins like one that was typed; each must mean exactly one.

    Raises:
        InvalidArgument: one means none, or several.
    """
    chosen = []
    for typed in operations:
        exact = [one for one in found if _name(one) == typed]
        near = exact or [one for one in found if _name(one).startswith(typed)]
        if len(near) != 1:
            meant = f"{len(near)} parked operations" if near else "no parked operation"
            raise InvalidArgument(f"{typed!r} names {meant}; see cached-session parked list")
        chosen += near
    return chosen


def _name(parked: Parked) -> str:
    """How a parked operation is named on the command line."""
    return f"{parked.dot.writer}:{parked.dot.counter}"


def _print(found: Sequence[Parked]) -> None:
    """One line an operation: its name, its session, why."""
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
        output.say("nothing is parked")
        return
    if output.is_terminal():
        output.show(_screen(rows))
        return
    for line in output.table(COLUMNS, rows):
        output.say(line.rstrip())


def _screen(rows: Sequence[tuple[str, ...]]) -> RenderableType:
    """The beginning of a name is shown where it is enough, so that the reason has room."""
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
    short = {name[:SHORT] for name, *_ in rows}
    for name, *row in rows:
        table.add_row(*map(Text, [name[:SHORT] if len(short) == len(rows) else name, *row]))
    return table
