from __future__ import annotations

from typing import Any

import pytest

from cached_session.errors import InvalidArgument
from cached_session.remote.address import check_url, is_private
from tests.unit.remote.remote_support import CANARY


@pytest.mark.parametrize(
    ("url", "spelling"),
    [
        ("http://server.example", "http://server.example"),
        (" http://server.example/ ", "http://server.example"),
        ("HTTP://Server.Example:80/", "http://server.example"),
        ("https://server.example:443/base/", "https://server.example/base"),
        ("http://server.example:443", "http://server.example:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_a_server_has_one_spelling(url: str, spelling: str) -> None:
    """Acknowledgements refer to the address, so that spellings of one server must be equal."""
    assert check_url(url) == spelling


@pytest.mark.parametrize(
    "url",
    [
        "",
        "server.example",
        "ftp://server.example",
        "http://",
        "http://server.example:0",
        "http://server.example:port",
        "http://server.example/#part",
        "http://server.example/a b",
        "http://ser\nver.example",
        "http://[::1",
        None,
        7,
        b"http://server.example",
    ],
)
def test_an_address_without_a_host_is_refused(url: Any) -> None:
    """The error names the value and the form to use."""
    with pytest.raises(InvalidArgument, match="use the form http://host:port"):
        check_url(url)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    """It would be in every log line that names the server."""
    with pytest.raises(InvalidArgument, match="api_key") as caught:
        check_url(f"http://user:{CANARY}@server.example")
    assert CANARY not in str(caught.value)


def test_a_key_in_the_query_of_an_address_is_not_shown() -> None:
    """An address with a query is refused, and the query is not repeated."""
    with pytest.raises(InvalidArgument, match="without a query") as caught:
        check_url(f"http://127.0.0.1/?api_key={CANARY}")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://memory.example", True),
        ("http://localhost:3000", True),
        ("http://dev.localhost", True),
        ("http://127.0.0.1:3000", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:3000", True),
        ("http://192.168.0.7:3000", False),
        ("http://memory.example", False),
        ("http://localhost.example", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_only_this_machine_is_private_without_tls(url: str, private: bool) -> None:
    """Others cannot read plain HTTP to the loopback device; they can anywhere else."""
    assert is_private(url) is private
