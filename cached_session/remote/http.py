"""One request to a server and its answer: bounded, with a deadline, and every foreign error mapped.

Bodies are decoded by the fast JSON library, long lists in slices. Not in a thread: the library
keeps the interpreter's lock for the whole of a call, so that the event loop waits all the same. No
text that leaves this module has the key in it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import orjson

from cached_session.remote.address import check_url
from cached_session.remote.answers import Bounded, TooLarge, retry_after
from cached_session.remote.errors import RemoteError, Verdict, judge

if TYPE_CHECKING:
    from dakera import AsyncDakeraClient

__all__ = ["Exchange"]

SLICE_BYTES = 64 * 1024
"""Of a list decoded at a time: a few hundred microseconds of work."""
BETWEEN = b'},{"'
"""Where a list of objects can be taken apart. In a string it would end the string, and in an object
it stands between unclosed braces: what is cut in a wrong place is no JSON on either side."""
MOST_BYTES = 1024 * 1024
"""Of an answer to a request that names no memories: a policy, an error."""
MEMORY_BYTES = 128 * 1024
"""More for each memory that was asked for: 100,000 bytes of content are the server's own limit, and
our metadata takes less than 28 KiB."""
SECRET_LENGTH = 4
"""A shorter key is no secret, and would be found in any text."""
SAID_CHARACTERS = 300
"""Of a server's words in a reason."""


