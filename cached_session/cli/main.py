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

from cached_session.cli.extras import explain_missing


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


if __name__ == "__main__":
    main()
