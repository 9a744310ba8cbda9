"""Tests are marked with the number of the README's promise that they check, and the documentation
lists them."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
NUMBERED = re.compile(r"^(\d+)\. \*\*", re.MULTILINE)
ROW = re.compile(r"^\| (\d+) \|.*\| (.*) \|$", re.MULTILINE)


def _numbers(marks: list[ast.expr]) -> set[int]:
    return {
        keyword.value.value
        for mark in marks
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise"
        for keyword in mark.keywords
        if isinstance(keyword.value, ast.Constant)
    }


def marked() -> dict[int, set[str]]:
    """Return the promises that tests name, with the files of those tests."""
    found = defaultdict[int, set[str]](set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            numbers = set[int]()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                numbers = _numbers(node.decorator_list)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
                numbers = _numbers([node.value])
            for number in numbers:
                found[number].add(path.relative_to(ROOT / "tests").as_posix())
    return found


def test_each_promise_has_its_tests() -> None:
    """The marks cover every number of the README, and no other."""
    promised = {int(number) for number in NUMBERED.findall((ROOT / "README.md").read_text())}
    assert promised == set(range(1, 11))
    assert set(marked()) == promised


def test_the_documentation_names_the_tests_of_each_promise() -> None:
    """The table of docs/testing.md lists, for each promise, the files of its tests."""
    text = (ROOT / "docs/testing.md").read_text()
    told = {int(number): set(re.findall(r"`(.*?)`", files)) for number, files in ROW.findall(text)}
    assert told == marked()
