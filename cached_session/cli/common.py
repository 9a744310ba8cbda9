"""Shared parts of the commands: common options, settings, opening a cache, and error handling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cached_session import SessionCache
from cached_session.cli import config, output
from cached_session.cli.config import Settings
from cached_session.cli.exit_codes import CALLED_WRONGLY, FAILED, NOT_SYNCED
from cached_session.cli.sessions import JournalSessions
from cached_session.errors import CachedSessionError, InvalidArgument, JournalError, SyncError
from cached_session.paths import journal_path

T = TypeVar("T")

CONTEXT = {"help_option_names": ["-h", "--help"]}

Journal = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        "-j",
        envvar="CACHED_SESSION_JOURNAL",
        help="Use this journal file. Default: the one in the user's data directory.",
    ),
]
Url = Annotated[
    str | None, typer.Option("--url", envvar="DAKERA_URL", help="Address of the Dakera server.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="DAKERA_API_KEY",
        help="API key of the server. Set it in the environment or the configuration file: "
        "other users of this machine can see command lines.",
    ),
]
Move = Annotated[
    bool,
    typer.Option(
        "--move", help="Send a journal that syncs with another server completely to this one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sessions = Annotated[
    list[str] | None,
    typer.Option("--session", "-s", help="Use only this session; may be repeated."),
]


KeyPrefix = Annotated[
    str | None,
    typer.Option(
        "--key-prefix",
        envvar="CACHED_SESSION_KEY_PREFIX",
        help="Use the sessions with this key prefix. Default: all sessions; for a session id, "
        "the one without a prefix.",
    ),
]


def settings_of(
    context: typer.Context,
    journal: Path | None,
    url: str | None = None,
    api_key: str | None = None,
    key_prefix: str | None = None,
) -> Settings:
    """Merge the settings of the command line, the environment and the configuration file."""
    try:
        found, warning = config.load(context.obj)
    except CachedSessionError as error:
        output.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    if warning:
        output.complain(warning)
    return found.overridden_by(journal, url, api_key, key_prefix)


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; print an error of the library on one line and exit with the error's code."""
    # The library logs each failed attempt. A command prints only the last error, at the end.
    logging.getLogger("cached_session").addHandler(logging.NullHandler())
    try:
        return asyncio.run(command)
    except InvalidArgument as error:
        output.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    except CachedSessionError as error:
        output.complain(str(error))
        raise typer.Exit(NOT_SYNCED if isinstance(error, SyncError) else FAILED) from error


def open_existing(settings: Settings, *, syncing: bool = False) -> JournalSessions:
    """Open an existing journal: a command that only reads must not create a file."""
    if syncing and settings.url:
        return open_online(settings)
    path = _existing_journal(settings)
    return JournalSessions(
        lambda prefix: SessionCache(path, key_prefix=prefix), settings.key_prefix
    )


def open_online(settings: Settings, *, new: bool = False, move: bool = False) -> JournalSessions:
    """Open a journal that syncs with the server; with ``new`` it may be created, and with ``move``
    it may move to this server."""
    url = settings.url
    if not url:
        raise InvalidArgument(
            "no server is given; pass --url http://..., or set DAKERA_URL in the environment "
            "or url in the configuration file"
        )
    path = settings.journal if new else _existing_journal(settings)
    return JournalSessions(
        lambda prefix: SessionCache(
            path, url=url, api_key=settings.api_key, key_prefix=prefix, move=move
        ),
        settings.key_prefix,
    )


def open_offline(settings: Settings) -> JournalSessions:
    """Open a journal without a server; it may be created."""
    return JournalSessions(
        lambda prefix: SessionCache(settings.journal, key_prefix=prefix), settings.key_prefix
    )


def _existing_journal(settings: Settings) -> str:
    """Return the path of the journal.

    Raises:
        JournalError: the journal does not exist.
    """
    path = journal_path(settings.journal)
    if not Path(path).exists():
        raise JournalError(
            f"there is no journal at {path}; pass another with --journal, "
            "or set CACHED_SESSION_JOURNAL in the environment"
        )
    return path
