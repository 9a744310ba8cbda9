"""What can be typed: commands, options and the environment variables that stand for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated, Any

import typer

from cached_session.cli import commands
from cached_session.cli.main import CALLED_WRONGLY, FAILED, NOT_SYNCED, explain_missing
from cached_session.errors import CachedSessionError, SyncError

app = typer.Typer(
    name="cached-session",
    help="Conversation sessions that work offline, and meet again on a Dakera memory server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
        "--api-key", envvar="DAKERA_API_KEY", show_envvar=True, help="Its key, if it wants one."
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cached-session {installed_version('cached-session')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def status(
    journal: Journal = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What the journal holds: sessions, items, and what still waits for the server.

    It reads the journal and nothing else; no server is asked.
    """
    _run(commands.status(journal, as_json=as_json))


@app.command()
def show(
    session: Annotated[str, typer.Argument(help="The session's id.")],
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", help="Only the latest N items.")
    ] = None,
    journal: Journal = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The items themselves, one JSON value a line.")
    ] = False,
) -> None:
    """The history of one session, as this device knows it."""
    _run(commands.show(session, journal, limit=limit, raw=raw))


@app.command()
def sync(
    session: Annotated[
        list[str] | None,
        typer.Option("--session", "-s", help="Wait for this session only; may be repeated."),
    ] = None,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0, help="Seconds before it gives up waiting.")
    ] = 60.0,
) -> None:
    """Send what waits, fetch what others wrote, and say what is left."""
    if not url:
        typer.echo("Say which server: --url http://... or DAKERA_URL in the environment.", err=True)
        raise typer.Exit(CALLED_WRONGLY)
    _run(commands.sync(session or [], journal, url=url, api_key=api_key, timeout=timeout))


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
) -> None:
    """Serve the part of Dakera's API that a session needs: for development, not for production."""
    try:
        commands.devserver(host, port, data=data, api_key=api_key, latency=latency / 1000)
    except ModuleNotFoundError as error:
        explain_missing(error)
    except OSError as error:
        typer.echo(f"cached-session: cannot serve on {host}:{port}: {error}", err=True)
        raise typer.Exit(FAILED) from error


def _run(command: Coroutine[Any, Any, None]) -> None:
    """Run a command; what the library raises on purpose becomes a line and an exit code."""
    # The library logs each pause between tries; here, the last reason is told at the end.
    logging.getLogger("cached_session").addHandler(logging.NullHandler())
    try:
        asyncio.run(command)
    except CachedSessionError as error:
        typer.echo(f"cached-session: {error}", err=True)
        raise typer.Exit(NOT_SYNCED if isinstance(error, SyncError) else FAILED) from error
