"""The mutation trial itself takes an hour; that it can be made is looked at here."""

from __future__ import annotations

import ast

import pytest

from tests.simulation.mutants import MUTANTS, ROOT, _broken


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_a_program(name: str) -> None:
    """What a mutant replaces stands in the library as it is now, once, and what comes of it is
    other Python."""
    module, old, new = MUTANTS[name]
    text = (ROOT / "cached_session" / module).read_text()
    broken = _broken(text, module, old, new)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
