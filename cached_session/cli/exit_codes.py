"""Exit codes of the command line."""

from __future__ import annotations

__all__ = ["CALLED_WRONGLY", "EXIT_CODES", "FAILED", "NOT_SYNCED"]

FAILED = 1


CALLED_WRONGLY = 2


NOT_SYNCED = 3


EXIT_CODES = """\
Exit codes: 0 done; 1 failed, the message says what to do; 2 called wrongly; 3 the server did not \
take or give everything in time, the journal is intact; 130 interrupted, nothing is lost."""
