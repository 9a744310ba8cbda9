"""What can be typed: commands, options and the environment variables that stand for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from enum import Enum
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cached_session.cli import commands, config, render
from cached_session.cli.main import (
    CALLED_WRONGLY,
    EXIT_CODES,
    FAILED,
    NOT_SYNCED,
    explain_missing,
)
from cached_session.errors import CachedSessionError, InvalidArgument, SyncError

T = TypeVar("T")

CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="cached-session",
    help="Conversation sessions that work offline, and meet again on a Dakera memory server.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)
parked_app = typer.Typer(
    help="Operations that the server refuses for good: look at them, retry them, drop them.",
    no_args_is_help=True,
    context_settings=CONTEXT,
)
app.add_typer(parked_app, name="parked")

Journal = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        "-j",
        envvar="CACHED_SESSION_JOURNAL",
        help="The journal file. Default: the one in the user's data directory.",
    ),
]
Url = Annotated[str | None, typer.Option("--url", envvar="DAKERA_URL", help="The Dakera server.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="DAKERA_API_KEY",
        help="Its key, if it wants one. Better kept in the environment or the file: "
        "other users see what is typed.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
Sessions = Annotated[
    list[str] | None,
    typer.Option("--session", "-s", help="Only this session; may be repeated."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cached-session {installed_version('cached-session')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    configuration: Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar="CACHED_SESSION_CONFIG",
            help="A TOML file with url, api_key and journal. "
            "Default: config.toml in the user's configuration directory.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    # `version` has done its work before this is called.
    context.obj = configuration


@app.command()
def status(
    context: typer.Context,
    journal: Journal = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, and show every change.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What the journal holds: sessions, items, and what still waits for the server.

    It reads the journal and nothing else; no server is asked.
    """
    _run(commands.status(_settings(context, journal), as_json=as_json, watch=watch))


@app.command()
def show(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="The session's id.")],
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=0, help="Only the latest N items.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Stay, and show what is said next; syncs if a server is named."
        ),
    ] = False,
    unfold: Annotated[
        bool, typer.Option("--unfold", help="Tool calls with all they were given and gave.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="The items themselves, one JSON value a line.")
    ] = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """The history of one session, as this device knows it."""
    settings = _settings(context, journal, url, api_key)
    _run(commands.show(session, settings, limit=limit, raw=raw, unfold=unfold, follow=follow))


@app.command()
def sync(
    context: typer.Context,
    session: Annotated[
        list[str] | None,
        typer.Option(
            "--session",
            "-s",
            help="Only this session; may be repeated. One that this journal has never met is "
            "fetched whole.",
        ),
    ] = None,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0, help="Seconds before it gives up waiting.")
    ] = 60.0,
) -> None:
    """Send what waits, fetch what others wrote, and say what is left."""
    settings = _settings(context, journal, url, api_key)
    _run(commands.sync(session or [], settings, timeout=timeout))


@app.command()
def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Words that an item must hold, all of them.")],
    session: Sessions = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="At most N items of each session.")
    ] = 20,
    recall: Annotated[
        bool, typer.Option("--recall", help="Ask the server for what is near in meaning.")
    ] = False,
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Items that hold all the words, in this journal; no server is asked without --recall."""
    settings = _settings(context, journal, url, api_key)
    _run(
        commands.search(query, session or [], settings, limit=limit, recall=recall, as_json=as_json)
    )


@app.command()
def doctor(
    context: typer.Context,
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0.1, help="Seconds for each answer.")
    ] = 5.0,
) -> None:
    """What is right and wrong with the journal, the disk, the server, the key; and what to do.

    Nothing is changed and nothing is synced. Exit code 1 if something has failed; a warning is
    none.
    """
    settings = _settings(context, journal, url, api_key)
    if not _run(commands.doctor(settings, as_json=as_json, timeout=timeout)):
        raise typer.Exit(FAILED)


@app.command()
def audit(
    context: typer.Context,
    session: Sessions = None,
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Compare the server with the journal, and put back what either has lost."""
    settings = _settings(context, journal, url, api_key)
    _run(commands.audit(session or [], settings, as_json=as_json))


@parked_app.command("list")
def parked_list(
    context: typer.Context,
    session: Sessions = None,
    as_json: Json = False,
    journal: Journal = None,
) -> None:
    """Every refused operation: its name, its session, and why."""
    _run(commands.parked(_settings(context, journal), session or [], as_json=as_json))


Operation = Annotated[str, typer.Argument(help="As parked list names it; its beginning is enough.")]
Operations = Annotated[
    list[str] | None,
    typer.Argument(help="As parked list names them; the beginning is enough."),
]


@parked_app.command("show")
def parked_show(context: typer.Context, operation: Operation, journal: Journal = None) -> None:
    """The items of one refused operation, one JSON value a line."""
    _run(commands.parked_show(_settings(context, journal), operation))


@parked_app.command("retry")
def parked_retry(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    journal: Journal = None,
) -> None:
    """Put refused operations back in the queue; the next sync sends them."""
    _parked_move(context, operation, journal, every=every, drop=False)


