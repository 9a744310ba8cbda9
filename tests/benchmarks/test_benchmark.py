"""The benchmark runs, and its report and the simulation of a fleet read its output. Sizes are tiny
and no time is checked."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
PARTS = {"calls", "concurrent", "busy", "events", "sync", "growth", "disk", "memory", "idle"}
OURS = {"ours, local", "ours, NORMAL", "ours, online", "ours, unreachable"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the output of `bench.py --smoke --json`."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _measured(tmp_path_factory.mktemp("bench") / "smoke.json")
    # Run it once for all workers of pytest-xdist, because it takes as long as many tests.
    path = tmp_path_factory.getbasetemp().parent / "smoke.json"
    with FileLock(f"{path}.lock"):
        if path.exists():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        return _measured(path)


def _measured(path: Path) -> dict[str, Any]:
    command = [sys.executable, "bench.py", "--smoke", "--json", str(path)]
    done = subprocess.run(
        command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| target | wanted | measured |" in done.stdout
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module of the benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def numbers(value: Any) -> Iterator[float]:
    """Return every number in the output."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def test_every_part_runs(measured: dict[str, Any]) -> None:
    """Each part writes numbers, and all of them are finite."""
    assert set(measured["parts"]) == PARTS
    for part in measured["parts"].values():
        found = list(numbers(part))
        assert len(found) > 3
        assert all(math.isfinite(one) for one in found)


def test_every_variant_makes_every_call(measured: dict[str, Any]) -> None:
    """Every call is measured for plain SQLite, for the SDK's own sessions, for ours under each
    network condition, and for one request per item."""
    (history,) = measured["parts"]["calls"]["histories"].values()
    for what, arms in history["calls"].items():
        missing = {"floor", "SQLiteSession", "AsyncSQLiteSession"} | OURS
        if what == "read all for the first time":
            missing -= OURS - {"ours, local"}
        if what != "add 100":
            missing |= {"one request per item"}
        assert missing <= set(arms)
        assert all(one["calls"] > 0 and one["median"] > 0 for one in arms.values())
    not_held = {"read 20 after a write", "read all after a write", "read all for the first time"}
    assert set(history["held_ms"]) == set(history["calls"]) - not_held


def test_requests_and_bytes_are_counted(measured: dict[str, Any]) -> None:
    """A backlog is sent in few requests, and every payload needs at least its own size in bytes."""
    sync = measured["parts"]["sync"]
    for cell in sync["cells"]:
        assert 0 < cell["push_requests"] < cell["items"] / 10
        assert 1 <= cell["tail_round_trips"] <= cell["tail_requests"]
    assert sync["wire"]["push"]["sent"] > 1
    assert sync["wire"]["hydrate"]["received"] > 1


def test_idle_requests_are_exact(measured: dict[str, Any], module: Any, tmp_path: Path) -> None:
    """Simulated hours take the same requests in every run, on every machine."""
    import asyncio

    idle, scale = module("idle"), module("scale")
    again = asyncio.run(idle.measure_idle(tmp_path, scale.SMOKE))
    assert again["rows"] == measured["parts"]["idle"]["rows"]
    assert again["turn"] == measured["parts"]["idle"]["turn"]


def test_many_idle_sessions_send_no_more_requests_than_one(module: Any) -> None:
    """An idle cache sends fewer than twenty requests an hour, for any number of open sessions,
    including audits."""
    idle = module("idle")
    for sessions in (1, 600):
        _, an_hour = idle._run_in_virtual_time(idle._count_idle_requests(sessions, 3, listen=True))
        assert 0 < sum(an_hour.values()) < 20


def test_an_unmeasured_target_is_not_reported_as_met(measured: dict[str, Any], module: Any) -> None:
    """A target for ten thousand items is not judged by a run with sixty."""
    targets = module("targets")
    outcomes = targets.judge(measured["parts"])
    assert len(outcomes) == len(targets.TARGETS)
    unmeasured = [one for one in outcomes if one.measured is None]
    assert {one.verdict for one in unmeasured} == {"not measured"}
    assert len(unmeasured) > 8
    assert not any(one.is_met for one in unmeasured)


def test_a_missed_target_has_a_reason(module: Any) -> None:
    """The verdict and the reason follow from the number alone."""
    targets = module("targets")
    slow = {"events": {"median": 0.2}}
    (missed,) = [one for one in targets.judge(slow) if one.measured is not None]
    assert (missed.measured, missed.is_met, missed.verdict) == (200.0, False, "**missed**")
    assert missed.target.reason in targets.reasons([missed])
    (met,) = [one for one in targets.judge({"events": {"median": 0.1}}) if one.is_met]
    assert met.target is missed.target
    assert met.target.reason not in targets.reasons([met])


