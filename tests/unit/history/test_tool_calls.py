"""Calls and answers in the items of the Agents SDK and of the adapters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.tool_calls import ID_CHARACTERS, NODES, ToolBatch, read_batch

Item = dict[str, Any]

USER: Item = {"role": "user", "content": "Pay 5."}
ANSWER: Item = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "Paid.", "annotations": []}],
}


def adapter(framework: str, role: str | None, message: Any, **fields: Any) -> Item:
    """Return an item as the adapter of a framework stores it."""
    readable = {"content": "text"} if role is None else {"role": role, "content": "text"}
    return {"type": f"{framework}.message", "v": 1, **readable, **fields, "message": message}


def langchain(role: str, **data: Any) -> Item:
    return adapter("langchain", role, {"type": data["type"], "data": data})


def strands(role: str, *blocks: Item) -> Item:
    message = {"role": "assistant" if role == "assistant" else "user", "content": list(blocks)}
    stored = {"message": message, "message_id": 0, "redact_message": None}
    return adapter("strands", role, stored, owner="a")


def pydantic_ai(role: str, *parts: Item) -> Item:
    kind = "response" if role == "assistant" else "request"
    return adapter("pydantic_ai", role, {"parts": list(parts), "kind": kind})


def llama_index(role: str, blocks: list[Item], **kwargs: Any) -> Item:
    message = {"role": role, "additional_kwargs": kwargs, "blocks": blocks}
    return adapter("llama_index", role, message)


CALLS: dict[str, tuple[Item, Item]] = {
    "function": (
        {"type": "function_call", "id": "fc", "call_id": "c1", "name": "pay", "arguments": "{}"},
        {"type": "function_call_output", "id": "x", "call_id": "c1", "output": "paid"},
    ),
    "custom": (
        {"type": "custom_tool_call", "call_id": "c1", "name": "pay", "input": "5"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "paid"},
    ),
    "computer": (
        {"type": "computer_call", "id": "cu", "call_id": "c1", "action": {"type": "screenshot"}},
        {"type": "computer_call_output", "call_id": "c1", "output": {"type": "screenshot"}},
    ),
    "shell": (
        {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "c1", "output": []},
    ),
    "local shell": (
        {"type": "local_shell_call", "id": "l", "call_id": "c1", "action": {"type": "exec"}},
        {"type": "local_shell_call_output", "call_id": "c1", "output": "ok"},
    ),
    "local shell, as OpenAI's types name it": (
        {"type": "local_shell_call", "id": "l", "call_id": "c1", "action": {"type": "exec"}},
        {"type": "local_shell_call_output", "id": "c1", "output": "ok"},
    ),
    "patch": (
        {"type": "apply_patch_call", "call_id": "c1", "operation": {"type": "create_file"}},
        {"type": "apply_patch_call_output", "call_id": "c1", "status": "completed"},
    ),
    "tool search": (
        {"type": "tool_search_call", "call_id": "c1", "arguments": {}},
        {"type": "tool_search_output", "call_id": "c1", "tools": []},
    ),
    "program": (
        {"type": "program", "id": "p", "call_id": "c1", "code": "1"},
        {"type": "program_output", "id": "q", "call_id": "c1", "result": "1"},
    ),
    "approval of a remote tool": (
        {"type": "mcp_approval_request", "id": "c1", "name": "pay", "arguments": "{}"},
        {"type": "mcp_approval_response", "approval_request_id": "c1", "approve": True},
    ),
    "call without a call id": (
        {"type": "function_call", "id": "c1", "name": "pay", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "paid"},
    ),
    "chat message": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "pay"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "paid"},
    ),
    "Anthropic": (
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "I pay."}, {"type": "tool_use", "id": "c1"}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "ok"}],
        },
    ),
    "LangChain": (
        langchain(
            "assistant",
            type="ai",
            content="",
            tool_calls=[{"name": "pay", "args": {}, "id": "c1", "type": "tool_call"}],
            invalid_tool_calls=[],
        ),
        langchain("tool", type="tool", content="paid", tool_call_id="c1", artifact=None),
    ),
    "LangChain, invalid arguments": (
        langchain(
            "assistant",
            type="ai",
            content="",
            tool_calls=[],
            invalid_tool_calls=[{"name": "pay", "args": "{", "id": "c1", "error": "no JSON"}],
        ),
        langchain("tool", type="tool", content="wrong", tool_call_id="c1"),
    ),
    "LangChain, a block of the provider": (
        langchain("assistant", type="ai", content=[{"type": "tool_use", "id": "c1", "input": {}}]),
        langchain("tool", type="tool", content=[{"type": "text", "text": "ok"}], tool_call_id="c1"),
    ),
    "LlamaIndex": (
        llama_index("assistant", [{"block_type": "tool_call", "tool_call_id": "c1"}]),
        llama_index("tool", [{"block_type": "text", "text": "ok"}], tool_call_id="c1", name="pay"),
    ),
    "LlamaIndex, older": (
        llama_index(
            "assistant",
            [{"block_type": "text", "text": ""}],
            tool_calls=[{"id": "c1", "type": "function", "function": {"name": "pay"}}],
        ),
        llama_index("tool", [{"block_type": "text", "text": "ok"}], tool_call_id="c1", name="pay"),
    ),
    "Pydantic AI": (
        pydantic_ai(
            "assistant", {"part_kind": "tool-call", "tool_name": "pay", "tool_call_id": "c1"}
        ),
        pydantic_ai("tool", {"part_kind": "tool-return", "content": "ok", "tool_call_id": "c1"}),
    ),
    "Pydantic AI, retry": (
        pydantic_ai(
            "assistant", {"part_kind": "tool-call", "tool_name": "pay", "tool_call_id": "c1"}
        ),
        pydantic_ai("tool", {"part_kind": "retry-prompt", "content": "no", "tool_call_id": "c1"}),
    ),
    "Strands": (
        strands("assistant", {"text": "I pay."}, {"toolUse": {"toolUseId": "c1", "input": {}}}),
        strands("tool", {"toolResult": {"toolUseId": "c1", "content": [{"text": "paid"}]}}),
    ),
}

ANSWERS: dict[str, Item] = {
    "Responses": ANSWER,
    "short message": {"role": "assistant", "content": "Paid."},
    "refusal": {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]},
    "final phase": {**ANSWER, "phase": "final_answer"},
    "LangChain": langchain("assistant", type="ai", content="Paid.", tool_calls=[]),
    "LlamaIndex": llama_index("assistant", [{"block_type": "text", "text": "Paid."}]),
    "Pydantic AI": pydantic_ai("assistant", {"part_kind": "text", "content": "Paid."}),
    "Strands": strands("assistant", {"text": "Paid."}),
}

INPUTS: dict[str, Item] = {
    "user": USER,
    "message": {"type": "message", "role": "user", "content": [{"type": "input_text"}]},
    "system": {"role": "system", "content": "Be brief."},
    "developer": {"role": "developer", "content": "Be brief."},
    "picture": {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]},
    "LangChain": langchain("user", type="human", content="Pay 5."),
    "LlamaIndex": llama_index("user", [{"block_type": "text", "text": "Pay 5."}]),
    "Pydantic AI": pydantic_ai("user", {"part_kind": "user-prompt", "content": "Pay 5."}),
    "Strands": strands("user", {"text": "Pay 5."}),
}

NEUTRAL: dict[str, Item] = {
    "reasoning": {"type": "reasoning", "id": "r", "summary": []},
    "web search": {"type": "web_search_call", "id": "w", "status": "completed"},
    "file search": {"type": "file_search_call", "id": "f", "queries": [], "results": []},
    "code": {"type": "code_interpreter_call", "id": "i", "code": "1", "outputs": []},
    "picture": {"type": "image_generation_call", "id": "g", "result": "aGk="},
    "remote tool": {"type": "mcp_call", "id": "m", "name": "pay", "output": "paid"},
    "list of remote tools": {"type": "mcp_list_tools", "id": "t", "tools": []},
    "compaction": {"type": "compaction", "encrypted_content": "x"},
    "reference": {"type": "item_reference", "id": "x"},
    "a later kind of hosted tool": {"type": "dream_call", "id": "c1"},
    "Pydantic AI's built-in tool": pydantic_ai(
        "tool", {"part_kind": "builtin-tool-return", "tool_call_id": "c1"}
    ),
}

UNKNOWN: dict[str, Any] = {
    "encrypted": {"__enc__": 1, "v": 1, "kid": "k", "payload": "x"},
    "note": {"type": "note", "text": "x"},
    "role of a user's own": adapter(
        "langchain", None, {"type": "chat", "data": {"role": "critic"}}
    ),
    "without a role": adapter("llama_index", None, {"role": "other", "blocks": []}),
    "text": "hello",
    "nothing": None,
    "list": [ANSWER],
}


@pytest.mark.parametrize("shape", CALLS)
def test_a_call_waits_for_its_answer(shape: str) -> None:
    """A batch with a call names the call, and does not end with an answer."""
    call, _ = CALLS[shape]
    assert read_batch([call]) == ToolBatch(made=("c1",), waiting=("c1",))
    assert read_batch([USER, call]) == ToolBatch(("c1",), (), ("c1",), has_input=True)


@pytest.mark.parametrize("shape", CALLS)
def test_an_answer_names_the_call_of_an_earlier_batch(shape: str) -> None:
    """The output of a tool is no input from outside."""
    _, output = CALLS[shape]
    assert read_batch([output]) == ToolBatch(answered=("c1",))
    assert read_batch([output, ANSWER]) == ToolBatch(answered=("c1",), ends_with_answer=True)


@pytest.mark.parametrize("shape", CALLS)
def test_a_call_that_its_own_batch_answers_does_not_wait(shape: str) -> None:
    """The batch answers no call of an earlier batch."""
    call, output = CALLS[shape]
    assert read_batch([call, output]) == ToolBatch(made=("c1",))


def test_the_order_decides_whether_a_batch_answers_its_own_call() -> None:
    """An output before a call of the same id answers an earlier call."""
    call, output = CALLS["function"]
    assert read_batch([output, call]) == ToolBatch(("c1",), ("c1",), ("c1",))


def test_parallel_calls_are_named_in_order() -> None:
    """One of three calls is answered in the batch."""
    calls = [{"type": "function_call", "call_id": name} for name in "abc"]
    output = {"type": "function_call_output", "call_id": "b"}
    assert read_batch([*calls, output]) == ToolBatch(("a", "b", "c"), (), ("a", "c"))
    assert read_batch([strands("assistant", *({"toolUse": {"toolUseId": n}} for n in "ab"))]) == (
        ToolBatch(("a", "b"), (), ("a", "b"))
    )


@pytest.mark.parametrize("shape", ANSWERS)
def test_a_message_of_the_assistant_is_an_answer(shape: str) -> None:
    """The batch ends with it, also behind calls, and ends no longer when something follows."""
    call, output = CALLS["function"]
    assert read_batch([ANSWERS[shape]]) == ToolBatch(ends_with_answer=True)
    assert read_batch([call, output, ANSWERS[shape]]).ends_with_answer
    assert not read_batch([ANSWERS[shape], call]).ends_with_answer
    assert not read_batch([ANSWERS[shape], USER]).ends_with_answer


def test_a_commentary_is_no_answer() -> None:
    """The model goes on after a message of the phase `commentary`."""
    assert not read_batch([{**ANSWER, "phase": "commentary"}]).ends_with_answer


@pytest.mark.parametrize("shape", INPUTS)
def test_input_comes_from_outside(shape: str) -> None:
    """A message of a user, the system or a developer is input."""
    assert read_batch([INPUTS[shape]]) == ToolBatch(has_input=True)
    assert read_batch([ANSWER, INPUTS[shape]]) == ToolBatch(has_input=True)


@pytest.mark.parametrize("shape", NEUTRAL)
def test_other_items_change_nothing(shape: str) -> None:
    """A hosted tool has its own result, and a batch may end with such an item."""
    assert read_batch([NEUTRAL[shape]]) == ToolBatch()
    assert read_batch([ANSWER, NEUTRAL[shape]]) == ToolBatch(ends_with_answer=True)


@pytest.mark.parametrize("shape", UNKNOWN)
def test_an_unknown_item_may_come_from_outside(shape: str) -> None:
    """Otherwise a program that stores such items would have one endless turn."""
    assert read_batch([UNKNOWN[shape]]) == ToolBatch(has_input=True)
    assert read_batch([ANSWER, UNKNOWN[shape]]) == ToolBatch(has_input=True)


def test_state_is_not_part_of_the_conversation() -> None:
    """A batch of nothing but an adapter's state says so."""
    state = {"type": "strands.agent", "v": 1, "content": "(state)", "owner": "a", "message": {}}
    assert read_batch([state]) == ToolBatch(is_state=True)
    assert read_batch([state, state]) == ToolBatch(is_state=True)
    assert read_batch([state, ANSWER]) == ToolBatch(ends_with_answer=True)


