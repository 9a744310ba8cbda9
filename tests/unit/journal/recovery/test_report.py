"""The report of a recovery, in the journal and for people."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from cached_session.journal.recovery.report import (
    MAX_NAMED_LOSSES,
    Losses,
    RecoveryReport,
    read_report,
    write_report,
)
from cached_session.journal.tables.meta import read_meta

REPORT = RecoveryReport(1_000_000_000_000, "damage", "1:2", "/d/j.db.damaged-X", 5, 3)


def test_a_report_is_read_as_it_was_written(old: sqlite3.Connection) -> None:
    """The journal holds the latest report with all its fields."""
    assert read_report(read_meta(old)) is None
    write_report(old, REPORT)
    latest = replace(REPORT, lost=("item 0", "item 1"), lost_more=7, set_aside=None)
    write_report(old, latest)
    assert read_report(read_meta(old)) == latest


def test_a_report_of_an_earlier_version_is_read() -> None:
    """The stored form is part of the journal's format."""
    stored = (
        '{"at_ms": 1000000000000, "why": "damage", "source": "1:2", '
        '"set_aside": "/d/j.db.damaged-X", "operations": 5, "unsent": 3, "lost": [], '
        '"lost_more": 0}'
    )
    assert read_report({"salvage": stored}) == REPORT


def test_a_summary_without_losses() -> None:
    """The summary says when, why, what was copied and where the old file is."""
    assert REPORT.summary() == (
        "2001-09-09 01:46:40 UTC: damage; copied 5 operations to a new file, 3 of them unsent; "
        "nothing unsent was lost; the old file is /d/j.db.damaged-X"
    )


def test_a_summary_with_losses() -> None:
    """Losses are counted and described, and a missing old file is mentioned."""
    one = replace(REPORT, operations=1, lost=("item 0",), set_aside=None).summary()
    assert "copied 1 operation to a new file" in one
    assert one.endswith("; 1 loss: item 0; the old file was not kept")
    two = replace(REPORT, lost=("item 0", "item 1")).summary()
    assert "; 2 losses: item 0; item 1; the old file" in two
    more = replace(REPORT, lost=("item 0", "item 1"), lost_more=5).summary()
    assert "; 7 losses: item 0; item 1; and 5 more; the old file" in more


def test_losses_are_described_up_to_a_maximum() -> None:
    """All others are counted."""
    losses = Losses()
    for number in range(MAX_NAMED_LOSSES + 3):
        losses.add(str(number))
    assert losses.named == [str(number) for number in range(MAX_NAMED_LOSSES)]
    assert losses.more == 3
