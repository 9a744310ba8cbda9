"""What the commands have in common: the options of several, the settings, how one is run."""

from __future__ import annotations

import asyncio
import difflib
import logging
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cached_session import SessionCache
from cached_session.cli import config, output
from cached_session.cli.config import Settings
from cached_session.cli.exit_codes import CALLED_WRONGLY, FAILED, NOT_SYNCED
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


def settings_of(
    context: typer.Context,
    journal: Path | None,
    url: str | None = None,
    api_key: str | None = None,
) -> Settings:
    """What the command line, the environment and the configuration file say."""
    try:
        found, warning = config.load(context.obj)
    except CachedSessionError as error:
        output.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    if warning:
        output.complain(warning)
    return found.over(journal, url, api_key)


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what the library raises on purpose becomes a line and an exit code."""
    # The library logs each pause between tries; here, the last reason is told at the end.
    logging.getLogger("cached_session").addHandler(logging.NullHandler())
    try:
        return asyncio.run(command)
    except InvalidArgument as error:
        output.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    except CachedSessionError as error:
        output.complain(str(error))
        raise typer.Exit(NOT_SYNCED if isinstance(error, SyncError) else FAILED) from error


def existing(settings: Settings, *, syncing: bool = False) -> SessionCache:
    """A cache over a journal that is there: looking at nothing must not create something."""
    if syncing and settings.url:
        return online(settings)
    return SessionCache(_there(settings))


def online(settings: Settings, *, new: bool = False) -> SessionCache:
    """A cache that syncs with the server that was named; ``new``: its journal may be made."""
    if not settings.url:
        raise InvalidArgument(
            "say which server: --url http://..., DAKERA_URL in the environment, "
            "or url in the configuration file"
        )
    path = settings.journal if new else _there(settings)
    return SessionCache(path, url=settings.url, api_key=settings.api_key)


def _there(settings: Settings) -> str:
    path = journal_path(settings.journal)
    if not Path(path).exists():
        raise JournalError(
            f"there is no journal at {path}; name another with --journal, "
            "or CACHED_SESSION_JOURNAL in the environment"
        )
    return path


async def chosen(cache: SessionCache, session_ids: Sequence[str]) -> list[str]:
    """The sessions that were named, or all of the journal.

    Raises:
        InvalidArgument: the journal knows nothing of one of them.
    """
    known = await cache.sessions()
    for name in session_ids:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (is it {near[0]!r}?)" if near else ""
            raise InvalidArgument(
                f"nothing is known of {name!r} here{hint}; cached-session status lists what is, "
                "sync --session fetches what the server has"
            )
    return list(dict.fromkeys(session_ids)) or known