def test_arguments_and_outputs_of_tools_are_not_searched() -> None:
    """Their content may look like a call."""
    inner = {"toolUse": {"toolUseId": "inner"}, "tool_calls": [{"id": "inner"}]}
    items = [
        {"type": "function_call", "call_id": "a", "arguments": inner},
        {"type": "function_call_output", "call_id": "b", "output": [inner], "content": [inner]},
        strands("assistant", {"toolUse": {"toolUseId": "c", "input": inner}}),
        strands("tool", {"toolResult": {"toolUseId": "d", "content": [inner]}}),
        pydantic_ai("tool", {"part_kind": "tool-return", "tool_call_id": "e", "content": inner}),
    ]
    assert read_batch(items) == ToolBatch(("a", "c"), ("b", "d", "e"), ("a", "c"))


def test_a_long_id_is_kept_as_its_hash() -> None:
    """Call and answer still match; also if the id is no valid Unicode."""
    for long in ("x" * 1_000_000, "\ud800" * (ID_CHARACTERS + 1)):
        call = {"type": "function_call", "call_id": long}
        output = {"type": "function_call_output", "call_id": long}
        (made,) = read_batch([call]).made
        assert len(made) == 64
        assert read_batch([output]).answered == (made,)


def test_the_search_of_an_item_is_bounded() -> None:
    """Calls beyond the limit, and deep nesting, are not looked at."""
    blocks = [{"type": "tool_use", "id": str(number)} for number in range(10 * NODES)]
    assert len(read_batch([{"role": "assistant", "content": blocks}]).made) <= NODES
    deep: Any = {"type": "tool_use", "id": "deep"}
    for _ in range(100_000):
        deep = {"content": [deep]}
    assert read_batch([{"role": "assistant", **deep}]) == ToolBatch(ends_with_answer=True)


NAMES = st.sampled_from(
    "type part_kind block_type role content message data parts blocks additional_kwargs tool_calls "
    "invalid_tool_calls tool_call_id toolUse toolResult toolUseId call_id id phase "
    "approval_request_id tool_use_id".split()
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["function_call", "tool-return", "tool_use", "user", "assistant", "", "c1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4))
def test_odd_items_never_raise(items: list[Any]) -> None:
    """Whatever the fields contain, the ids are strings, and those that wait were made."""
    batch = read_batch(items)
    assert set(batch.waiting) <= set(batch.made)
    assert all(isinstance(each, str) and each for each in (*batch.made, *batch.answered))
