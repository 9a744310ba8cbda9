"""Explain which extra a missing package belongs to."""

from __future__ import annotations

import sys

from cached_session.cli.exit_codes import FAILED

__all__ = ["EXTRA_MODULES", "MISSING", "explain_missing"]

MISSING = """\
cached-session: {module} is not installed. The command line is an extra of the package:

    pip install 'cached-session[cli]'          # everything but devserver
    pip install 'cached-session[devserver]'    # devserver
"""


EXTRA_MODULES = frozenset({"rich", "starlette", "tomli", "typer", "uvicorn"})


def explain_missing(error: ModuleNotFoundError) -> None:
    """Say which extra to install and leave, or raise again what is no extra's module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_MODULES:
        raise error
    sys.stderr.write(MISSING.format(module=module))
    raise SystemExit(FAILED) from None
