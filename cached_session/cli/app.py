"""The commands of the command line, with their options and environment variables."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from cached_session.cli import commands, devserver, import_export, parked
from cached_session.cli.common import (
    CONTEXT,
    ApiKey,
    Journal,
    Json,
    KeyPrefix,
    Move,
    Sessions,
    Url,
    run,
    settings_of,
)
from cached_session.cli.exit_codes import EXIT_CODES, FAILED

app = typer.Typer(
    name="cached-session",
    help="Inspect, sync, import and export conversation sessions that work offline.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


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
            help="Read url, api_key, journal and key_prefix from this TOML file. "
            "Default: config.toml in the user's configuration directory.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    # `_print_version` has run before this is called.
    context.obj = configuration


@app.command()
def status(
    context: typer.Context,
    journal: Journal = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep running and print changes.")
    ] = False,
    as_json: Json = False,
    key_prefix: KeyPrefix = None,
) -> None:
    """Print the sessions of the journal, their items, and their unsent operations.

    Reads only the journal; no request is sent.
    """
    run(
        commands.status(
            settings_of(context, journal, key_prefix=key_prefix), as_json=as_json, watch=watch
        )
    )


@app.command()
def show(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="Session id.")],
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=0, help="Print only the latest N items.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Keep running and print new items; sync if a server is given."
        ),
    ] = False,
    unfold: Annotated[
        bool,
        typer.Option("--unfold", help="Print tool calls with their full arguments and outputs."),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print the stored items, one JSON value per line.")
    ] = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Print the history of one session from this journal."""
    settings = settings_of(context, journal, url, api_key, key_prefix)
    run(commands.show(session, settings, limit=limit, raw=raw, unfold=unfold, follow=follow))


@app.command()
def sync(
    context: typer.Context,
    session: Annotated[
        list[str] | None,
        typer.Option(
            "--session",
            "-s",
            help="Sync only this session; may be repeated. A session that is not in the journal "
            "yet is fetched from the server.",
        ),
    ] = None,
    as_json: Json = False,
    move: Move = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0, help="Stop waiting after this many seconds.")
    ] = 60.0,
    key_prefix: KeyPrefix = None,
) -> None:
    """Send unsent operations, fetch those of other devices, and print the result."""
    settings = settings_of(context, journal, url, api_key, key_prefix)
    run(commands.sync(session or [], settings, timeout=timeout, as_json=as_json, move=move))


@app.command()
def search(
    context: typer.Context,
    query: Annotated[str, typer.Argument(help="Words that an item must contain, all of them.")],
    session: Sessions = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="Print at most N items of each session.")
    ] = 20,
    recall: Annotated[
        bool, typer.Option("--recall", help="Let the server search by meaning.")
    ] = False,
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Print the items that contain all the words.

    Searches the journal; sends no request without --recall.
    """
    settings = settings_of(context, journal, url, api_key, key_prefix)
    run(
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
        float,
        typer.Option("--timeout", "-t", min=0.1, help="Wait this many seconds for each answer."),
    ] = 5.0,
) -> None:
    """Check the journal, the disk, the server and the API key, and print advice.

    Changes nothing and syncs nothing. Exits with 1 if a check fails, not for a warning.
    """
    settings = settings_of(context, journal, url, api_key)
    if not run(commands.doctor(settings, as_json=as_json, timeout=timeout)):
        raise typer.Exit(FAILED)


@app.command()
def audit(
    context: typer.Context,
    session: Sessions = None,
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Compare the server with the journal, and restore what either has lost."""
    settings = settings_of(context, journal, url, api_key, key_prefix)
    run(commands.audit(session or [], settings, as_json=as_json))


@app.command()
def compact(context: typer.Context, as_json: Json = False, journal: Journal = None) -> None:
    """Delete bookkeeping that is no longer needed, and free its disk space.

    Changes no history. The journal may be in use. A damaged journal is set aside and recovered.
    """
    run(commands.compact(settings_of(context, journal), as_json=as_json))


app.add_typer(parked.app, name="parked")
app.command("export")(import_export.export)
app.command("import")(import_export.import_)
app.command("devserver")(devserver.devserver)
