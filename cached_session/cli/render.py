"""What the commands say: Rich on a terminal, plain lines and JSON everywhere else.

Whatever comes from a history, a journal or a server is escaped (`safe`) and reaches Rich as plain
text, never as markup.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cached_session.cli.safe import safe, safe_id, safe_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cached_session import (
        AuditReport,
        CompactReport,
        Entry,
        Finding,
        ImportReport,
        Parked,
        Status,
        SyncReport,
    )

WIDTH = 100  # characters of an item's text that stand on its line
FOLDED = 60  # and of a folded tool's arguments or output

ROLES = {"user": "bold cyan", "assistant": "bold green", "tool": "yellow"}
STATES = {
    "synced": "green",
    "waiting": "yellow",
    "offline": "red",
    "parked": "bold red",
    "partial": "yellow",
    "local": "dim",
}
LEVELS = {"ok": "green", "warn": "yellow", "fail": "bold red"}

COLUMNS = ("session", "items", "pending", "parked", "age", "state")


def is_terminal() -> bool:
    """Whether a person looks at standard output."""
    return sys.stdout.isatty()


def show(what: RenderableType) -> None:
    """Draw on the terminal."""
    from rich.console import Console

    Console(highlight=False, markup=False, emoji=False).print(what)


def complain(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"cached-session: {safe(message)}\n")
    sys.stderr.flush()


def say(line: str) -> None:
    """One line on standard output, at once: whoever follows through a pipe waits for it."""
    print(line, flush=True)


def say_json(value: Any, indent: int | None = 2) -> None:
    """One value, for programs; dataclasses as objects."""
    say(safe_json(_plain(value), indent))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value


# -- status --------------------------------------------------------------------------------------


def state_of(status: Status) -> str:
    """How one session stands, in a word, as far as its journal knows."""
    if status.parked:
        return "parked"
    if status.last_error:
        return "offline"
    if status.last_server is None:
        return "local"
    if status.pending:
        return "waiting"
    return "synced" if status.hydrated else "partial"


def print_status(status: Status) -> None:
    """What a person wants to know first, then a line for each session."""
    if is_terminal():
        show(status_screen(status))
        return
    for line in status_lines(status):
        say(line)


def status_lines(status: Status) -> Iterator[str]:
    """The same without a terminal."""
    for name, value in _facts(status):
        yield f"{name:8} {value}"
    yield _sum(status)
    rows = list(_rows(status))
    if rows:
        yield from _table(COLUMNS, rows)


def status_screen(status: Status) -> RenderableType:
    """The same for a terminal."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    for name, value in _facts(status):
        head.add_row(Text(name, style="dim"), Text(value, style="red" if name == "trouble" else ""))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("session", "state") else "right")
    for *cells, state in _rows(status):
        table.add_row(*map(Text, cells), Text(state, style=STATES[state]))
    parts: list[RenderableType] = [head, Text(_sum(status), style="bold")]
    return Group(*parts, table) if status.sessions else Group(*parts)


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    yield "journal", safe(status.journal)
    if status.server or status.last_server:
        yield "server", safe(status.server or status.last_server or "")
    if status.last_success is not None:
        yield "synced", _when(status.last_success)
    if status.last_error:
        yield "trouble", safe(status.last_error)


def _sum(status: Status) -> str:
    return (
        f"{len(status.sessions)} sessions, {status.items} items, {status.pending} pending"
        + (f" (the oldest for {_age(status.oldest_pending_age)})" if status.pending else "")
        + (f", {status.parked} parked" if status.parked else "")
        + (f", {status.absent} absent" if status.absent else "")
    )


def _rows(status: Status) -> Iterator[tuple[str, ...]]:
    for name, one in sorted(status.sessions.items()):
        yield (
            safe_id(name),
            str(one.items),
            str(one.pending),
            str(one.parked),
            _age(one.oldest_pending_age),
            state_of(one),
        )


# -- histories -----------------------------------------------------------------------------------


def print_items(items: Iterable[Any]) -> None:
    """One JSON value a line."""
    for item in items:
        say(safe_json(item))


def print_entries(entries: Sequence[Entry], *, unfold: bool = False) -> None:
    """A conversation as a person reads it; piped, one line an item."""
    if not is_terminal():
        for entry in entries:
            say(entry_line(entry))
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
        show(_speech(entry, answer, unfold=unfold))


def entry_line(entry: Entry) -> str:
    """Rank, when, who wrote it, whether the server has it, the text."""
    return (
        f"{entry.rank:>6}  {_when(entry.said_at)}  {entry.writer[:6]}  "
        f"{entry.sync_state:8}  {gist(entry.item)}"
    )


