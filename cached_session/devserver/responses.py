"""Responses of the development server: JSON bodies and the documented error body.

Every refusal is an `ApiError`. Only `error_response` converts an `ApiError` to a response, so every
route answers with the documented error body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


class ApiError(Exception):
    """A refused request: its HTTP status, machine-readable code and message."""

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
        """Return the documented error object without the fields that are not set."""
        body: dict[str, Any] = {"error": self.message, "code": self.code}
        if self.details is not None:
            body["details"] = self.details
        if self.resource is not None:
            body["resource"] = self.resource
        return body


def invalid(message: str, *, details: str | None = None) -> ApiError:
    """Return a 400: the request is invalid, and sending it again cannot succeed."""
    return ApiError(400, "INVALID_REQUEST", message, details=details)


def missing(resource: str, message: str, code: str = "VECTOR_NOT_FOUND") -> ApiError:
    """Return a 404 that names the kind of resource that was not found."""
    return ApiError(404, code, message, resource=resource)


def json_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return `body` as compact JSON; the order of keys and the texts do not change."""
    return Response(
        orjson.dumps(body),
        status_code=status,
        media_type="application/json",
        headers=dict(headers or {}),
    )


def error_response(error: ApiError, *, with_code: bool = True) -> Response:
    """Return the response for a refusal; servers before 0.12 send only the message."""
    headers = dict(error.headers)
    if error.status in (429, 503):
        # Both statuses always have this header: a client may need it to know how long to wait.
        headers.setdefault("Retry-After", "1")
    body = error.body() if with_code else {"error": error.message}
    return json_response(body, error.status, headers)
