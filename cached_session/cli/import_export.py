"""``export`` and ``import``: histories that leave a journal, and those that move in."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import typer

from cached_session import (
    SessionCache,
    export_jsonl,
    import_dakera_export,
    import_dakera_session,
    import_jsonl,
    import_sqlite,
    import_sqlite_session,
    sqlite_sessions,
)
from cached_session.cli import output, progress, render_reports
from cached_session.cli.common import (
    ApiKey,
    Journal,
    Json,
    Url,
    chosen,
    existing,
    online,
    run,
    settings_of,
)
from cached_session.cli.config import Settings
from cached_session.cli.detect_format import kind_of
from cached_session.cli.escape import safe_id
from cached_session.cli.exit_codes import FAILED
from cached_session.errors import InvalidArgument
from cached_session.humanize import count

SOME = 5
"""Sessions of a database that a complaint names."""


def export(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="The session's id.")],
    file: Annotated[str, typer.Argument(help="Where to; - is standard output.")],
    journal: Journal = None,
) -> None:
    """Write a session to a file, one JSON value a line; import gives the same bytes back."""
    run(_export(session, file, settings_of(context, journal)))


class Kind(str, Enum):
    """What a source is."""

    auto = "auto"
    jsonl = "jsonl"
    sqlite = "sqlite"
    dakera = "dakera"
    server = "server"


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
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Bring in a history from elsewhere. Run again, it adds only what is not here yet."""
    settings = settings_of(context, journal, url, api_key)
    whole = run(
        _import(
            source,
            session,
            settings,
            kind=kind.value,
            source_session=source_session,
            branch=branch,
            table=table,
            as_json=as_json,
        )
    )
    if not whole:
        raise typer.Exit(FAILED)


async def _export(session_id: str, target: str, settings: Settings) -> None:
    """Write a session to a file, or to standard output."""
    async with existing(settings) as cache:
        await chosen(cache, [session_id])
        session = cache.session(session_id, hydrate=False)
        if target == "-":
            with output.writing():
                await export_jsonl(session, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        else:
            written = await export_jsonl(session, target)
            output.say(f"{safe_id(session_id)}: {count(written, 'item')} written to {target}")


def _check_source(path: str, session: str, table: str) -> None:
    """A session that is imported under another id is to be named: nothing would come of it.

    Raises:
        InvalidArgument: the database has no such session.
    """
    there = sqlite_sessions(path, table)
    if session not in there:
        some = ", ".join(repr(name) for name in there[:SOME]) + (" ..." if there[SOME:] else "")
        raise InvalidArgument(
            f"{path} has no items of a session {session!r}; it has {some or 'none at all'}: name "
            "the one to import with --source-session"
        )


async def _import(
    source: str,
    session_id: str | None,
    settings: Settings,
    *,
    kind: str,
    source_session: str | None,
    branch: str,
    table: str,
    as_json: bool,
) -> bool:
    """Bring a file or a direct session in; whether all of it could be read."""
    if kind == "auto":
        kind = kind_of(source)
    if session_id is None and kind != "sqlite":
        raise InvalidArgument("say which session it goes into: --session ID")
    direct = kind == "server"
    async with online(settings, new=True) if direct else SessionCache(settings.journal) as cache:
        with progress.import_bars() as drawn:
            if session_id is None:
                reports = await import_sqlite(
                    cache, source, branch=branch, messages_table=table, on_progress=drawn
                )
            else:
                session = cache.session(session_id, hydrate=False)
                if kind == "sqlite":
                    _check_source(source, source_session or session_id, table)
                    report = await import_sqlite_session(
                        session,
                        source,
                        source_session,
                        branch=branch,
                        messages_table=table,
                        on_progress=drawn,
                    )
                elif direct:
                    report = await import_dakera_session(session, source, on_progress=drawn)
                elif kind == "dakera":
                    report = await import_dakera_export(session, source, on_progress=drawn)
                else:
                    report = await import_jsonl(session, source, on_progress=drawn)
                reports = [report]
    if as_json:
        output.say_json(reports)
    else:
        for report in reports:
            render_reports.print_import(report)
    return not any(report.unreadable for report in reports)
