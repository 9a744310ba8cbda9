"""Validated connection settings of a server, and opening a connection with them."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cached_session import telemetry
from cached_session.errors import InvalidArgument
from cached_session.options import SyncOptions
from cached_session.remote.address import check_url, is_private
from cached_session.remote.dakera import DakeraRemote, connect
from cached_session.remote.sdk import check_client

__all__ = ["Offload", "RemoteSpec", "remove_spec"]

Offload = Callable[..., Awaitable[Any]]
"""Function that runs another function, with arguments, without blocking the event loop."""


@dataclass(frozen=True)
class RemoteSpec:
    """Connection settings of a server, independent of connections and of event loops."""

    server: str
    api_key: str | None = field(default=None, repr=False)
    client: Any = field(default=None, repr=False, compare=False)
    move: bool = field(default=False, compare=False)
    """True if a journal that syncs with another server may move to this one."""

    @classmethod
    def make(
        cls, url: object, api_key: object, client: object, *, move: object = False
    ) -> RemoteSpec | None:
        """Validate a constructor's arguments; return None for local-only use.

        Raises:
            InvalidArgument: an argument is invalid, or two arguments exclude each other.
        """
        if not isinstance(move, bool):
            raise InvalidArgument(f"move={move!r:.80} must be True or False")
        if client is not None:
            if url is not None or api_key is not None:
                raise InvalidArgument("pass either client or url and api_key, not both")
            server = check_client(client)
            _warn_of_plain_http(server, getattr(client, "api_key", None))
            return cls(server, client=client, move=move)
        if url is None:
            if api_key is not None:
                raise InvalidArgument(
                    "api_key was passed without url; pass the address of the server too"
                )
            return None
        if api_key is not None and not (
            isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()
        ):
            # The key is a secret, so the message does not show it.
            raise InvalidArgument("api_key must be a string of printable ASCII characters or None")
        server = check_url(url)
        _warn_of_plain_http(server, api_key)
        return cls(server, api_key or None, move=move)

    def is_same_server(self, other: RemoteSpec) -> bool:
        """Return whether both settings use the same server and the same key.

        The keys of injected clients are not compared.
        """
        keys = self.api_key == other.api_key or self.client is not None or other.client is not None
        return self.server == other.server and keys

    def shares_client(self, other: RemoteSpec | None) -> bool:
        """Return whether both settings use the same injected client.

        The owner of an injected client may close the client at any time.
        """
        return other is not None and self.client is not None and self.client is other.client

    async def open(
        self, options: SyncOptions, offload: Offload = asyncio.to_thread
    ) -> DakeraRemote:
        """Open a remote for the running event loop.

        ``offload`` runs the blocking calls in a thread.
        """
        # Importing the SDK takes a few hundred milliseconds.
        await offload(__import__, "dakera")
        await offload(telemetry.load)
        if self.client is not None:
            return DakeraRemote(self.client, options, owned=False)
        # Making a client reads all certificates that the system trusts, in about 20 milliseconds.
        remote: DakeraRemote = await offload(connect, self.server, self.api_key, options)
        return remote


def remove_spec(specs: Sequence[RemoteSpec], gone: RemoteSpec) -> list[RemoteSpec]:
    """Return all specs except ``gone``, by identity: equal specs belong to other sessions."""
    for position, spec in enumerate(specs):
        if spec is gone:
            return [*specs[:position], *specs[position + 1 :]]
    return list(specs)


def _warn_of_plain_http(server: str, api_key: object) -> None:
    """Warn, once for each server and process, if anyone on the network can read the key."""
    if not api_key or is_private(server) or server in _warned:
        return
    _warned.add(server)
    warnings.warn(
        f"the API key for {server} is sent unencrypted; use https, or a tunnel to a local port",
        UserWarning,
        stacklevel=5,
    )


_warned: set[str] = set()
