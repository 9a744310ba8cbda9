"""Items and entries as text: drawn for a terminal, in lines for a pipe, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cached_session.cli import output
from cached_session.cli.escape import safe, safe_id, safe_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cached_session import Entry

FOLDED = 60
"""Maximum number of characters of a tool call's arguments, or of its output, when folded."""
UNSENT = "yellow"
ROLES = {"user": "bold cyan", "assistant": "bold green", "tool": "yellow"}


def print_items(items: Iterable[Any]) -> None:
    """Print items, one JSON value per line."""
    for item in items:
        output.say(safe_json(item))


def print_entries(entries: Sequence[Entry], *, unfold: bool = False) -> None:
    """Print a conversation; if standard output is not a terminal, one line per item."""
    if not output.is_terminal():
        for entry in entries:
            output.say(entry_line(entry))
        return
    outputs = {
        entry.item["call_id"]: entry.item
        for entry in entries
        if _is_output(entry.item) and isinstance(entry.item.get("call_id"), str)
    }
    calls = {entry.item.get("call_id") for entry in entries if _is_call(entry.item)}
    for entry in entries:
        if _is_output(entry.item) and entry.item.get("call_id") in calls:
            continue
        answer = outputs.get(entry.item.get("call_id")) if _is_call(entry.item) else None
        output.show(_draw_entry(entry, answer, unfold=unfold))


def entry_line(entry: Entry) -> str:
    """Return rank, time, writer, sync state and text of an entry on one line."""
    return (
        f"{entry.rank:>6}  {output.when(entry.said_at)}  {entry.writer[:6]}  "
        f"{entry.sync_state:8}  {one_line(entry.item)}"
    )


def _draw_entry(entry: Entry, answer: Any, *, unfold: bool) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    item = entry.item
    if _is_call(item) or _is_output(item):
        width = None if unfold else FOLDED
        line = Text("▸ " if not unfold else "▾ ", style="dim")
        if _is_call(item):
            line.append(safe(str(item.get("name"))), style=ROLES["tool"])
            line.append(f"({_short(item.get('arguments'), width)})", style="dim")
        given = item if _is_output(item) else answer
        if given is not None:
            line.append(" → ", style="dim")
            line.append(_short(_text(given.get("output")), width))
        return Padding(line, (0, 0, 0, 2))
    role = str(item.get("role") or item.get("type")) if isinstance(item, dict) else "item"
    head = Text(safe_id(role), style=ROLES.get(role, "bold magenta"))
    head.append(f"  {entry.rank}  {output.when(entry.said_at)}", style="dim")
    if entry.sync_state != "acked":
        head.append(f"  {entry.sync_state}", style=UNSENT)
    body = _message_text(item)
    head.append(f"\n{safe(body) if body is not None else safe_json(item)}", style="not bold")
    return head


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "function_call"


def _is_output(item: Any) -> bool:
    return isinstance(item, dict) and "output" in item


def _message_text(item: Any) -> str | None:
    """Return the text of a message; None if the message has no text."""
    content = item.get("content") if isinstance(item, dict) else None
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        content = "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) and content else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else safe_json(value)


def _short(value: Any, width: int | None) -> str:
    text = safe(_text(value))
    if width is None:
        return text
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def one_line(item: Any) -> str:
    """Return an item on one line: role and text, tool call, or tool output."""
    if _is_call(item):
        return output.cut(f"calls {item.get('name')}({item.get('arguments')})")
    if _is_output(item):
        return output.cut(f"gives {_text(item['output'])}")
    text = _message_text(item)
    if text is not None:
        return output.cut(f"{item.get('role', item.get('type', '?'))}: {text}")
    return output.cut(safe_json(item))


def print_found(session: str, entries: Sequence[Entry]) -> None:
    """Print found entries, one line each, with their session."""
    for entry in entries:
        when = output.when(entry.said_at)
        line = f"{safe_id(session)}  {entry.rank}  {when}  {one_line(entry.item)}"
        if output.is_terminal():
            from rich.text import Text

            output.show(Text(line))
        else:
            output.say(line)