class Exchange:
    """Requests over one SDK client. The SDK's own retries are off: its caller decides when to send
    again."""

    def __init__(self, client: AsyncDakeraClient, deadline: float) -> None:
        """``deadline``: seconds for a whole exchange."""
        self.client = client
        self._deadline = deadline
        self.answered = 0
        """How many 2xx answers have come."""

    @property
    def server(self) -> str:
        """The base URL."""
        return check_url(self.client.base_url)

    async def json(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> Any:
        """One attempt; the decoded body of a 2xx answer. ``memories``: how many it may be about.

        Raises:
            RemoteError: anything else.
        """
        answer, _ = await self.full(method, path, body, params, memories=memories)
        return answer

    async def full(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        params: dict[str, Any] | None = None,
        *,
        memories: int = 0,
    ) -> tuple[Any, Mapping[str, str]]:
        """The decoded body of a 2xx answer, and its headers; see `json`."""
        try:
            # A deadline for the whole exchange: the client's own timeouts run between bytes.
            with anyio.fail_after(self._deadline):
                response = await _once(self.client, MOST_BYTES + memories * MEMORY_BYTES)._request(
                    method,
                    path,
                    params=params,
                    content=body,
                    headers={"Content-Type": "application/json"},
                    raw=True,
                )
        except TimeoutError as error:
            raise RemoteError(
                Verdict.UNREACHABLE, f"no answer from {self.server} in {self._deadline:g} s"
            ) from error
        except asyncio.CancelledError:
            raise
        except TooLarge as error:
            raise RemoteError(
                Verdict.UNREACHABLE, f"the answer of {self.server} to {path} is too long: {error}"
            ) from error
        except Exception as error:  # noqa: BLE001 - raised as ours; the cause goes if it tells the key
            raise self.mapped(error) from self._tellable(error)
        data: bytes = response.content
        if not 200 <= response.status_code < 300:
            try:
                told = _decode(data)
            except (ValueError, RecursionError):
                told = data[:SAID_CHARACTERS].decode(errors="replace")
            asked = retry_after(response.headers, time.time())
            raise self._refused(response.status_code, told, asked)
        try:
            answer = await _decoded(data)
            self.answered += 1
            return answer, response.headers
        except (ValueError, RecursionError) as error:
            said = self._shown(f"{data[:60]!r}")
            raise RemoteError(
                Verdict.UNREACHABLE,
                f"{self.server} answered {path} with something that is not JSON "
                f"({said}); is this a Dakera server?",
                status=response.status_code,
            ) from error

    def _refused(self, status: int, told: object, asked: float | None) -> RemoteError:
        """The verdict on an answer that is no yes."""
        said, code = told, None
        if isinstance(told, dict):
            code = told.get("code")
            details = told.get("details")
            said = f"{told.get('error')}{f' ({details})' if details else ''}"
        if status == 404 and not (isinstance(told, dict) and "error" in told):
            # Not how Dakera speaks: something in front of it, or in its place. Taken for an answer
            # it would say that everything is gone.
            code = "ROUTE_NOT_FOUND"
        code = code if isinstance(code, str) else None
        verdict, scope = judge(status, code)
        head = f"[{status}] {code[:60]}" if code else f"[{status}]"
        words = self._shown(f"{head}: {said or 'no reason given'}")
        return RemoteError(
            verdict,
            f"{self.server}: {words}",
            scope=scope,
            retry_after=asked,
            status=status,
        )

    def mapped(self, error: Exception) -> RemoteError:
        """The verdict on an exception of the SDK, or of what lies under it."""
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            # A client that judges answers itself.
            after = getattr(error, "retry_after", None)
            asked = float(after) if isinstance(after, (int, float)) else None
            return self._refused(status, getattr(error, "response_body", None), asked)
        verdict, scope = judge(None)
        said = self._shown(str(error) or type(error).__name__)
        return RemoteError(verdict, f"{self.server}: {said}", scope=scope)

    def nonsense(self, what: str, answer: object) -> RemoteError:
        """The verdict on an answer of another form than it has to have."""
        said = self._shown(f"{answer!r:.120}")
        return RemoteError(
            Verdict.UNREACHABLE, f"the server's answer to {what} makes no sense: {said}"
        )

    def _shown(self, text: str) -> str:
        """A foreign text as it may be told: short, and without the key, should it be in there."""
        for secret in _secrets(self.client):
            text = text.replace(secret, "(the key)")
        return text[:SAID_CHARACTERS]

    def _tellable(self, error: BaseException) -> BaseException | None:
        """An exception as the cause of ours: not if its own text, or its causes', has the key."""
        link: BaseException | None = error
        while link is not None:
            told = f"{link} {link.args!r}"
            if any(secret in told for secret in _secrets(self.client)):
                return None
            link = link.__cause__ or link.__context__
        return error


async def _decoded(data: bytes) -> Any:
    if len(data) <= SLICE_BYTES or not data.startswith(b"[{"):
        return _decode(data)
    found: list[Any] = []
    start = 1
    while start:
        cut = data.find(BETWEEN, start + SLICE_BYTES)
        end = cut + 1 if cut >= 0 else len(data)
        try:
            found += orjson.loads(b"[%b%b" % (data[start:end], b"]" if cut >= 0 else b""))
        except orjson.JSONDecodeError:
            return _decode(data)
        start = end + 1 if cut >= 0 else 0
        await anyio.lowlevel.checkpoint()
    return found


def _decode(data: bytes) -> Any:
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Lone surrogates in somebody else's memory must not hide ours.
        return json.loads(data)


def _once(client: AsyncDakeraClient, most: int) -> AsyncDakeraClient:
    """The same client and connections for one attempt whose answer has at most so many bytes, and
    is handed over as it is: status, headers and body."""
    import httpx
    from dakera.models import RetryConfig

    single = copy.copy(client)
    single._retry_config = RetryConfig(max_retries=1)
    if isinstance(getattr(client, "_client", None), httpx.AsyncClient):
        single._client = Bounded(client._client, most)  # type: ignore[assignment]
        single._handle_response = _as_it_is  # type: ignore[method-assign]
    return single


def _as_it_is(response: Any, raw: bool = False) -> Any:  # noqa: ARG001 - the SDK's signature
    return response


def _secrets(client: AsyncDakeraClient) -> list[str]:
    """What must not be told: the key, as the client knows it and as it sends it."""
    found = [getattr(client, "api_key", None)]
    headers = getattr(getattr(client, "_client", None), "headers", {})
    sent = headers.get("authorization", "")
    found += [sent, sent.removeprefix("Bearer ")]
    return [secret for secret in found if isinstance(secret, str) and len(secret) >= SECRET_LENGTH]
