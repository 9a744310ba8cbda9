"""The API key, kept out of every text and every exception that leaves the package.

A server may repeat the key in an answer, and an HTTP library in an error about a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["names_secret", "redact", "secrets_in"]

SHORTEST_SECRET = 4
"""Characters. A shorter key protects nothing, and would be found in any text."""
SHOWN_CHARACTERS = 300
"""Of a foreign text, at most."""
REPLACEMENT = "(the API key)"


def secrets_in(values: Iterable[object]) -> list[str]:
    """Return the keys among an API key and ``Authorization`` headers, with and without a scheme."""
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found += [value, value.removeprefix("Bearer ")]
    # The longest first, so that a header goes as a whole.
    secrets = {secret for secret in found if len(secret) >= SHORTEST_SECRET}
    return sorted(secrets, key=len, reverse=True)


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return the beginning of a foreign text, with each secret replaced."""
    for secret in secrets:
        text = text.replace(secret, REPLACEMENT)
    return text[:SHOWN_CHARACTERS]


def names_secret(error: BaseException, secrets: Iterable[str]) -> bool:
    """Return whether an exception, or one in its chain, holds a secret in its text or arguments."""
    texts = [f"{link} {link.args!r}" for link in _chain(error)]
    return any(secret in text for secret in secrets for text in texts)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
