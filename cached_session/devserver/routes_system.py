"""Routes of the server itself: health, capabilities, caller, events, files, background jobs."""

from __future__ import annotations

import time
import uuid
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from cached_session.devserver import queries, validation, writes
from cached_session.devserver.api_call import ApiCall, route
from cached_session.devserver.auth import authorise
from cached_session.devserver.capabilities import capabilities
from cached_session.devserver.responses import ApiError, error_response, invalid, missing
from cached_session.devserver.state import State, namespace_of

KEEPALIVE_SECONDS = 15.0
"""Seconds between two comments on an event stream without events."""


def routes(state: State, keepalive: float = KEEPALIVE_SECONDS) -> list[BaseRoute]:
    """Return the routes that the server's version has."""
    started = time.monotonic()

    def live(_: ApiCall) -> Any:
        """Return that the process is alive, and its uptime; a lower uptime shows a restart."""
        return {
            "alive": True,
            "version": state.version.text,
            "uptime_seconds": int(time.monotonic() - started),
        }

    table = [
        ("GET", "/health", health),
        ("GET", "/health/ready", ready),
        ("GET", "/health/live", live),
        ("GET", "/v1/export", export),
        ("POST", "/v1/import", import_),
        ("GET", "/v1/import/{job}/status", import_status),
    ]
    # Before 0.11.91 the admin routes were outside /v1.
    admin = "/v1/admin" if state.version.parts >= (0, 11, 91) else "/admin"
    table += [
        ("GET", f"{admin}/autopilot/status", autopilot_status),
        ("PUT", f"{admin}/autopilot/config", autopilot_config),
        ("GET", f"{admin}/decay/config", decay_config),
        ("PUT", f"{admin}/decay/config", put_decay_config),
        ("GET", f"{admin}/decay/stats", decay_stats),
    ]
    if state.version.is_v012:
        table.append(("GET", "/v1/capabilities", get_capabilities))
    if state.version.is_v0122:
        table.append(("GET", "/v1/auth/whoami", whoami))
    plain = [route(state, method, path, function) for method, path, function in table]
    return [*plain, _events_route(state, keepalive)]


def health(call: ApiCall) -> Any:
    """Return the health and the version of the server."""
    return {"status": "healthy", "version": call.state.version.text, "service": "dakera"}


def ready(call: ApiCall) -> Any:
    """Return that the server accepts requests."""
    checks = {"storage": {"status": "ok"}, "tiered_engine": {"status": "ok"}}
    return {"ready": True, "version": call.state.version.text, "checks": checks}


def get_capabilities(call: ApiCall) -> Any:
    """Return the capabilities document."""
    return capabilities(call.state.version)


def whoami(call: ApiCall) -> Any:
    """Return the caller's key without its secret."""
    key = call.key
    return {
        "key_id": key.key_id,
        "name": key.name,
        "scope": key.scope,
        "namespaces": key.namespaces,
        "unrestricted": key.namespaces is None,
        "expires_at": key.expires_at,
        "grants_version": 1,
        "inert_namespaces": [],
        "auth_enabled": not call.state.keys.is_empty,
    }


def _events_route(state: State, keepalive: float) -> Route:
    async def events(request: Request) -> Response:
        """Stream the events of the namespaces that the key may read."""
        try:
            key = state.keys.identify(
                request.headers.get("authorization"),
                request.query_params.get("api_key"),
                state.clock.now(),
            )
            authorise(key, "read")
        except ApiError as error:
            return error_response(error, with_code=state.version.is_v012)
        stream = state.events.stream(
            lambda agent_id: not agent_id or key.grants(namespace_of(agent_id)),
            lambda: state.modes,
            keepalive,
        )
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    return Route("/v1/events/stream", events, methods=["GET"])


# Files


def export(call: ApiCall) -> Any:
    """Return all memories of an agent as a file."""
    agent_id = call.authorised_agent("read", call.query.get("agent_id", ""))
    media_type, body = queries.export_file(
        call.memories_of(agent_id), call.query.get("format", "jsonl")
    )
    return Response(body, media_type=media_type, headers={"x-dakera-export-skipped": "0"})


def import_(call: ApiCall) -> Any:
    """Store the memories of an uploaded file under the ids in the file."""
    agent_id = call.authorised_agent("write", call.query.get("agent_id", ""))
    form = call.query.get("format", "jsonl")
    now = call.state.clock.now()
    started = int(now)
    imported, errors = 0, []
    items = _file_items(_first_file(call), form)
    for number, item in enumerate(items):
        try:
            fields = writes.check_item(call.state, item, now)
            writes.store(call.state, agent_id, fields, now)
            imported += 1
        except ApiError as error:
            errors.append(f"item {number + 1}: {error.message}")
    job: dict[str, Any] = {
        "job_id": f"job_{uuid.uuid4().hex}",
        "status": "done",
        "format": form,
        "total": len(items),
        "imported": imported,
        "skipped": len(items) - imported,
        "errors": errors,
        "started_at": started,
        "finished_at": int(call.state.clock.now()),
    }
    call.state.jobs[job["job_id"]] = job
    return job


