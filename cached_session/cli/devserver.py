"""The command ``devserver``: run the development server, with faults to inject."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cached_session.cli import output
from cached_session.cli.exit_codes import CALLED_WRONGLY, FAILED
from cached_session.cli.extras import explain_missing

Faults = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        help="Inject a fault: a kind and its settings, such as "
        "drop,after_commit=true,probability=0.2 or status,status=503,every=3. May be repeated.",
    ),
]


def devserver(
    port: Annotated[
        int,
        typer.Option(
            "--port", "-p", min=0, max=65535, help="Listen on this port; 0 picks a free one."
        ),
    ] = 3000,
    host: Annotated[str, typer.Option("--host", help="Listen on this address.")] = "127.0.0.1",
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Keep the memories in this file instead of in memory."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="Require this key of every request.")
    ] = None,
    latency: Annotated[
        float,
        typer.Option("--latency", min=0, help="Delay each request by this many milliseconds."),
    ] = 0.0,
    fault: Faults = None,
    log: Annotated[
        bool, typer.Option("--log", help="Print each request on standard error.")
    ] = False,
) -> None:
    """Serve the part of Dakera's API that sessions use, for development and tests only."""
    try:
        from cached_session.devserver import serve

        serve(
            host,
            port,
            data=data,
            api_key=api_key,
            latency=latency / 1000,
            faults=[_parse_fault(text) for text in fault or []],
            log=log,
        )
    except ModuleNotFoundError as error:
        explain_missing(error)
    except ValueError as error:
        output.complain(str(error))
        raise typer.Exit(CALLED_WRONGLY) from error
    except OSError as error:
        output.complain(f"cannot serve on {host}:{port}: {error}")
        raise typer.Exit(FAILED) from error


def _parse_fault(text: str) -> dict[str, Any]:
    """Parse `kind,name=value,...`. The fault plan of the server validates the names."""
    kind, *settings = text.split(",")
    found: dict[str, Any] = {"kind": kind.strip()}
    for setting in settings:
        name, _, value = setting.partition("=")
        found[name.strip()] = _parse_value(value.strip())
    return found


def _parse_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
