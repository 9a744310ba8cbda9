"""What an answer of the development server looks like: JSON bytes and the error body.

Every refusal in the package is an `ApiError`; the one place that turns it into a response is
`error_response`, so no route can answer with anything but the documented error body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


class ApiError(Exception):
    """A refusal with a status and a machine-readable code; carried to the edge, never swallowed."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: str | None = None,
        resource: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.resource = resource
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the documented error object, without the fields that are not set."""
        body: dict[str, Any] = {"error": self.message, "code": self.code}
        if self.details is not None:
            body["details"] = self.details
        if self.resource is not None:
            body["resource"] = self.resource
        return body


def invalid(message: str, *, details: str | None = None) -> ApiError:
    """Return the 400 for a request that can never succeed as it is."""
    return ApiError(400, "INVALID_REQUEST", message, details=details)


def missing(resource: str, message: str, code: str = "VECTOR_NOT_FOUND") -> ApiError:
    """Return the 404 that names what was missing."""
    return ApiError(404, code, message, resource=resource)


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `body` as compact JSON; key order and text are kept exactly."""
    return Response(
        orjson.dumps(body),
        status_code=status,
        media_type="application/json",
        headers=dict(headers or {}),
    )


def error_response(error: ApiError, *, with_code: bool = True) -> Response:
    """Return the response of a refusal; servers before 0.12 send the message alone."""
    headers = dict(error.headers)
    if error.status in (429, 503):
        # Both always carry it: a client may rely on being told how long to wait.
        headers.setdefault("Retry-After", "1")
    body = error.body() if with_code else {"error": error.message}
    return json_response(body, error.status, headers)
