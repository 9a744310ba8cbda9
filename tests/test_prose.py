"""The package's prose is plain technical English, as far as a program can tell."""

from __future__ import annotations

import re

from tests.prose import PACKAGE, pieces

METAPHORS = (
    r"whoever|whomever|nobody need|let go of|lets go of|stumbl\w*|neighbou?rs?|mends|mended|"
    r"mending|in vain|carries over|carried over|carry over|the house|makes no sense|goes by|"
    r"no oftener|makes room|finds room|no room|of ours|of theirs|all the same|as it were|to hand|"
    r"a moment ago"
)
"""Words of an earlier style that a newcomer had to guess; docs/architecture.md has the glossary."""
FRAGMENT = re.compile(r"(What|Whether|How|Those|Who|Which|Whose|Not|Nothing|Nobody|Where) [a-z]")
"""Beginnings of a docstring that is not a sentence with a subject or an imperative."""


def test_no_word_of_the_list() -> None:
    """No docstring or comment uses a word from the list."""
    used = [
        f"{piece.path}:{piece.line}: {found[0]!r}"
        for piece in pieces()
        if (found := re.search(rf"\b({METAPHORS})\b", piece.text, re.IGNORECASE))
    ]
    assert used == []


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    """No docstring begins with a relative clause or a bare negation."""
    odd = [
        f"{piece.path}:{piece.line}: {piece.text[:60]}"
        for piece in pieces()
        if piece.kind == "docstring" and FRAGMENT.match(piece.text)
    ]
    assert odd == []


def test_no_module_is_too_long() -> None:
    """Modules stay under 400 lines, except for the public session class, which is documentation."""
    long = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert set(long) <= {"session.py"}, long
