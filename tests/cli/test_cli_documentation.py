"""docs/cli.md names every command and option. test_docs runs its blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cached_session.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cli.md").read_text(encoding="utf-8")


def options(command: Any) -> Iterator[tuple[str, str]]:
    """Return (command, long option) of all commands below this one."""
    for name, one in getattr(command, "commands", {}).items():
        yield from options(one)
        for parameter in one.params:
            for option in parameter.opts:
                if option.startswith("--") and option != "--help":
                    yield name, option


COMMAND: Any = typer.main.get_command(app)


def test_every_command_is_in_the_page() -> None:
    """Each command's name is there as code."""
    missing = [name for name in COMMAND.commands if f"`{name}" not in PAGE]
    assert COMMAND.commands
    assert not missing


@pytest.mark.parametrize(("command", "option"), sorted(set(options(COMMAND))))
def test_every_option_is_in_the_page(command: str, option: str) -> None:
    """Each long option is there as code."""
    assert re.search(rf"{option}\b", PAGE), f"{command} {option}"


def test_every_screenshot_exists() -> None:
    """Each image of the page is a file beside it."""
    screens = re.findall(r"\]\((screens/.*?)\)", PAGE)
    assert len(screens) >= 4
    for screen in screens:
        assert (DOCS / screen).read_text(encoding="utf-8").startswith("<svg")
