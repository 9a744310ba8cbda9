from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.item_text import CONTENT_BYTES, role_and_text
from cached_session.journal.sqlite.codec import encode_item

fields = st.sampled_from(
    ["role", "type", "content", "text", "output", "name", "arguments", "summary", "refusal", "x"]
)
words = st.sampled_from(["user", "assistant", "function_call", "x_output", "reasoning", "hi"])
items = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(fields, inner, max_size=5),
    max_leaves=15,
)


@given(items)
def test_any_json_reads_as_something(item: Any) -> None:
    """Every JSON text gives a role and a text that is not empty and that UTF-8 can say."""
    role, text = role_and_text(json.dumps(item))
    assert role
    assert text
    assert "\x00" not in text
    text.encode()


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"role": "user", "content": "Hello"}, ("user", "Hello")),
        ({"role": "robot", "content": "Hello"}, ("item", "Hello")),
        (
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"text": "b"}]},
            ("assistant", "a\nb"),
        ),
        ({"role": "assistant", "content": [{"refusal": "no"}]}, ("assistant", "no")),
        (
            {"type": "function_call", "name": "look", "arguments": '{"a":1}', "call_id": "c"},
            ("tool", 'look({"a":1})'),
        ),
        ({"type": "function_call_output", "output": "42"}, ("tool", "42")),
        ({"type": "shell_call_output", "output": [{"text": "x"}]}, ("tool", "x")),
        ({"type": "reasoning", "summary": [{"text": "hm"}]}, ("reasoning", "hm")),
        ({"role": "user", "content": "nul\x00byte"}, ("user", "nul\ufffdbyte")),
        ({"role": "user", "content": "  "}, ("user", '{"role":"user","content":"  "}')),
        ("bare", ("item", '"bare"')),
        ([1], ("item", "[1]")),
    ],
)
def test_an_item_says_what_a_person_would_read(item: Any, said: tuple[str, str]) -> None:
    """Messages give their text, tools their call and their output, the rest its JSON."""
    assert role_and_text(json.dumps(item, separators=(",", ":"))) == said


@pytest.mark.parametrize("depth", [100, 254, 300, 5000])
@pytest.mark.parametrize("field", ["content", "output", "unknown"])
def test_deep_nesting_is_no_obstacle(depth: int, field: str) -> None:
    """An item nested past what the fast library writes still gives a text."""
    payload = f'{{"type":"x_output","{field}":{{"z":{"[" * depth}{"]" * depth}}}}}'
    assert role_and_text(payload)[1]


def test_an_item_that_was_stored_can_be_read_aloud() -> None:
    """What the codec accepts at its deepest, the push and the local search can put into words."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    payload, _ = encode_item({"role": "user", "content": {"z": deep}})
    assert role_and_text(payload) == ("item", payload)


def test_a_long_text_is_cut_within_the_limit_and_between_characters() -> None:
    """Readable text stays below what a server takes, and no character is torn."""
    _, text = role_and_text(json.dumps({"role": "user", "content": "é" + "😀" * 40_000}))
    assert len(text.encode()) <= CONTENT_BYTES + 10
    assert text.startswith("é😀")
    assert text.endswith("😀 (...)")


def test_what_needs_the_exact_codec_is_readable_too() -> None:
    """A lone surrogate is shown as a question mark, and a large number hides no text beside it."""
    payload, _ = encode_item({"role": "user", "content": "half \ud83d"})
    assert role_and_text(payload) == ("user", "half ?")
    payload, _ = encode_item({"role": "user", "content": "many", "n": 10**30})
    assert role_and_text(payload) == ("user", "many")