def _speech(entry: Entry, answer: Any, *, unfold: bool) -> RenderableType:
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
    head.append(f"  {entry.rank}  {_when(entry.said_at)}", style="dim")
    if entry.sync_state != "acked":
        head.append(f"  {entry.sync_state}", style=STATES["waiting"])
    body = _spoken(item)
    head.append(f"\n{safe(body) if body is not None else safe_json(item)}", style="not bold")
    return head


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "function_call"


def _is_output(item: Any) -> bool:
    return isinstance(item, dict) and "output" in item


def _spoken(item: Any) -> str | None:
    """The words of a message; None if it has none."""
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


def gist(item: Any) -> str:
    """A line's worth of an item: who, and what was said, called or answered."""
    if _is_call(item):
        return _cut(f"calls {item.get('name')}({item.get('arguments')})")
    if _is_output(item):
        return _cut(f"gives {_text(item['output'])}")
    spoken = _spoken(item)
    if spoken is not None:
        return _cut(f"{item.get('role', item.get('type', '?'))}: {spoken}")
    return _cut(safe_json(item))


def print_found(session_id: str, entries: Sequence[Entry]) -> None:
    """One line an item, with the session it is from."""
    for entry in entries:
        line = f"{safe_id(session_id)}  {entry.rank}  {_when(entry.said_at)}  {gist(entry.item)}"
        if is_terminal():
            from rich.text import Text

            show(Text(line))
        else:
            say(line)


# -- reports -------------------------------------------------------------------------------------


def print_report(report: SyncReport, what: str) -> None:
    """What a sync did."""
    say(
        f"synced {safe_id(what)} in {report.seconds:.1f} s: {report.pushed} operations sent, "
        f"{report.pulled} fetched" + (f", {report.parked} parked" if report.parked else "")
    )


def print_import(report: ImportReport) -> None:
    """What an import did."""
    say(
        f"{safe_id(report.session_id)}: {report.added} items added"
        + (f", {report.known} were here already" if report.known else "")
        + (f", {report.unreadable} could not be read" if report.unreadable else "")
        + (f", {report.skipped} memories are no items" if report.skipped else "")
    )


def print_audit(session_id: str, report: AuditReport) -> None:
    """What an audit found and did."""
    say(
        f"{safe_id(session_id)}: {report.listed} memories listed, {report.healed} operations put "
        f"back, {report.applied} fetched, {report.forgotten} removed items forgotten"
    )


def print_compacted(report: CompactReport) -> None:
    """What a compaction did."""
    freed = (report.bytes_before - report.bytes_after) / 1024
    say(
        f"{report.operations} operations need no bookkeeping any more; {max(0.0, freed):.0f} KiB "
        f"given back: the journal takes {report.bytes_after / 1024:.0f} KiB"
    )


def dot_of(parked: Parked) -> str:
    """How a parked operation is named on the command line."""
    return f"{parked.dot.writer}:{parked.dot.counter}"


def print_parked(found: Sequence[Parked]) -> None:
    """One line an operation: its name, its session, why."""
    rows = [
        (
            dot_of(one),
            safe_id(one.session_id),
            one.kind,
            str(len(one.items)),
            _when(one.said_at),
            _cut(one.error),
        )
        for one in found
    ]
    if not rows:
        say("nothing is parked")
        return
    for line in _table(("operation", "session", "kind", "items", "written", "why"), rows):
        say(line.rstrip())


def print_findings(findings: Sequence[Finding]) -> None:
    """One line a finding, and what to do about it below."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        head = f"{finding.level:4}  {finding.check:{width}}  "
        advice = f"{'':{len(head)}}→ {safe(finding.advice)}" if finding.advice else ""
        if is_terminal():
            from rich.table import Table
            from rich.text import Text

            row = Table.grid(padding=(0, 2))
            row.add_column(width=4)
            row.add_column(width=width)
            row.add_column(ratio=1)
            body = Text(safe(finding.message))
            if finding.advice:
                body.append(f"\n→ {safe(finding.advice)}", style="cyan")
            row.add_row(Text(finding.level, style=LEVELS[finding.level]), Text(finding.check), body)
            show(row)
        else:
            say(head + safe(finding.message))
            if advice:
                say(advice)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A sign of life on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    numbers = {"items", "pending", "parked", "age"}
    for row in [header, *rows]:
        yield "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )


def _cut(text: str) -> str:
    text = safe(" ".join(text.split()))
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def _when(moment: float) -> str:
    try:
        found = datetime.fromtimestamp(moment, tz=timezone.utc)
        return found.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        # A clock of somebody else, far off.
        return f"{moment:.0f}"
