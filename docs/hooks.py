"""MkDocs hooks: generate the journal schema, and add pages that the navigation does not name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cached_session.journal.tables import schema

GENERATED = {
    "<!-- generated: journal schema -->": lambda: (
        f"Format {schema.FORMAT}, application id `0x{schema.APPLICATION_ID:08X}`.\n\n"
        f"```sql\n{schema.DDL.strip()}\n```\n"
    ),
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each marker of `GENERATED` by its generated text."""
    for mark, make in GENERATED.items():
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def on_config(config: Any) -> Any:
    """Add each page that the navigation does not name under "More"."""
    docs = Path(config["docs_dir"])
    named = set(_named(config["nav"]))
    pages = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    more: list[Any] = [page for page in pages if page not in named]
    if more:
        config["nav"].append({"More": more})
    return config


def _named(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in _named(value)]
