"""Markdown pages with generated blocks, between `<!-- NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["write_block"]


def write_block(page: Path, name: str, text: str) -> None:
    """Replace the text of a block.

    Raises:
        ValueError: the page has no block of that name, or several; it was not changed.
    """
    before = page.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    after, count = block.subn(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", before)
    if count != 1:
        raise ValueError(f"{page.name} has {count} blocks called {name!r}")
    page.write_text(after, encoding="utf-8")