@parked_app.command("drop")
def parked_drop(
    context: typer.Context,
    operation: Operations = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    journal: Journal = None,
) -> None:
    """Give refused operations up for good: their items leave this history too."""
    if not yes and (operation or every):
        typer.confirm("Their items are lost. Drop them?", abort=True, err=True)
    _parked_move(context, operation, journal, every=every, drop=True)


def _parked_move(
    context: typer.Context,
    operations: list[str] | None,
    journal: Path | None,
    *,
    every: bool,
    drop: bool,
) -> None:
    if bool(operations) == every:
        render.complain("name the operations, or say --all")
        raise typer.Exit(CALLED_WRONGLY)
    _run(commands.parked_move(_settings(context, journal), operations or [], drop=drop))


@app.command()
def export(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="The session's id.")],
    file: Annotated[str, typer.Argument(help="Where to; - is standard output.")],
    journal: Journal = None,
) -> None:
    """Write a session to a file, one JSON value a line; import gives the same bytes back."""
    _run(commands.export(session, file, _settings(context, journal)))


class Kind(str, Enum):
    """What a source is."""

    auto = "auto"
    jsonl = "jsonl"
    sqlite = "sqlite"
    dakera = "dakera"
    server = "server"


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="The file; with --from server the namespace to read.")
    ],
    session: Annotated[
        str | None,
        typer.Option("--session", "-s", help="Into which session. A database: default is all."),
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            "--from",
            help="jsonl: one item a line. sqlite: a database of the Agents SDK. dakera: a "
            "server's own export. server: a session that wrote straight to the server.",
        ),
    ] = Kind.auto,
    source_session: Annotated[
        str | None,
        typer.Option("--source-session", help="Which session of a database, if not the same."),
    ] = None,
    branch: Annotated[
        str, typer.Option("--branch", help="Of an AdvancedSQLiteSession, which branch.")
    ] = "main",
    table: Annotated[
        str, typer.Option("--table", help="A database's table of messages.")
    ] = "agent_messages",
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Bring in a history from elsewhere. Run again, it adds only what is not here yet."""
    settings = _settings(context, journal, url, api_key)
    whole = _run(
        commands.import_(
            source,
            session,
            settings,
            kind=kind.value,
            source_session=source_session,
            branch=branch,
            table=table,
        )
    )
    if not whole:
        raise typer.Exit(FAILED)


@app.command()
def compact(context: typer.Context, as_json: Json = False, journal: Journal = None) -> None:
    """Let go of bookkeeping that nothing needs any more, and give its space back.

    Nothing that a session shows is changed. The journal may be in use.
    """
    _run(commands.compact(_settings(context, journal), as_json=as_json))


@app.command()
def devserver(
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Where it listens; 0 picks one.")
    ] = 3000,
    host: Annotated[str, typer.Option("--host", help="On which address.")] = "127.0.0.1",
    data: Annotated[
        Path | None, typer.Option("--data", help="Keep the memories in this file, not in memory.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="Ask every caller for this key.")
    ] = None,
    latency: Annotated[
        float, typer.Option("--latency", min=0, help="Milliseconds added to each request.")
    ] = 0.0,
    fault: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            help="Something that goes wrong: a kind and its settings, such as "
            "drop,after_commit=true,probability=0.2 or status,status=503,every=3. May be repeated.",
        ),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="A line for each request, on standard error.")
    ] = False,
) -> None:
    """Serve the part of Dakera's API that a session needs: for development, not for production."""
    try:
        commands.devserver(
            host,
            port,
            data=data,
            api_key=api_key,
            latency=latency / 1000,
            faults=[_fault(text) for text in fault or []],
            log=log,
        )
    except ModuleNotFoundError as error:
        explain_missing(error)
    except ValueError as error:
        render.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    except OSError as error:
        typer.echo(f"cached-session: cannot serve on {host}:{port}: {error}", err=True)
        raise typer.Exit(FAILED) from error


def _fault(text: str) -> dict[str, Any]:
    """`kind,name=value,...` as plain values; which there are is the fault plan's business."""
    kind, *settings = text.split(",")
    found: dict[str, Any] = {"kind": kind.strip()}
    for setting in settings:
        name, _, value = setting.partition("=")
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _settings(
    context: typer.Context,
    journal: Path | None,
    url: str | None = None,
    api_key: str | None = None,
) -> config.Settings:
    try:
        found, warning = config.load(context.obj)
    except CachedSessionError as error:
        render.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    if warning:
        render.complain(warning)
    return found.over(journal, url, api_key)


def _run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what the library raises on purpose becomes a line and an exit code."""
    # The library logs each pause between tries; here, the last reason is told at the end.
    logging.getLogger("cached_session").addHandler(logging.NullHandler())
    try:
        return asyncio.run(command)
    except InvalidArgument as error:
        render.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    except CachedSessionError as error:
        render.complain(str(error))
        raise typer.Exit(NOT_SYNCED if isinstance(error, SyncError) else FAILED) from error
