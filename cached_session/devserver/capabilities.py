"""The capabilities document that a server of a given version returns."""

from __future__ import annotations

from typing import Any

from cached_session.devserver import validation
from cached_session.devserver.emulation import Version
from cached_session.devserver.sessions import IDLE_TIMEOUT_SECONDS


def capabilities(version: Version) -> dict[str, Any]:
    """Return the capabilities document of a server version.

    From server version 0.12.2 on, the document has version 2, with naming and session rules.
    """
    document: dict[str, Any] = {
        "capabilities_version": 2 if version.is_v0122 else 1,
        "server_version": version.text,
        "api_versions": ["v1"],
        "default_model": "bge-large",
        "models": [
            {
                "name": "bge-large",
                "aliases": [],
                "dimension": 1024,
                "max_seq_length": 512,
                "effective_max_seq_length": validation.WINDOW_TOKENS,
                "active": True,
                "modality": "text",
            }
        ],
        "index_kinds": ["hnsw", "flat"],
        "distance_metrics": ["cosine", "euclidean", "dot_product"],
        "search_mode": "hybrid",
        "query_languages": ["en"],
        "records": {"enabled": False},
        "attachments": {"enabled": False},
        "vision": {"enabled": False},
        "reembed_pending": False,
    }
    if version.is_v0122:
        document.update(
            auth={
                "prefix_patterns": True,
                "sessions_by_agent": True,
                "key_update": True,
                "rotation_grace_max_secs": 604_800,
                "max_grants": 100,
                "max_grant_len": 255,
            },
            naming=_naming(version),
            sessions={
                "idle_timeout_secs": IDLE_TIMEOUT_SECONDS,
                "max_idle_timeout_secs": validation.MAX_IDLE_TIMEOUT_SECONDS,
                "touch": True,
                "ended_reason": True,
            },
        )
    if version.is_v0123:
        document["documents"] = {"enabled": False}
    return document


def _naming(version: Version) -> dict[str, Any]:
    naming: dict[str, Any] = {
        "agent_id_pattern": _anchored(validation.AGENT_ID.pattern),
        "agent_id_max_bytes": validation.MAX_AGENT_ID_BYTES,
        "agent_namespace_prefix": validation.AGENT_PREFIX,
        "agent_namespace_max_bytes": 255,
        "namespace_pattern": _anchored(validation.NAMESPACE.pattern),
        "namespace_max_bytes": 128,
        "reserved_prefixes": list(validation.RESERVED_PREFIXES),
        "internal_namespaces": ["_dakera_embedding_models"],
        "internal_prefixes": ["_dakera_"],
    }
    if version.is_v0123:
        naming["session_id_pattern"] = _anchored(validation.SESSION_ID.pattern)
        naming["session_id_max_bytes"] = validation.MAX_SESSION_ID_BYTES
    return naming


def _anchored(pattern: str) -> str:
    return f"^{pattern.removesuffix(chr(92) + 'Z')}$"
