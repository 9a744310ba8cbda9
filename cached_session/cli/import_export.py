"""The commands ``export`` and ``import``: write a history to a file; add the items of a source."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import typer

from cached_session import (
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
    KeyPrefix,
    Url,
    open_existing,
    open_offline,
    open_online,
    run,
    settings_of,
)
from cached_session.cli.config import Settings
from cached_session.cli.detect_format import detect_format
from cached_session.cli.escape import safe_id
from cached_session.cli.exit_codes import FAILED
from cached_session.cli.sessions import label
from cached_session.errors import InvalidArgument
from cached_session.humanize import count

SHOWN_SESSIONS = 5
"""Maximum number of sessions of a database that an error names."""
IMPORTERS = {
    "jsonl": import_jsonl,
    "dakera": import_dakera_export,
    "server": import_dakera_session,
}
"""Import functions of the formats whose sources contain one session, by format."""


def export(
    context: typer.Context,
    session: Annotated[str, typer.Argument(help="Session id.")],
    file: Annotated[str, typer.Argument(help="File to write; - is standard output.")],
    journal: Journal = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Write a session to a file, one JSON value per line. An import restores the same bytes."""
    run(_export(session, file, settings_of(context, journal, key_prefix=key_prefix)))


class Kind(str, Enum):
    """Formats of a source."""

    auto = "auto"
    jsonl = "jsonl"
    sqlite = "sqlite"
    dakera = "dakera"
    server = "server"


From = Annotated[
    Kind,
    typer.Option(
        "--from",
        help="Format of the source. jsonl: one item per line. sqlite: a database of the Agents "
        "SDK. dakera: an export of a server. server: a session that is stored on the server "
        "without cached_session.",
    ),
]


def import_(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="File to read; with --from server, the namespace on the server.")
    ],
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            "-s",
            help="Add the items to this session. Default for a database: all of its sessions.",
        ),
    ] = None,
    kind: From = Kind.auto,
    source_session: Annotated[
        str | None,
        typer.Option(
            "--source-session", help="Read this session of a database, if its id differs."
        ),
    ] = None,
    branch: Annotated[
        str, typer.Option("--branch", help="Read this branch of an AdvancedSQLiteSession.")
    ] = "main",
    table: Annotated[
        str, typer.Option("--table", help="Read messages from this table of a database.")
    ] = "agent_messages",
    as_json: Json = False,
    journal: Journal = None,
    url: Url = None,
    api_key: ApiKey = None,
    key_prefix: KeyPrefix = None,
) -> None:
    """Add a history from another source. A repeat adds only new items."""
    settings = settings_of(context, journal, url, api_key, key_prefix)
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
    async with open_existing(settings) as sessions:
        (chosen,) = sessions.choose([session_id])
        session = chosen.open()
        if target == "-":
            with output.writing():
                await export_jsonl(session, sys.stdout.buffer)
                sys.stdout.buffer.flush()
        else:
            written = await export_jsonl(session, target)
            output.say(f"{safe_id(chosen.label)}: {count(written, 'item')} written to {target}")


def _require_session(path: str, session: str, table: str) -> None:
    """Check that the database has this session; otherwise the import would add nothing.

    Raises:
        InvalidArgument: the database has no such session.
    """
    names = sqlite_sessions(path, table)
    if session not in names:
        some = ", ".join(repr(name) for name in names[:SHOWN_SESSIONS]) + (
            " ..." if names[SHOWN_SESSIONS:] else ""
        )
        raise InvalidArgument(
            f"{path} has no items of a session {session!r}; its sessions: {some or 'none'}. Pass "
            "the one to import as --source-session"
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
    """Import from a file or the server, and return whether every line could be read."""
    if kind == "auto":
        kind = detect_format(source)
    if session_id is None and kind != "sqlite":
        raise InvalidArgument("no session is given; pass --session ID")
    is_remote = kind == "server"
    opened = open_online(settings, new=True) if is_remote else open_offline(settings)
    async with opened as sessions:
        with progress.import_bars() as bars:
            if session_id is None:
                reports = await import_sqlite(
                    sessions.cache, source, branch=branch, messages_table=table, on_progress=bars
                )
            elif kind == "sqlite":
                _require_session(source, source_session or session_id, table)
                session = sessions.session(session_id).open()
                report = await import_sqlite_session(
                    session,
                    source,
                    source_session,
                    branch=branch,
                    messages_table=table,
                    on_progress=bars,
                )
                reports = [report]
            else:
                session = sessions.session(session_id).open()
                reports = [await IMPORTERS[kind](session, source, on_progress=bars)]
    if as_json:
        prefix = {"key_prefix": settings.key_prefix or ""}
        output.say_json([{**vars(report), **prefix} for report in reports])
    else:
        for report in reports:
            render_reports.print_import(report, label(report.session_id, settings.key_prefix or ""))
    return not any(report.unreadable for report in reports)
