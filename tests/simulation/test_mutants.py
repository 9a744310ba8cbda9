"""The anchors of the mutants. The mutation trial itself takes an hour."""

from __future__ import annotations

import ast

import pytest

from tests.simulation.mutants import MUTANTS, ROOT, _broken


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_changes_the_program(name: str) -> None:
    """The replaced text of each mutant is in the library once, and the result is different, valid
    Python."""
    module, old, new = MUTANTS[name]
    text = (ROOT / "cached_session" / module).read_text()
    broken = _broken(text, module, old, new)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
