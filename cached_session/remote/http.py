"""Requests to one Dakera server: one attempt each, with a deadline and a size limit.

This module raises every failure as a `RemoteError`. The text of the error never contains the API
key.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from cached_session.remote.address import check_url
from cached_session.remote.bounded_body import ACCEPTED_ENCODING, TooLarge, read_body
from cached_session.remote.errors import RemoteError, Verdict, judge, retry_after, unix_time
from cached_session.remote.json_body import decode, decode_in_slices
from cached_session.remote.redact import SHOWN_CHARACTERS, names_secret, redact, secrets_in
from cached_session.remote.sdk import http_client_of

if TYPE_CHECKING:
    from dakera import AsyncDakeraClient

__all__ = ["Answer", "DakeraHttp"]

MOST_BYTES = 1024 * 1024
"""Size limit in bytes of an answer without memories, such as a policy or an error."""
MEMORY_BYTES = 128 * 1024
"""Bytes added to the size limit for each requested memory. The server allows 100,000 bytes of
content, and the metadata of this package takes less than 28 KiB."""


@dataclass(frozen=True)
class Answer:
    """A 2xx answer."""

    body: Any
    """Decoded JSON; None if the answer has no body."""
    headers: Mapping[str, str]


class DakeraHttp:
    """A sender of requests that uses the HTTP client of one SDK client."""

    def __init__(self, client: AsyncDakeraClient, deadline: float) -> None:
        """Use the HTTP client of ``client``.

        ``deadline`` is the time limit in seconds for a request and its answer.
        """
        self.server = check_url(client.base_url)
        """The base URL."""
        self.answered = 0
        """Number of 2xx answers so far."""
        self.server_second = 0
        """The server's time in the last 2xx answer, in Unix seconds; 0 if it is unknown."""
        self._sdk = client
        self._http = http_client_of(client)
        self._deadline = deadline

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> Answer:
        """Send one request without retries, and return its 2xx answer.

        Args:
            method: HTTP method.
            path: Path below the base URL.
            body: JSON, already encoded.
            params: Query parameters.
            memories: Maximum number of memories in the answer; sets the size limit.

        Raises:
            RemoteError: no 2xx answer with valid JSON arrived.
        """
        limit = MOST_BYTES + memories * MEMORY_BYTES
        status, headers, data = await self._send(method, path, body, params, limit)
        if not 200 <= status < 300:
            raise self._refusal(status, headers, data)
        try:
            answer = Answer(await decode_in_slices(data), headers)
        except (ValueError, RecursionError):
            shown = self._redacted(f"{data[:60]!r}")
            reason = (
                f"{self.server} answered {path} with something that is not JSON ({shown}); "
                "is this a Dakera server?"
            )
            raise RemoteError(Verdict.UNREACHABLE, reason, status=status) from None
        self.answered += 1
        self.server_second = int(unix_time(headers.get("date", "")) or 0)
        return answer

    async def json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> Any:
        """Send one request, and return the decoded body of its 2xx answer; see `request`."""
        return (await self.request(method, path, body, params, memories=memories)).body

    async def stream(self, path: str, silence: float) -> AsyncGenerator[bytes]:
        """Open an event stream and yield its bytes until the server closes it.

        Raises:
            RemoteError: the server has no such stream, the connection broke, or no byte arrived for
                ``silence`` seconds.
        """
        import httpx

        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        timeout = httpx.Timeout(silence, connect=self._http.timeout.connect)
        request = self._http.build_request(
            "GET", f"{self.server}{path}", headers=headers, timeout=timeout
        )
        try:
            response = await self._http.send(request, stream=True, follow_redirects=False)
            try:
                kind = response.headers.get("content-type", "")
                if response.status_code != 200 or not kind.startswith("text/event-stream"):
                    raise self._no_stream(response.status_code)
                async for chunk in response.aiter_bytes():
                    yield chunk
            finally:
                await response.aclose()
        except RemoteError:
            raise
        except Exception as error:  # noqa: BLE001 - as in `_send`
            raise self._failure(error) from self._cause(error)

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None,
        params: Mapping[str, Any] | None,
        limit: int,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; return the status, headers and body of its answer.

        An answer with an error status is returned in the same way.
        """
        headers = {"Content-Type": "application/json", "Accept-Encoding": ACCEPTED_ENCODING}
        try:
            # This deadline covers the whole exchange. The client's timeouts restart at each byte.
            with anyio.fail_after(self._deadline):
                request = self._http.build_request(
                    method, f"{self.server}{path}", content=body, params=params, headers=headers
                )
                # Do not follow a redirect: the key must not be sent to another host.
                response = await self._http.send(request, stream=True, follow_redirects=False)
                try:
                    return (
                        response.status_code,
                        response.headers,
                        await read_body(response, limit),
                    )
                finally:
                    await response.aclose()
        except TimeoutError:
            reason = f"no answer from {self.server} in {self._deadline:g} s"
            raise RemoteError(Verdict.UNREACHABLE, reason) from None
        except TooLarge as error:
            reason = f"the answer of {self.server} to {path} is too long: {error}"
            raise RemoteError(Verdict.UNREACHABLE, reason) from None
        except Exception as error:  # noqa: BLE001 - a caller's transport or auth may raise anything
            raise self._failure(error) from self._cause(error)

    def unexpected(self, path: str, body: object) -> RemoteError:
        """Return the error for a 2xx answer whose JSON does not have the form of the route."""
        shown = self._redacted(f"{body!r:.120}")
        return RemoteError(
            Verdict.UNREACHABLE,
            f"{self.server} answered {path} in an unexpected form ({shown}); "
            "is this a Dakera server?",
        )

    def _refusal(self, status: int, headers: Mapping[str, str], data: bytes) -> RemoteError:
        """Return the error for an answer whose status is not 2xx."""
        try:
            body = decode(data)
        except (ValueError, RecursionError):
            body = data[:SHOWN_CHARACTERS].decode(errors="replace")
        message, code = body, None
        if isinstance(body, dict):
            code = body.get("code")
            details = body.get("details")
            message = f"{body.get('error')}{f' ({details})' if details else ''}"
        if status == 404 and not (isinstance(body, dict) and "error" in body):
            # Every error of a Dakera server has this field, so a proxy or another program answered.
            # Do not treat its 404 as "not found": all memories would count as deleted.
            code = "ROUTE_NOT_FOUND"
        if 300 <= status < 400:
            message = "it redirects to another address, which is not followed; use that address"
        code = code if isinstance(code, str) else None
        verdict, scope = judge(status, code)
        head = f"[{status}] {code[:60]}" if code else f"[{status}]"
        shown = self._redacted(f"{head}: {message or 'no reason given'}")
        return RemoteError(
            verdict,
            f"{self.server}: {shown}",
            scope=scope,
            retry_after=retry_after(headers, time.time()),
            status=status,
        )

    def _no_stream(self, status: int) -> RemoteError:
        """Return the error for an answer that is not an event stream."""
        status = 501 if status == 200 else status
        verdict, scope = judge(status)
        reason = f"{self.server} has no event stream (status {status}); polling continues"
        return RemoteError(verdict, reason, scope=scope, status=status)

    def _failure(self, error: Exception) -> RemoteError:
        """Return the error for a request without an answer."""
        import httpx

        reason = str(error) or type(error).__name__
        outcome = "the server may have acted on the request"
        if isinstance(error, httpx.TimeoutException):
            reason = f"no answer from {self.server}: {reason}"
        elif isinstance(error, httpx.ConnectError):
            reason = f"cannot connect to {self.server}: {reason}"
        elif isinstance(error, (httpx.NetworkError, httpx.RemoteProtocolError)):
            reason = f"the connection to {self.server} broke: {reason}"
        else:
            reason = f"the request to {self.server} failed: {reason}"
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)):
            outcome = "nothing was sent"
        verdict, scope = judge(None)
        return RemoteError(verdict, f"{self._redacted(reason)}; {outcome}", scope=scope)

    def _cause(self, error: Exception) -> Exception | None:
        """Return the exception to chain; None for an everyday failure, or if it names the key."""
        import httpx

        is_everyday = isinstance(error, httpx.TransportError)
        return None if is_everyday or names_secret(error, self._secrets()) else error

    def _redacted(self, text: str) -> str:
        return redact(text, self._secrets())

    def _secrets(self) -> list[str]:
        """Return the client's current API key and the ``Authorization`` header that it sends."""
        return secrets_in([self._sdk.api_key, self._http.headers.get("authorization")])
