"""Removal of the API key from every text and exception that leaves the package.

A server may repeat the key in an answer. An HTTP library may quote it in an error about a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["names_secret", "redact", "secrets_in"]

SHORTEST_SECRET = 4
"""Minimum number of characters of a key that is replaced. A shorter key protects nothing, and would
match ordinary text."""
SHOWN_CHARACTERS = 300
"""Maximum number of characters of a foreign text that a message shows."""
REPLACEMENT = "(the API key)"


def secrets_in(values: Iterable[object]) -> list[str]:
    """Return the secrets in an API key and ``Authorization`` headers, with and without a scheme."""
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found += [value, value.removeprefix("Bearer ")]
    # Sort the longest first, so that a whole header is replaced before the key in it.
    secrets = {secret for secret in found if len(secret) >= SHORTEST_SECRET}
    return sorted(secrets, key=len, reverse=True)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return the beginning of a foreign text, with each secret replaced."""
    for secret in secrets:
        text = text.replace(secret, REPLACEMENT)
    return text[:SHOWN_CHARACTERS]


def names_secret(error: BaseException, secrets: Iterable[str]) -> bool:
    """Return whether an exception or one of its causes has a secret in its text or arguments."""
    texts = [f"{link} {link.args!r}" for link in _chain(error)]
    return any(secret in text for secret in secrets for text in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
