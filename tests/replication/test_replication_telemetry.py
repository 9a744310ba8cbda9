"""Telemetry through the real OpenTelemetry SDK, with exporters in memory."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cached_session import Unauthorized, telemetry
from cached_session.testing import FaultLab
from tests.replication.devices import PATIENCE, time_out


class Spans(InMemorySpanExporter):
    """Keeps the finished spans while a test of this module runs."""

    is_wanted = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return super().export(spans) if self.is_wanted else SpanExportResult.SUCCESS


READER = InMemoryMetricReader()
SPANS = Spans()
KEY = "canary-0f5a8c21d3"
SECRET = "correct horse battery staple"


@cache
def providers() -> None:
    """Set the providers once a process, also when it runs the tests of this module in several
    groups."""
    traces = TracerProvider()
    traces.add_span_processor(SimpleSpanProcessor(SPANS))
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(MeterProvider(metric_readers=[READER]))


@pytest.fixture(autouse=True)
def record_spans() -> Iterator[None]:
    """Collect spans during this test only."""
    providers()
    SPANS.clear()
    SPANS.is_wanted = True
    yield
    SPANS.is_wanted = False
    SPANS.clear()


@pytest.fixture
def lab() -> Iterator[FaultLab]:
    with FaultLab(api_key=KEY) as made:
        yield made


def points() -> dict[str, list[Any]]:
    """Return the data points of each metric."""
    data = READER.get_metrics_data()
    return {
        metric.name: list(metric.data.data_points)
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def gauge(name: str) -> float:
    (point,) = points()[f"cached_session.{name}"]
    return float(point.value)


async def test_gauges_show_pending_operations(lab: FaultLab) -> None:
    """Pending and its age rise while the line is cut, and are zero once the line works again."""
    async with lab.session("talk") as session:
        await session.sync(timeout=PATIENCE)
        with lab.network().cut():
            await session.add_items([{"role": "user", "content": SECRET}])
            await time_out(session.flush, lambda: session.status().last_error)
            assert gauge("pending") == 1
            assert gauge("oldest_pending_age") > 0
        await session.flush(timeout=PATIENCE)
        assert (gauge("pending"), gauge("oldest_pending_age")) == (0, 0)
        assert (gauge("parked"), gauge("absent")) == (0, 0)


async def test_a_parked_operation_is_counted_and_logged_with_its_fields(
    lab: FaultLab, caplog: pytest.LogCaptureFixture
) -> None:
    """An operation that the server refuses shows in the gauge, and its record names its dot."""
    async with lab.session("talk") as session:
        await session.sync(timeout=PATIENCE)
        lab.faults.status(422, count=1, route="POST /v1/memories/store/batch")
        with caplog.at_level(logging.ERROR, "cached_session"):
            await session.add_items([{"role": "user", "content": SECRET}])
            await session.sync(timeout=PATIENCE)
        assert gauge("parked") == 1
        (parked,) = await session.parked()
        (record,) = [found for found in caplog.records if hasattr(found, "counter")]
        assert (record.session, record.writer, record.counter) == (  # type: ignore[attr-defined]
            "talk",
            *parked.dot,
        )
        assert SECRET not in caplog.text
        assert "the-key" not in caplog.text


async def test_steps_are_spans_and_a_histogram_without_content(lab: FaultLab) -> None:
    """Each push and pull has a span with its outcome, and metrics name no session."""
    async with lab.session("talk") as session:
        await session.add_items([{"role": "user", "content": SECRET}])
        await session.sync(timeout=PATIENCE)
        with lab.network().cut():
            await time_out(session.sync, lambda: session.status().last_error)
    seen = {
        (span.name, (span.attributes or {})["cached_session.outcome"])
        for span in SPANS.get_finished_spans()
    }
    assert {("cached_session.push", "ok"), ("cached_session.pull", "ok")} <= seen
    assert any(outcome not in ("ok", "cancelled") for _, outcome in seen)
    told = "".join(span.to_json() for span in SPANS.get_finished_spans())
    assert SECRET not in told
    assert "the-key" not in told
    duration = points()["cached_session.step.duration"]
    assert all(
        set(point.attributes) == {"cached_session.step", "cached_session.outcome"}
        for point in duration
    )
    assert sum(point.count for point in duration) >= 3


async def test_a_closed_journal_is_not_counted(lab: FaultLab) -> None:
    """Pending operations of a journal that is not open are not in the metrics."""
    async with lab.session("talk") as session:
        await session.sync(timeout=PATIENCE)
        lab.network().cut()
        await session.add_items([{"role": "user", "content": "hello"}])
        assert gauge("pending") == 1
    assert gauge("pending") == 0


def test_a_local_session_does_not_import_opentelemetry() -> None:
    """Without a server nothing of OpenTelemetry is imported."""
    code = """
import asyncio, sys
from cached_session import CachedSession
async def main():
    async with CachedSession("talk", journal=":memory:") as session:
        await session.add_items([{"role": "user", "content": "hello"}])
asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=PATIENCE)


def test_steps_work_without_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the API is not installed a step runs without a span."""
    monkeypatch.setattr(telemetry, "_instruments", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    telemetry.load()
    SPANS.clear()
    with telemetry.step("push", "talk", lambda: 0.0):
        pass
    assert telemetry._instruments is None
    assert SPANS.get_finished_spans() == ()


async def test_the_key_is_in_no_metric_and_no_span(lab: FaultLab) -> None:
    """After a success, a 503 and a 401 that quotes the key, no attribute, event or name has it."""
    async with lab.session("talk") as session:
        await session.add_items([{"role": "user", "content": "one"}])
        await session.sync(timeout=PATIENCE)
        for status in (503, 401):
            words = f"Bearer {KEY} is not welcome"
            with lab.faults.status(status, message=words):
                await session.add_items([{"role": "user", "content": "more"}])
                if status == 401:
                    with pytest.raises(Unauthorized):
                        await session.sync(timeout=PATIENCE)
                else:
                    await time_out(session.sync, lambda: session.status().last_error)
    told = "".join(span.to_json() for span in SPANS.get_finished_spans())
    assert "cached_session.push" in told
    data = READER.get_metrics_data()
    assert data is not None
    told += data.to_json()
    assert "step.duration" in told
    assert KEY not in told
