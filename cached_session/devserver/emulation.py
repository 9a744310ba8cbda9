"""The emulated server: its version, and a mode for each undocumented behaviour.

Dakera is closed source, and some of its behaviour is undocumented. Each such behaviour is a field
of `Modes`. A client must work with the default; the other values are plausible alternatives.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

ExistingId = Literal["replace", "refuse", "ignore"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "existing_id": ("replace", "refuse", "ignore"),
    "created_at_on_replace": ("reset", "keep"),
    "metadata_update": ("replace", "merge"),
    "over_limit": ("clamp", "reject"),
    "forget_unknown": ("zero", "not_found"),
    "derived_children": ("none", "hidden", "leak"),
    "unknown_agent": ("by_version", "empty", "not_found"),
    "sessions_shape": ("envelope", "array"),
    "lag_notice": ("memory", "vector", "none"),
}


@dataclass(frozen=True)
class Modes:
    """One choice for each undocumented behaviour. Immutable: `changed` returns a new object."""

    existing_id: ExistingId = "replace"
    """Effect of an existing id in a batch: replace the memory, refuse the batch, skip the item."""
    created_at_on_replace: Literal["reset", "keep"] = "reset"
    """Creation time of a replaced memory: `reset` sets a new one, so that it is listed first."""
    metadata_update: Literal["replace", "merge"] = "replace"
    """Effect of an update on the metadata: replace it, or merge the new fields into it."""
    over_limit: Literal["clamp", "reject"] = "clamp"
    """Effect of a listing limit above the maximum: lower it silently, or answer 400."""
    forget_unknown: Literal["zero", "not_found"] = "zero"
    """Answer if all ids to forget are unknown: a count of zero, or 404."""
    derived_children: Literal["none", "hidden", "leak"] = "none"
    """Memories derived from the sentences of a long memory: none, hidden, or visible in reads."""
    dedup_on_store: bool = False
    """True if a namespace without its own policy drops near-duplicates when they are stored."""
    strips_nul: bool = False
    """True if U+0000 is removed from content."""
    unknown_agent: Literal["by_version", "empty", "not_found"] = "by_version"
    """Answer to a read of an unknown agent: empty or 404; `by_version`: 404 only before 0.12.3."""
    metadata_max_bytes: int | None = None
    """Maximum bytes of metadata as JSON; None for no limit; 65536 emulates a strict server."""
    decay_protects_above: float | None = None
    """Importance above which memories do not decay; None if all memories decay. Dakera's release
    notes state 0.8."""
    sessions_shape: Literal["envelope", "array"] = "envelope"
    """Form of the session listing: an object (`envelope`) or an array."""
    lag_notice: Literal["memory", "vector", "none"] = "memory"
    """Form of the notice that a slow event consumer missed events."""
    seed: int = 0
    """Seed of arbitrary orders: of memories created in the same second, and of filter results."""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise ValueError(f"mode {name}={value!r} is not one of {', '.join(allowed)}")

    def changed(self, changes: dict[str, Any]) -> Modes:
        """Return a copy with `changes` applied.

        Raises:
            ValueError: a mode or its value is unknown.
        """
        unknown = set(changes) - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"unknown mode: {', '.join(sorted(unknown))}")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the modes as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Version:
    """The version that the server reports, and the features that it implies."""

    text: str

    @property
    def parts(self) -> tuple[int, ...]:
        """Return the numeric parts, without a suffix such as `-rc1`."""
        return tuple(int(part) for part in self.text.split("-", 1)[0].split("."))

    @property
    def is_v012(self) -> bool:
        """Return whether the server has error codes, capabilities and the health routes of 0.12."""
        return self.parts >= (0, 12, 0)

    @property
    def is_v0122(self) -> bool:
        """Return whether the server has agent creation, whoami and session touch.

        From this version on, listings leave out derived memories.
        """
        return self.parts >= (0, 12, 2)

    @property
    def is_v0123(self) -> bool:
        """Return whether the server has warnings, truncation reports and get without an agent.

        From this version on, reads of unknown agents are empty instead of a 404.
        """
        return self.parts >= (0, 12, 3)
