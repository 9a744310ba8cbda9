"""The entry point of ``cached-session``, also of ``python -m cached_session``.

Exit codes:

0   done
1   failed, or `doctor` found a failure; the message says what to do
2   wrong arguments (an unknown option, a session that the journal does not have, no server)
3   the sync did not finish in time, or the server refused the key; the journal is intact
130 interrupted by the keyboard; the journal is intact

The command line needs an extra of the package. If it is not installed, a message names the extra.
"""

from __future__ import annotations

import sys

from cached_session.cli.extras import explain_missing


def main() -> None:
    """Run the command that the arguments of the process name."""
    try:
        from cached_session.cli.app import app
    except ModuleNotFoundError as error:
        explain_missing(error)
    for stream in (sys.stdout, sys.stderr):
        # If the terminal's encoding lacks a character, print an escape of the character instead of
        # failing.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    app(prog_name="cached-session")


if __name__ == "__main__":
    main()
