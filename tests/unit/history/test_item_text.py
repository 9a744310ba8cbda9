from __future__ import annotations

import base64
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
def test_any_json_has_a_role_and_a_text(item: Any) -> None:
    """The text of any JSON value is not empty, and UTF-8 can encode it."""
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
def test_an_item_reads_as_a_person_expects(item: Any, said: tuple[str, str]) -> None:
    """Messages give their text, tools their call and their output, and other items their JSON."""
    assert role_and_text(json.dumps(item, separators=(",", ":"))) == said


PICTURE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 4).decode()
BLOB = PICTURE.partition(",")[2]
LINES = "\n".join(BLOB[start : start + 76] for start in range(0, len(BLOB), 76))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": PICTURE},
                    {"type": "input_text", "text": "what is this?"},
                    {"type": "input_file", "filename": "contract.pdf", "file_data": PICTURE},
                ],
            },
            ("user", "[image]\nwhat is this?\n[file contract.pdf]"),
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            ("user", "[image]"),
        ),
        (
            {"role": "user", "content": [{"type": "file", "file": {"filename": "a.txt"}}]},
            ("user", "[file a.txt]"),
        ),
        ({"role": "user", "content": [{"type": "file", "file": 7}]}, ("user", "[file]")),
        (
            {"role": "user", "content": [{"type": "input_audio", "transcript": "hello"}]},
            ("user", "hello"),
        ),
        (
            {"type": "computer_call_output", "output": {"type": "computer_screenshot", "x": BLOB}},
            ("tool", "[image]"),
        ),
        ({"type": "image_generation_call", "result": BLOB}, ("item", "[image]")),
        (
            {"type": "function_call_output", "output": f"see {PICTURE} now"},
            ("tool", "see [data] now"),
        ),
        ({"type": "function_call_output", "output": f"<{BLOB}>"}, ("tool", "<[data]>")),
        ({"type": "function_call_output", "output": f"key:\n{LINES}"}, ("tool", "key:\n[data]")),
        (
            {"type": "reasoning", "encrypted_content": "x"},
            ("reasoning", '{"type":"reasoning","encrypted_content":"x"}'),
        ),
        (
            {"type": "reasoning", "encrypted_content": BLOB},
            ("reasoning", '{"type":"reasoning","encrypted_content":"[data]"}'),
        ),
    ],
)
def test_the_text_of_an_item_has_no_base64(item: Any, said: tuple[str, str]) -> None:
    """Images and files have a short name, and encoded data elsewhere is left out."""
    assert role_and_text(json.dumps(item, separators=(",", ":"))) == said


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/" + "a" * 200 + "?q=" + "b" * 200,
        "word " * 200,
        "日本語" * 200,
        "Ab3" * 85,
        "x" * 1000,
        "0123456789abcdef" * 50,
        "data:text/plain,hello",
        "0123456789abcdef\n" * 100,
    ],
)
def test_other_long_texts_are_kept(text: str) -> None:
    """Addresses, words of any script and hashes are not taken for base64."""
    assert role_and_text(json.dumps({"role": "user", "content": text}))[1] == text.strip()


@pytest.mark.parametrize("depth", [100, 254, 300, 5000])
@pytest.mark.parametrize("field", ["content", "output", "unknown"])
def test_a_deeply_nested_item_has_a_text(depth: int, field: str) -> None:
    """The item is nested more deeply than the fast library allows."""
    payload = f'{{"type":"x_output","{field}":{{"z":{"[" * depth}{"]" * depth}}}}}'
    assert role_and_text(payload)[1]


def test_every_stored_item_has_a_text() -> None:
    """The push and the local search can render the deepest nesting that the codec accepts."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    payload, _ = encode_item({"role": "user", "content": {"z": deep}})
    assert role_and_text(payload) == ("item", payload)


def test_a_long_text_is_cut_within_the_limit_and_between_characters() -> None:
    """Readable text stays below the server's limit, and no character is split."""
    _, text = role_and_text(json.dumps({"role": "user", "content": "é" + "😀" * 40_000}))
    assert len(text.encode()) <= CONTENT_BYTES + 10
    assert text.startswith("é😀")
    assert text.endswith("😀 (...)")


def test_an_item_of_the_exact_codec_has_a_text() -> None:
    """A lone surrogate becomes a question mark, and a large number does not hide the text beside
    it."""
    payload, _ = encode_item({"role": "user", "content": "half \ud83d"})
    assert role_and_text(payload) == ("user", "half ?")
    payload, _ = encode_item({"role": "user", "content": "many", "n": 10**30})
    assert role_and_text(payload) == ("user", "many")
