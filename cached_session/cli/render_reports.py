"""Reports of syncs, imports, audits, compactions and checks, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cached_session.cli import output
from cached_session.cli.escape import safe, safe_id
from cached_session.humanize import count, size

if TYPE_CHECKING:
    from cached_session import (
        AuditReport,
        CompactReport,
        Finding,
        ImportReport,
        SyncReport,
    )

LEVELS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def print_report(report: SyncReport, what: str) -> None:
    """Print the report of a sync."""
    output.say(
        f"synced {safe_id(what)} in {report.seconds:.1f} s: "
        f"{count(report.pushed, 'operation')} sent, "
        f"{count(report.pulled, 'item')} fetched"
        + (f", {report.parked} parked" if report.parked else "")
    )


def print_import(report: ImportReport, session: str) -> None:
    """Print the report of an import into a session."""
    output.say(
        f"{safe_id(session)}: {count(report.added, 'item')} added"
        + (f", {report.known} {_was(report.known)} imported before" if report.known else "")
        + (f", {report.unreadable} could not be read" if report.unreadable else "")
        + (f" (the first: number {report.first_unreadable})" if report.first_unreadable else "")
        + (f", {report.skipped} of its memories are not items" if report.skipped else "")
    )


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def print_audit(session: str, report: AuditReport) -> None:
    """Print the report of an audit of a session."""
    output.say(
        f"{safe_id(session)}: {count(report.listed, 'memory', 'memories')} listed, "
        f"{count(report.healed, 'operation')} sent again, {report.applied} fetched, "
        f"{count(report.forgotten, 'removed item')} deleted from the server"
    )


def print_compacted(report: CompactReport) -> None:
    """Print the report of a compaction."""
    freed = max(0, report.bytes_before - report.bytes_after)
    output.say(
        f"bookkeeping of {count(report.operations, 'operation')} deleted, {size(freed)} freed; "
        f"the journal takes {size(report.bytes_after)}"
    )


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line per finding, with its advice below."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        head = f"{finding.level:4}  {finding.check:{width}}  "
        advice = f"{'':{len(head)}}→ {safe(finding.advice)}" if finding.advice else ""
        if output.is_terminal():
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
            output.show(row)
        else:
            output.say(head + safe(finding.message))
            if advice:
                output.say(advice)