def test_a_report_can_be_made(
    measured: dict[str, Any], module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are merged with the later ones first, each block of the page is written, and a second
    run writes the same."""
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    report, plots = module("report"), module("plots")
    page = tmp_path / "performance.md"
    page.write_text(report.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "MEASURED", tmp_path / "measured.json")
    monkeypatch.setattr(plots, "PLOTS", tmp_path)
    whole, later = tmp_path / "whole.json", tmp_path / "later.json"
    whole.write_text(json.dumps(measured), encoding="utf-8")
    events = {**measured["parts"]["events"], "calls": 77_777}
    later.write_text(json.dumps({**measured, "parts": {"events": events}}), encoding="utf-8")
    # The plot of calls needs a history of ten thousand.
    monkeypatch.setattr(plots, "_calls", plots._lengths)
    monkeypatch.setattr(sys, "argv", ["report.py", str(whole), str(later)])
    report.main()
    text = page.read_text(encoding="utf-8")
    assert "77777" in text
    assert "Not measured." not in text
    drawn = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert set(drawn) == {f"{name}.svg" for name in "calls lengths growth sync idle memory".split()}
    monkeypatch.setattr(sys, "argv", ["report.py"])
    report.main()
    assert page.read_text(encoding="utf-8") == text
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")} == drawn


def test_parts_of_another_machine_are_not_merged(module: Any, tmp_path: Path) -> None:
    """Earlier parts are kept only if they were measured on the same machine as the new ones."""
    report = module("report")
    kept, new = tmp_path / "kept.json", tmp_path / "new.json"
    kept.write_text(json.dumps({"machine": "here", "parts": {"busy": 1, "disk": 1}}))
    for machine, parts in (("here", {"busy": 2, "disk": 1}), ("there", {"busy": 2})):
        new.write_text(json.dumps({"machine": machine, "parts": {"busy": 2}}))
        assert report.merge([new], kept) == {"machine": machine, "parts": parts}
    assert report.merge([], kept)["parts"] == {"busy": 1, "disk": 1}
    with pytest.raises(ValueError, match="measured on 'there'"):
        report.merge([kept, new])


def test_cells_of_sync_are_merged_separately(module: Any, tmp_path: Path) -> None:
    """A cell that takes minutes can be measured alone, and the others are those of the last run."""
    report = module("report")
    files = []
    for number, cells in enumerate(([(10, 20.0), (10, 0.0)], [(10, 20.0), (99, 0.0)])):
        rows = [{"items": items, "latency_ms": ms, "run": number} for items, ms in cells]
        files.append(tmp_path / f"{number}.json")
        sync = {"cells": rows, "wire": number}
        files[-1].write_text(json.dumps({"machine": "here", "parts": {"sync": sync}}))
    sync = report.merge(files)["parts"]["sync"]
    assert sync["wire"] == 1
    found = [(cell["items"], cell["latency_ms"], cell["run"]) for cell in sync["cells"]]
    assert found == [(10, 0.0, 0), (10, 20.0, 1), (99, 0.0, 1)]
    assert report.merge(files[1:], files[0])["parts"]["sync"] == sync


def test_a_fleet_uses_the_measured_mix(measured: dict[str, Any], module: Any) -> None:
    """The mix comes from the run, the same seed gives the same fleet, and more nodes are less
    busy."""
    simulation = module("fleet_simulation")
    mix = simulation.Mix.of(measured["parts"])
    idle = {row["events"]: row for row in measured["parts"]["idle"]["rows"] if row["sessions"] == 1}
    assert mix.idle["polling"] == sum(idle[False]["an_hour"].values())
    fleet = simulation.Fleet(mix, devices=2000)
    recover, load = simulation.simulate_recovery, simulation.simulate_normal_load
    assert recover(fleet, 3, seed=1) == recover(fleet, 3, seed=1)
    assert recover(fleet, 3, seed=1) != recover(fleet, 3, seed=2)
    assert load(fleet, 30, seed=1).busy < load(fleet, 3, seed=1).busy
    assert recover(fleet, 30, seed=1).share_recovered == 1.0


def test_a_missing_block_is_an_error(module: Any, tmp_path: Path) -> None:
    """Figures are never written outside their block."""
    markdown_pages = module("markdown_pages")
    page = tmp_path / "page.md"
    page.write_text("<!-- one -->\nold\n<!-- end -->\nprose\n", encoding="utf-8")
    markdown_pages.write_block(page, "one", "new \\1")
    assert page.read_text(encoding="utf-8") == "<!-- one -->\n\nnew \\1\n\n<!-- end -->\nprose\n"
    with pytest.raises(ValueError, match="0 blocks called 'two'"):
        markdown_pages.write_block(page, "two", "lost")
