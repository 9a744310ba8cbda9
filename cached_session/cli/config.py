"""The configuration file: defaults of command-line options, in TOML.

    url = "https://dakera.example"
    api_key = "dk-..."
    journal = "/var/lib/agent/sessions.db"
    key_prefix = "support"

An option overrides the environment, and the environment overrides the file.
"""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs

from cached_session.errors import CachedSessionError

__all__ = ["ConfigError", "Settings", "default_path", "load"]


class ConfigError(CachedSessionError):
    """The configuration file cannot be used."""


@dataclass(frozen=True)
class Settings:
    """Path of the journal, address of the server, API key, and key prefix of the sessions."""

    journal: str | None = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    key_prefix: str | None = None

    def overridden_by(
        self,
        journal: Path | None,
        url: str | None,
        api_key: str | None,
        key_prefix: str | None,
    ) -> Settings:
        """Return these settings, overridden by the options that are given."""
        return Settings(
            journal=str(journal) if journal else self.journal,
            url=url or self.url,
            api_key=api_key or self.api_key,
            # An empty prefix is a choice: the sessions without a prefix.
            key_prefix=self.key_prefix if key_prefix is None else key_prefix,
        )


def default_path() -> Path:
    """Return the path of the file that is read without ``--config``."""
    return platformdirs.user_config_path("cached_session") / "config.toml"


def load(path: Path | None) -> tuple[Settings, str | None]:
    """Return the settings of a file, and a warning if other users can read the key in it.

    Raises:
        ConfigError: the given file does not exist, or a file cannot be read or is invalid.
    """
    named, path = path is not None, path or default_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if named:
            raise ConfigError(f"there is no configuration file at {path}") from error
        return Settings(), None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error}") from error
    settings = _validate(path, _parse(path, text))
    if settings.api_key and os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        return (
            settings,
            f"other users of this machine can read the API key in {path}; run: chmod 600 {path}",
        )
    return settings, None


def _parse(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: dict[str, Any] = tomllib.loads(text)
        return found
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration file {path} is not valid TOML: {error}") from error


def _validate(path: Path, found: dict[str, Any]) -> Settings:
    known = [spec.name for spec in fields(Settings)]
    for name, value in found.items():
        if name not in known:
            raise ConfigError(
                f"{path} has the unknown setting {name!r}; the settings are {', '.join(known)}"
            )
        if not isinstance(value, str):
            # Do not show the value, because it may be a secret without quotes.
            raise ConfigError(
                f"{path} sets {name} to a value that is not a string; put it in quotes"
            )
    return Settings(**found)
