from __future__ import annotations

import pytest

from cached_session.remote.redact import names_secret, redact, secrets_in
from tests.unit.remote.remote_support import CANARY


def test_the_header_and_the_key_in_it_are_secrets() -> None:
    """The key is a secret as the caller gave it, and as the client sends it."""
    assert secrets_in([CANARY, f"Bearer {CANARY}", None]) == [f"Bearer {CANARY}", CANARY]


@pytest.mark.parametrize("value", [None, "", "abc", 7, b"bytes"])
def test_a_short_key_is_not_a_secret(value: object) -> None:
    """It would be found in any text, and replaced there."""
    assert secrets_in([value]) == []


def test_a_text_is_shortened_after_the_key_is_replaced() -> None:
    """A cut in the middle of a key would leave its beginning."""
    text = "x" * 290 + CANARY
    assert redact(text, [CANARY]) == ("x" * 290 + "(the API key)")[:300]


def test_an_exception_is_searched_with_its_chain() -> None:
    """A traceback shows every cause, so that each must be without the key."""
    error = ValueError("harmless")
    error.__context__ = OSError("no", CANARY)
    assert names_secret(error, [CANARY])
    assert not names_secret(ValueError("harmless"), [CANARY])
    assert not names_secret(error, [])
