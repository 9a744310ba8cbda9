"""What can be typed: commands, options and the environment variables that stand for them."""

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
    Sessions,
    Url,
    run,
    settings_of,
)
from cached_session.cli.exit_codes import EXIT_CODES, FAILED

app = typer.Typer(
    name="cached-session",
    help="Conversation sessions that work offline, and meet again on a Dakera memory server.",
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
    run(commands.status(settings_of(context, journal), as_json=as_json, watch=watch))


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
    settings = settings_of(context, journal, url, api_key)
    run(commands.show(session, settings, limit=limit, raw=raw, unfold=unfold, follow=follow))


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
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[
        float, typer.Option("--timeout", "-t", min=0, help="Seconds before it gives up waiting.")
    ] = 60.0,
) -> None:
    """Send what waits, fetch what others wrote, and say what is left."""
    settings = settings_of(context, journal, url, api_key)
    run(commands.sync(session or [], settings, timeout=timeout, as_json=as_json))


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
    settings = settings_of(context, journal, url, api_key)
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
        float, typer.Option("--timeout", "-t", min=0.1, help="Seconds for each answer.")
    ] = 5.0,
) -> None:
    """What is right and wrong with the journal, the disk, the server, the key; and what to do.

    Nothing is changed and nothing is synced. Exit code 1 if something has failed; a warning is
    none.
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
) -> None:
    """Compare the server with the journal, and put back what either has lost."""
    settings = settings_of(context, journal, url, api_key)
    run(commands.audit(session or [], settings, as_json=as_json))


@app.command()
def compact(context: typer.Context, as_json: Json = False, journal: Journal = None) -> None:
    """Let go of bookkeeping that nothing needs any more, and give its space back.

    Nothing that a session shows is changed. The journal may be in use.
    """
    run(commands.compact(settings_of(context, journal), as_json=as_json))


app.add_typer(parked.app, name="parked")
app.command("export")(import_export.export)
app.command("import")(import_export.import_)
app.command("devserver")(devserver.devserver)
