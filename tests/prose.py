"""Draw a random sample of the package's docstrings and comments, for a reader to judge.

    python -m tests.prose --seed 12 --count 150

Each piece is printed with its place. A reader who has not seen the code marks each as plain, odd
(can be guessed) or a riddle (cannot be understood without the code).
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import random
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGE", "Piece", "pieces"]

PACKAGE = Path(__file__).parent.parent / "cached_session"
SHORT = 15
"""Characters below which a comment is a heading or a marker, and not a sentence."""


class Piece(NamedTuple):
    """A docstring or a block of comment lines, and where it stands."""

    path: str
    line: int
    kind: str
    text: str


def pieces(root: Path = PACKAGE) -> list[Piece]:
    """Return every docstring, attribute docstring and comment block of the modules below a folder,
    in order of path and line."""
    found: list[Piece] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root.parent).as_posix()
        source = path.read_text(encoding="utf-8")
        found += (Piece(name, *each) for each in [*_docstrings(source), *_comments(source)])
    return sorted(found)


def _docstrings(source: str) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for child in body:
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, "docstring", " ".join(child.value.value.split())


def _comments(source: str) -> Iterator[tuple[int, str, str]]:
    start, last, lines = 0, -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.string.startswith(("# noqa", "# type:", "#!")):
            continue
        if token.start[0] != last + 1 and lines:
            yield start, "comment", " ".join(lines)
            lines = []
        if not lines:
            start = token.start[0]
        last = token.start[0]
        text = token.string.lstrip("# ").rstrip(" -")
        lines.append(text.removeprefix("-- "))
    if lines:
        yield start, "comment", " ".join(lines)


def main() -> None:
    """Print a sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    drawable = [piece for piece in pieces() if len(piece.text) >= SHORT]
    sample = random.Random(given.seed).sample(drawable, min(given.count, len(drawable)))
    if given.json:
        print(json.dumps([piece._asdict() for piece in sample], indent=1))
        return
    for number, piece in enumerate(sample, 1):
        print(f"{number}. {piece.path}:{piece.line} ({piece.kind})\n   {piece.text}\n")


if __name__ == "__main__":
    main()
