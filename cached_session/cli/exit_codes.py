"""Exit codes of the command line."""

from __future__ import annotations

__all__ = ["CALLED_WRONGLY", "EXIT_CODES", "FAILED", "NOT_SYNCED"]

FAILED = 1
"""Exit code if the command failed, or `doctor` found a failure."""
CALLED_WRONGLY = 2
"""Exit code if an argument, a setting or a source to import is wrong."""
NOT_SYNCED = 3
"""Exit code if the server did not accept or send everything in time, or refused the key."""

EXIT_CODES = """\
Exit codes: 0 done; 1 failed, see the message; 2 wrong arguments; 3 the sync did not finish in \
time or was refused, the journal is intact; 130 interrupted, the journal is intact."""
