"""Which server is imitated: its version, and a choice for each behaviour nobody has documented.

The real server is closed source, so several answers are unknown. Each unknown is a field here; the
default is the behaviour a client must at least survive, the other values are the alternatives.
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
    """One choice per undocumented behaviour; frozen, so a change is always a whole new value."""

    existing_id: ExistingId = "replace"
    """A batch item whose id exists: replace the record, refuse the batch (409), or ignore it."""
    created_at_on_replace: Literal["reset", "keep"] = "reset"
    """Whether a replaced record jumps to the top of the listing or keeps its place."""
    metadata_update: Literal["replace", "merge"] = "replace"
    """What an update does with the metadata it brings."""
    over_limit: Literal["clamp", "reject"] = "clamp"
    """A listing limit above the maximum: silently lowered, or a 400."""
    forget_unknown: Literal["zero", "not_found"] = "zero"
    """Forgetting ids that do not exist: a count of zero, or a 404."""
    derived_children: Literal["none", "hidden", "leak"] = "none"
    """Sentence children of long memories: not made, made but hidden, or visible in reads."""
    dedup_on_store: bool = False
    """Whether a namespace without a policy of its own drops near-duplicates when they arrive."""
    strips_nul: bool = False
    """Whether U+0000 disappears from content."""
    unknown_agent: Literal["by_version", "empty", "not_found"] = "by_version"
    """Reading an agent that never stored: empty (from 0.12.3), or a 404 (before)."""
    metadata_max_bytes: int | None = None
    """Largest metadata as JSON in bytes; None for no cap, 65536 for the documented worst case."""
    decay_protects_above: float | None = None
    """Importance above which decay does nothing; the release notes hint at 0.8."""
    sessions_shape: Literal["envelope", "array"] = "envelope"
    """Whether the session listing is an object or a bare array."""
    lag_notice: Literal["memory", "vector", "none"] = "memory"
    """How a slow event consumer is told that it missed events."""
    seed: int = 0
    """Seed of everything arbitrary: order within one second, order of filter listings."""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"mode {name} must be one of {', '.join(allowed)}")

    def changed(self, changes: dict[str, Any]) -> Modes:
        """Return these modes with `changes` applied; ValueError names a mode that is unknown."""
        unknown = set(changes) - {field.name for field in fields(self)}
        if unknown:
            raise ValueError(f"unknown mode: {', '.join(sorted(unknown))}")
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the modes as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Version:
    """The version the server reports, and what it therefore has."""

    text: str

    @property
    def parts(self) -> tuple[int, ...]:
        """The numeric part, without a `-suffix`."""
        return tuple(int(part) for part in self.text.split("-", 1)[0].split("."))

    @property
    def is_v012(self) -> bool:
        """Error codes, capabilities and the health routes of 0.12."""
        return self.parts >= (0, 12, 0)

    @property
    def is_v0122(self) -> bool:
        """Agent creation, whoami, derived children hidden from listings, session touch."""
        return self.parts >= (0, 12, 2)

    @property
    def is_v0123(self) -> bool:
        """Warnings, truncation reports, empty answers for unknown agents, get without agent."""
        return self.parts >= (0, 12, 3)
