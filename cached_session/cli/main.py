"""``cached-session``, also ``python -m cached_session``: the way in, and what its exit codes mean.

0   it was done
1   it failed, or `doctor` found something broken: the message says what to do
2   it was called wrongly (an unknown option, a session that the journal does not know, no server)
3   the server did not take or give everything in the time given; the journal is intact
130 interrupted by the keyboard; nothing is lost

The command line needs an extra of the package; without it, it says which.
"""

from __future__ import annotations

import sys

FAILED = 1
CALLED_WRONGLY = 2
NOT_SYNCED = 3

EXIT_CODES = """\
Exit codes: 0 done; 1 failed, the message says what to do; 2 called wrongly; 3 the server did not \
take or give everything in time, the journal is intact; 130 interrupted, nothing is lost."""

MISSING = """\
cached-session: {module} is not installed. The command line is an extra of the package:

    pip install 'cached-session[cli]'          # everything but devserver
    pip install 'cached-session[devserver]'    # devserver
"""

EXTRA_MODULES = frozenset({"rich", "starlette", "tomli", "typer", "uvicorn"})


def main() -> None:
    """Run the command that the arguments name."""
    try:
        from cached_session.cli.app import app
    except ModuleNotFoundError as error:
        explain_missing(error)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign gets its code, not a traceback.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
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
