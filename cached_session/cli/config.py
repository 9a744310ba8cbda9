"""The configuration file: a few lines of TOML that stand for options nobody wants to type.

    url = "https://dakera.example"
    api_key = "dk-..."
    journal = "/var/lib/agent/sessions.db"

An option beats the environment, the environment beats the file.
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
    """Where the journal is and which server it syncs with."""

    journal: str | None = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def over(self, journal: Path | None, url: str | None, api_key: str | None) -> Settings:
        """These settings with what the command line and the environment say."""
        return Settings(
            journal=str(journal) if journal else self.journal,
            url=url or self.url,
            api_key=api_key or self.api_key,
        )


def default_path() -> Path:
    """Where the file is looked for if nobody names another."""
    return platformdirs.user_config_path("cached_session") / "config.toml"


def load(path: Path | None) -> tuple[Settings, str | None]:
    """The settings of a file, and a warning if others can read the key in it.

    Raises:
        ConfigError: the file was named and is not there, or it makes no sense.
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
    settings = _settings(path, _parsed(path, text))
    if settings.api_key and os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        return settings, f"others on this machine can read the key in {path}: chmod 600 {path}"
    return settings, None


def _parsed(path: Path, text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found: dict[str, Any] = tomllib.loads(text)
        return found
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration file {path} is no TOML: {error}") from error


def _settings(path: Path, found: dict[str, Any]) -> Settings:
    known = [spec.name for spec in fields(Settings)]
    for name, value in found.items():
        if name not in known:
            raise ConfigError(
                f"{path} sets {name!r}, which is no setting; known are {', '.join(known)}"
            )
        if not isinstance(value, str):
            # The value may be a secret in the wrong shape: it is not shown.
            raise ConfigError(f"{path} sets {name} to something that is no text in quotes")
    return Settings(**found)
