"""The parts of a page that a command writes, between `<!-- NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["write_block"]


def write_block(page: Path, name: str, text: str) -> None:
    """Put the text into the block of that name.

    Raises:
        ValueError: the page has no such block, or more than one.
    """
    before = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    after, count = block.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", before)
    if count != 1:
        raise ValueError(f"{page.name} has {count} blocks called {name!r}")
    page.write_text(after, encoding="utf-8")
