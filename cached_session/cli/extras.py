"""The packages of the command-line extras, and the message when one is missing."""

from __future__ import annotations

import sys

from cached_session.cli.exit_codes import FAILED

__all__ = ["EXTRA_MODULES", "MISSING", "explain_missing"]

MISSING = """\
cached-session: {module} is not installed. It comes with an extra of the package:

    pip install 'cached-session[cli]'          # all commands but devserver
    pip install 'cached-session[devserver]'    # devserver
"""


EXTRA_MODULES = frozenset({"rich", "starlette", "tomli", "typer", "uvicorn"})


def explain_missing(error: ModuleNotFoundError) -> None:
    """Print which extra to install, and exit; raise the error if no extra provides the module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_MODULES:
        raise error
    sys.stderr.write(MISSING.format(module=module))
    raise SystemExit(FAILED) from None
