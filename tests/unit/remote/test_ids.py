from __future__ import annotations

import pytest

from cached_session.history.ids import session_key
from cached_session.history.ops import Dot
from cached_session.remote.ids import (
    READABLE_VERSIONS,
    WIRE_VERSION,
    claim_id,
    dot_of,
    memory_id,
    namespace,
    placeholder_id,
    version_of,
)

KEY = session_key("talk")
DOT = Dot("abcdefghwriter", 7)


def test_a_part_after_the_first_has_its_number_in_the_id() -> None:
    """An item in one part has the shorter id."""
    whole = memory_id(KEY, DOT, 2)
    assert whole == f"cs2-{KEY[:12]}-abcdefghwriter-7-2"
    assert memory_id(KEY, DOT, 2, 1) == f"{whole}-1"


def test_an_id_begins_with_the_version_of_its_operation() -> None:
    """Operations of version 1 keep the ids under which servers hold them."""
    assert memory_id(KEY, DOT, 2, 1, 1) == f"cs1-{KEY[:12]}-abcdefghwriter-7-2-1"
    assert placeholder_id(KEY, DOT, 1) == f"cs1-{KEY[:12]}-abcdefghwriter-7-void"
    assert READABLE_VERSIONS[0] == WIRE_VERSION
    for version in READABLE_VERSIONS:
        assert version_of(memory_id(KEY, DOT, 0, version=version)) == version


def test_a_placeholder_has_an_id_of_its_own() -> None:
    """The operation may still be stored later, beside its placeholder."""
    ids = {memory_id(KEY, DOT, index) for index in range(3)}
    assert placeholder_id(KEY, DOT) not in ids
    assert version_of(placeholder_id(KEY, DOT)) == 2


def test_a_claim_note_is_skipped_by_readers() -> None:
    """Its id has no wire version that a reader of the history would recognize."""
    note = claim_id(KEY, DOT, 0, "claimer")
    assert note.startswith("csn1-")
    assert version_of(note) is None


@pytest.mark.parametrize(
    ("memory", "version"),
    [
        (memory_id(KEY, DOT, 0), 2),
        ("cs1-0123456789ab-x", 1),
        ("cs2-0123456789ab-x", 2),
        ("cs9999-0123456789ab-x", 9999),
        ("cs12345-0123456789ab-x", None),
        ("cs1-0123456789AB-x", None),
        ("mem_s0123456789abcdef01234567", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_the_version_is_read_from_an_id_of_ours(memory: object, version: int | None) -> None:
    """Any other value of the server is not one of our memories."""
    assert version_of(memory) == version


def test_the_namespace_of_an_agent_is_the_server_s() -> None:
    """Policies and grants name it."""
    assert namespace("cs-talk") == "_dakera_agent_cs-talk"


def test_an_id_names_its_operation() -> None:
    """Also that of a part, and of a placeholder, but none of another session or program."""
    for version in READABLE_VERSIONS:
        assert dot_of(memory_id(KEY, DOT, 2, version=version), KEY) == DOT
        assert dot_of(memory_id(KEY, DOT, 2, 1, version), KEY) == DOT
        assert dot_of(placeholder_id(KEY, DOT, version), KEY) == DOT
    assert dot_of(memory_id(session_key("other"), DOT, 2), KEY) is None
    for foreign in ("", "mem_1", claim_id(KEY, DOT, 0, "me"), memory_id(KEY, DOT, 2) + "-1-1"):
        assert dot_of(foreign, KEY) is None