def import_status(call: ApiCall) -> Any:
    """Return the report of an import."""
    call.require("read")
    job = call.state.jobs.get(call.path("job"))
    if job is None:
        raise missing("job", "no such import job", "JOB_NOT_FOUND")
    return job


def _first_file(call: ApiCall) -> bytes:
    """Return the bytes of the first part of a multipart body."""
    kind, _, rest = call.request.headers.get("content-type", "").partition(";")
    boundary = rest.partition("boundary=")[2].partition(";")[0].strip().strip('"')
    if kind.strip().lower() != "multipart/form-data" or not boundary:
        raise ApiError(415, "UNSUPPORTED_MEDIA_TYPE", "a multipart/form-data upload is required")
    parts = (b"\r\n" + call.raw).split(b"\r\n--" + boundary.encode())
    if len(parts) < 3:
        raise invalid("the upload has no file")
    return parts[1].partition(b"\r\n\r\n")[2]


def _file_items(data: bytes, form: str) -> list[Any]:
    if form not in ("jsonl", "mem0", "zep"):
        raise invalid("format must be jsonl, mem0 or zep")
    try:
        if form == "jsonl":
            rows = [orjson.loads(line) for line in data.splitlines() if line.strip()]
        else:
            rows = orjson.loads(data)["memories" if form == "mem0" else "messages"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise invalid(f"the file is not valid {form}") from None
    known = validation.ITEM_FIELDS
    items = []
    for row in rows:
        if not isinstance(row, dict):
            raise invalid(f"the file is not valid {form}")
        row.setdefault("content", row.get("memory"))
        item = {name: value for name, value in row.items() if name in known}
        # The server writes this key when it stores a memory, and refuses it from clients.
        if isinstance(item.get("metadata"), dict):
            item["metadata"].pop("_dakera_event_time", None)
        items.append(item)
    return items


# Background jobs and their settings


def autopilot_status(call: ApiCall) -> Any:
    """Return the settings and totals of deduplication."""
    call.require("admin")
    config = dict(call.state.autopilot)
    if not call.state.version.is_v0123:
        for newer in (
            "dedup_mode",
            "dedup_cross_session",
            "consolidate_cross_session",
            "trash_retention_hours",
        ):
            config.pop(newer)
    return {
        "config": config,
        "last_dedup_at": call.state.last_cycle.get("dedup"),
        "last_consolidation_at": None,
        "total_dedup_removed": call.state.totals["dedup_removed"],
        "total_consolidated": call.state.totals["consolidated"],
    }


def autopilot_config(call: ApiCall) -> Any:
    """Change settings of deduplication."""
    call.require("admin")
    changes = _check_settings(call, call.state.autopilot)
    if changes.get("dedup_mode") not in (None, "off", "report", "merge"):
        raise invalid("dedup_mode must be off, report or merge")
    config = call.state.configure("autopilot", changes)
    return {"success": True, "config": config, "message": "configuration updated"}


def decay_config(call: ApiCall) -> Any:
    """Return the settings of decay."""
    call.require("admin")
    return call.state.decay


def put_decay_config(call: ApiCall) -> Any:
    """Change settings of decay."""
    call.require("admin")
    config = call.state.configure("decay", _check_settings(call, call.state.decay))
    return {"success": True, "config": config, "message": "configuration updated"}


def _check_settings(call: ApiCall, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in the body; raise a 422 for an unknown name or a wrong type."""
    for name, value in call.body.items():
        number = isinstance(settings.get(name), (int, float)) and not isinstance(
            settings.get(name), bool
        )
        fits = (
            isinstance(value, (int, float)) if number else type(value) is type(settings.get(name))
        )
        if name not in settings or not fits:
            raise ApiError(422, "UNPROCESSABLE_CONTENT", f"{name} is not a valid setting")
    return dict(call.body)


def decay_stats(call: ApiCall) -> Any:
    """Return the totals of decay and expiry."""
    call.require("admin")
    totals = call.state.totals
    return {
        "total_decayed": totals["decayed"],
        "total_deleted": totals["decayed"] + totals["expired"],
        "last_cycle": call.state.last_cycle.get("decay"),
    }
