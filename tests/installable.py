"""Check the `pip install` lines of the documentation, in place of ``pip``.

    python -m tests.installable install 'cached-session[cli]'

This package must have the named extras, and any other package must be among the pins of CI.
"""

from __future__ import annotations

import sys
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).parent.parent / "constraints.txt"
NAME = "cached-session"


def main(arguments: list[str]) -> int:
    command, *wanted = arguments
    pinned = {
        canonicalize_name(Requirement(line).name)
        for line in PINS.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    }
    extras = set(metadata(NAME).get_all("Provides-Extra") or [])
    wrong = [
        text
        for text in wanted
        for one in [Requirement(text)]
        if (one.extras - extras if one.name == NAME else canonicalize_name(one.name) not in pinned)
    ]
    if command != "install" or wrong or not wanted:
        print(f"cannot be installed: {wrong or arguments}", file=sys.stderr)
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
