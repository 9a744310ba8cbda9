"""``cached-session``, also ``python -m cached_session``: the way in, and what its exit codes mean.

0   it was done
1   it failed: the message names the value at fault and the way out
2   it was called wrongly (an unknown option, a session without a server to sync with)
3   the server did not take or give everything in the time given; the journal is intact
130 interrupted by the keyboard

The command line needs an extra of the package; without it, it says which.
"""

from __future__ import annotations

import sys

FAILED = 1
CALLED_WRONGLY = 2
NOT_SYNCED = 3

MISSING = """\
cached-session: {module} is not installed. The command line is an extra of the package:

    pip install 'cached-session[cli]'          # status, show, sync
    pip install 'cached-session[devserver]'    # devserver
"""

EXTRA_MODULES = frozenset({"rich", "starlette", "typer", "uvicorn"})


def main() -> None:
    """Run the command that the arguments name."""
    try:
        from cached_session.cli.arguments import app
    except ModuleNotFoundError as error:
        explain_missing(error)
    app(prog_name="cached-session")


def explain_missing(error: ModuleNotFoundError) -> None:
    """Say which extra to install and leave, or raise again what is no extra's module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_MODULES:
        raise error
    sys.stderr.write(MISSING.format(module=module))
    raise SystemExit(FAILED) from None


if __name__ == "__main__":
    main()
