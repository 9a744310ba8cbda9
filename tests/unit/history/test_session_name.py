"""Names of sessions with and without a key prefix."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cached_session.history.ids import agent_id, session_key
from cached_session.history.session_name import (
    identity_fields,
    quoted_name,
    session_name,
    split_name,
)
from cached_session.history.session_ref import SessionRef
from tests.hypothesis_profiles import examples

TRICKY = st.text(st.sampled_from("\x1f0123:ab\ud800"), max_size=14)
"""Texts that often look like names with a prefix."""
TEXTS = TRICKY | st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


@given(TEXTS, TEXTS)
@examples(1000)
@example("", "\x1f0::\x1f1:a:b")
@example("", "\x1f1:a")
@example("a", "")
@example("\x1f1:a:b", "\x1f1:a:b")
def test_a_name_contains_prefix_and_id(prefix: str, session_id: str) -> None:
    """Prefix and id are read back from the name, so different pairs have different names."""
    assert split_name(session_name(prefix, session_id)) == (prefix, session_id)


@given(TEXTS)
@examples(1000)
@example("\x1f0::a")
@example("\x1f0::\x1f1:ab:c")
@example("\x1f1:a:b")
@example("\x1f01:a:b")
@example("\x1f999999999:a")
@example("\x1f" + "9" * 5000 + ":a")
def test_each_string_is_the_name_of_one_session(name: str) -> None:
    """A name from a journal of any age is read, and is the name of what was read."""
    assert session_name(*split_name(name)) == name


@given(TEXTS)
@examples(300)
def test_a_session_without_prefix_has_its_id_as_name(session_id: str) -> None:
    """Only an id that reads as a name with a prefix has another name."""
    name = session_name("", session_id)
    if split_name(session_id)[0] or name != session_id:
        assert session_id.startswith("\x1f")
        assert name == f"\x1f0::{session_id}"
    else:
        assert name == session_id


@given(TEXTS, TEXTS)
@examples(300)
def test_the_agent_of_a_session_is_its_own(prefix: str, session_id: str) -> None:
    """The agent id ends in the hash of the name, has legal characters only, and is short enough."""
    name = session_name(prefix, session_id)
    agent = agent_id(name)
    assert agent.endswith(f"-{session_key(name)}")
    assert agent.startswith("cs-")
    assert agent.isascii()
    assert agent.replace("-", "").replace("_", "").replace(".", "").isalnum()


def test_the_longest_agent_id_is_legal() -> None:
    """The longest prefix and a long id leave the agent id below the server's limit."""
    assert len(agent_id(session_name("p" * 200, "i" * 5000))) < 241


def test_the_agent_id_shows_prefix_and_id() -> None:
    """A person, and a pattern of a key's grants, can recognise both."""
    assert agent_id(session_name("shop", "user/1")).startswith("cs-shop-user-1-")
    assert agent_id(session_name("???", "user/1")).startswith("cs-user-1-")


def test_a_reference_has_all_names() -> None:
    """A reference is made from the name alone."""
    name = session_name("shop", "1")
    ref = SessionRef.of(name)
    assert (ref.name, ref.prefix, ref.session_id) == (name, "shop", "1")
    assert (ref.key, ref.agent) == (session_key(name), agent_id(name))
    assert SessionRef.of("1").key != ref.key


@pytest.mark.parametrize(
    ("prefix", "text"), [("", "'1'"), ("shop", "'1' with key prefix 'shop'")], ids=["none", "shop"]
)
def test_texts_and_fields_contain_no_internal_name(prefix: str, text: str) -> None:
    """Errors and logs show the id, and the prefix if there is one."""
    name = session_name(prefix, "1")
    assert quoted_name(name) == text
    assert identity_fields(name) == {"session": "1", "key_prefix": prefix}
