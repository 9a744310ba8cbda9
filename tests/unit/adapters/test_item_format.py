"""The items of adapters, and the handling of items from elsewhere."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from cached_session import UnreadableItem
from cached_session.adapters.item_format import ItemFormat, format_call, join_texts
from cached_session.cli.render_history import one_line
from cached_session.history.item_text import role_and_text
from cached_session.journal.sqlite.codec import encode_items

MINE = ItemFormat("langchain.message")
OTHER = ItemFormat("strands.message")


def test_an_item_is_read_back_as_it_was() -> None:
    """An item in the framework's own form is stored and read without change."""
    message = {"type": "human", "data": {"content": "Hi", "n": 1.5, "é": None}}
    assert MINE.decode(MINE.encode("user", "Hi", message), "a") == message


def test_an_item_has_a_readable_role_and_text() -> None:
    """The command line, search and the server's recall show the message and not its encoding."""
    item = MINE.encode("user", "Where is my bag?", {"type": "human"})
    ((payload, _),) = encode_items([item])
    assert role_and_text(payload) == ("user", "Where is my bag?")
    assert one_line(item) == "user: Where is my bag?"


@pytest.mark.parametrize(
    ("item", "what"),
    [
        (OTHER.encode("user", "Hi", {}), "another adapter (strands.message)"),
        ({"role": "user", "content": "Hi"}, "the Agents SDK (user)"),
        ({"type": "function_call", "name": "f"}, "the Agents SDK (function_call)"),
        ({"type": "langchain.message", "content": "no cover"}, "the Agents SDK"),
        ({"note": 1}, "no adapter wrote"),
        (["a", "list"], "no adapter wrote"),
        ("text", "no adapter wrote"),
    ],
)
def test_an_item_from_elsewhere_is_refused(item: Any, what: str) -> None:
    """The error names the session, the item and the remedy."""
    with pytest.raises(UnreadableItem) as caught:
        MINE.decode(item, "user-1")
    assert what in str(caught.value)
    assert "'user-1'" in str(caught.value)
    assert "its own session ids" in str(caught.value)


def test_an_item_of_a_newer_version_is_refused() -> None:
    """An older library does not misread it."""
    item = MINE.encode("user", "Hi", {}) | {"v": 2}
    with pytest.raises(UnreadableItem, match=r"version 2.*upgrade"):
        MINE.decode(item, "a")


def test_the_readable_text_is_never_empty() -> None:
    """A message without text has a replacement, and a tool call reads as a call."""
    assert join_texts([]) == join_texts(["", None]) == "(nothing)"
    assert join_texts(["a", "", "b"]) == "a\nb"
    assert format_call("f", {"x": 1}) == 'f({"x": 1})'
    assert format_call("f", '{"x": 1}') == 'f({"x": 1})'


ADAPTERS = {
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "pydantic_ai": ("pydantic_ai", "pydantic-ai"),
    "strands": ("strands", "strands"),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_missing_framework_is_reported_with_its_extra(
    adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Importing an adapter without its framework raises an error that names the extra to
    install."""
    framework, extra = ADAPTERS[adapter]
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"cached_session.adapters.{adapter}", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"cached_session.adapters.{adapter}")
    assert f"pip install 'cached-session[{extra}]'" in str(caught.value)
