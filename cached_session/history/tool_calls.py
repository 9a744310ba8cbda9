"""Tool calls in a batch of items: the calls that it makes, the calls that it answers, how it ends.

This is what decides which turn a batch joins (`turns`). It knows the items of the Agents SDK
(Responses items and chat messages) and the items of the adapters, which hold the message of a
framework. A tool that runs on the model's server and has its result in the same item is no call
that waits for an answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["STATE_TYPES", "ToolBatch", "read_batch"]

NODES = 1_000
"""Maximum number of dicts that are looked at in one item. A message has one for each of its parts.
Calls beyond this number do not decide which turn a batch joins."""
ID_CHARACTERS = 256
"""A longer id is replaced by its hash, because the ids of unanswered calls are kept in memory."""

AGENT_ROLES = frozenset({"assistant", "tool", "function"})
INPUT_ROLES = frozenset({"user", "system", "developer"})
AGENT_TYPES = frozenset(
    {"reasoning", "compaction", "compaction_summary", "item_reference", "mcp_list_tools"}
)
AGENT_ENDINGS = ("_call", "_output", "_request", "_response")
"""Types of items without a role that the agent makes, and endings of such types. Any other item
without a role may come from outside."""
STATE_TYPES = frozenset({"strands.session", "strands.agent", "strands.multi_agent"})
"""Types of adapter items that hold state and are not part of the conversation."""


class _Part(Enum):
    """The part that a dict has in a tool call."""

    CALL = "call"
    ANSWER = "answer"


PARTS: dict[str, tuple[_Part, tuple[str, ...]]] = {
    # Responses items of the Agents SDK
    "function_call": (_Part.CALL, ("call_id", "id")),
    "function_call_output": (_Part.ANSWER, ("call_id",)),
    "custom_tool_call": (_Part.CALL, ("call_id", "id")),
    "custom_tool_call_output": (_Part.ANSWER, ("call_id",)),
    "computer_call": (_Part.CALL, ("call_id", "id")),
    "computer_call_output": (_Part.ANSWER, ("call_id",)),
    "shell_call": (_Part.CALL, ("call_id", "id")),
    "shell_call_output": (_Part.ANSWER, ("call_id",)),
    "local_shell_call": (_Part.CALL, ("call_id", "id")),
    "local_shell_call_output": (_Part.ANSWER, ("call_id", "id")),
    "apply_patch_call": (_Part.CALL, ("call_id", "id")),
    "apply_patch_call_output": (_Part.ANSWER, ("call_id",)),
    "tool_search_call": (_Part.CALL, ("call_id",)),
    "tool_search_output": (_Part.ANSWER, ("call_id",)),
    "program": (_Part.CALL, ("call_id",)),
    "program_output": (_Part.ANSWER, ("call_id",)),
    "mcp_approval_request": (_Part.CALL, ("id",)),
    "mcp_approval_response": (_Part.ANSWER, ("approval_request_id",)),
    # content blocks of Anthropic, LangChain and LlamaIndex
    "tool_use": (_Part.CALL, ("id",)),
    "tool_result": (_Part.ANSWER, ("tool_use_id",)),
    "tool_call": (_Part.CALL, ("tool_call_id", "id")),
    # parts of Pydantic AI
    "tool-call": (_Part.CALL, ("tool_call_id",)),
    "tool-return": (_Part.ANSWER, ("tool_call_id",)),
    "retry-prompt": (_Part.ANSWER, ("tool_call_id",)),
    # fields of Strands
    "toolUse": (_Part.CALL, ("toolUseId",)),
    "toolResult": (_Part.ANSWER, ("toolUseId",)),
}
"""The values of ``type``, ``part_kind`` or ``block_type`` (of Strands: the names of fields) that
denote a call or its answer, and the fields that hold the id, the first one first."""

KINDS = ("type", "part_kind", "block_type")
STRANDS_FIELDS = ("toolUse", "toolResult")
CALL_LISTS = ("tool_calls", "invalid_tool_calls")
"""Fields with the list of the calls that a chat message makes."""
ANSWER_FIELD = "tool_call_id"
"""Name of the field in which a chat message gives the id of the call that the message answers."""
NESTED = frozenset({"message", "data", "content", "parts", "blocks", "additional_kwargs"})
"""Fields that may contain calls and answers. Arguments and outputs of tools are not searched."""
PLAIN_FIELDS = frozenset({"role", "content", "type", "id", "status", "phase", "name"})
PLAIN_BLOCKS = (
    "output_text",
    "input_text",
    "text",
    "refusal",
    "input_image",
    "image_url",
    "input_file",
    "input_audio",
)
"""Types of content blocks without calls. A tuple, because a block may have any value as type."""


class ToolBatch(NamedTuple):
    """The facts about a batch that decide which turn it joins."""

    made: tuple[str, ...] = ()
    """Ids of the calls that the batch makes, in order, each once."""
    answered: tuple[str, ...] = ()
    """Ids of the calls that this batch answers and an earlier batch has made."""
    waiting: tuple[str, ...] = ()
    """Ids of the calls that the batch makes and does not answer."""
    has_input: bool = False
    """True if an item comes from outside the agent: a message of a user, the system or a
    developer, other than the results of tools; or an item that is not known. Otherwise all items
    of a program that stores encrypted or other items would be one endless turn."""
    ends_with_answer: bool = False
    """True if the last message, call or tool output is an answer of the assistant without calls."""
    is_state: bool = False
    """True if every item is state that an adapter stores beside the conversation."""


def read_batch(items: Sequence[Any]) -> ToolBatch:
    """Return the facts about a batch of decoded items. Ignore what is not known; never raise."""
    reader = _Reader()
    for item in items:
        if isinstance(item, dict):
            reader.read(item)
        else:
            reader.read_input()
    return ToolBatch(
        tuple(reader.made),
        tuple(reader.answered),
        tuple(reader.waiting),
        reader.has_input,
        reader.ends_with_answer,
        reader.states > 0 and reader.states == len(items),
    )


class _Reader:
    """Collects the facts about a batch, item by item."""

    __slots__ = ("answered", "ends_with_answer", "has_input", "made", "states", "waiting")

    def __init__(self) -> None:
        self.made: dict[str, None] = {}
        self.waiting: dict[str, None] = {}
        self.answered: dict[str, None] = {}
        self.has_input = self.ends_with_answer = False
        self.states = 0

    def read(self, item: dict[str, Any]) -> None:
        role, kind = item.get("role"), item.get("type")
        if isinstance(kind, str) and kind in STATE_TYPES:
            self.states += 1
            return
        is_in_call = False
        if not _is_plain(item):
            for part, call_id in _parts(item):
                is_in_call = True
                if part is _Part.ANSWER:
                    self._answer(call_id)
                elif call_id:
                    self.made[call_id] = self.waiting[call_id] = None
        if is_in_call:
            self.ends_with_answer = False
            return
        if _is_of_agent(role, kind):
            if role == "assistant":
                # The model calls a tool or goes on after a commentary.
                self.ends_with_answer = item.get("phase") != "commentary"
        else:
            self.read_input()

    def read_input(self) -> None:
        """Record an item from outside."""
        self.has_input, self.ends_with_answer = True, False

    def _answer(self, call_id: str) -> None:
        if call_id in self.made:
            self.waiting.pop(call_id, None)
        elif call_id:
            self.answered[call_id] = None


def _is_of_agent(role: Any, kind: Any) -> bool:
    """Return whether an item without calls and answers is made by the agent."""
    if isinstance(role, str):
        return role in AGENT_ROLES
    return isinstance(kind, str) and (kind in AGENT_TYPES or kind.endswith(AGENT_ENDINGS))


def _is_plain(item: dict[str, Any]) -> bool:
    """Return whether an item is a message of text, pictures and files. This is quick, and most
    items are."""
    content = item.get("content")
    if isinstance(content, list):
        for block in content:
            if not isinstance(block, dict) or block.get("type") not in PLAIN_BLOCKS:
                return False
    elif not isinstance(content, str):
        return False
    return item.keys() <= PLAIN_FIELDS


def _parts(item: dict[str, Any]) -> Iterator[tuple[_Part, str]]:
    """Yield the calls and answers in one item, in order; the id is empty if there is none."""
    nodes: list[Any] = [item]
    for _ in range(NODES):
        if not nodes:
            return
        node = nodes.pop()
        if isinstance(node, list):
            # From the end, because the list is used as a stack.
            nodes.extend(reversed(node[:NODES]))
            continue
        if not isinstance(node, dict):
            continue
        found = _part(node)
        if found is not None:
            yield found
            continue
        for field in CALL_LISTS:
            calls = node.get(field)
            if isinstance(calls, list):
                for call in calls[:NODES]:
                    if isinstance(call, dict):
                        yield _Part.CALL, _id(call, ("id", "call_id"))
        nodes.extend(
            value
            for key, value in reversed(node.items())
            if key in NESTED and isinstance(value, (dict, list))
        )


def _part(node: dict[str, Any]) -> tuple[_Part, str] | None:
    """Return the part that one dict has in a call, and the call's id; None if it has none."""
    for kind in KINDS:
        name = node.get(kind)
        known = PARTS.get(name) if isinstance(name, str) else None
        if known is not None:
            return known[0], _id(node, known[1])
    for field in STRANDS_FIELDS:
        inner = node.get(field)
        if isinstance(inner, dict):
            part, fields = PARTS[field]
            return part, _id(inner, fields)
    # A part of Pydantic AI with another kind belongs to a tool that runs on the model's server.
    if isinstance(node.get(ANSWER_FIELD), str) and "part_kind" not in node:
        return _Part.ANSWER, _id(node, (ANSWER_FIELD,))
    return None


def _id(node: dict[str, Any], fields: tuple[str, ...]) -> str:
    """Return the first of these fields that is a string and not empty; else an empty string."""
    for field in fields:
        value = node.get(field)
        if isinstance(value, str) and value:
            if len(value) <= ID_CHARACTERS:
                return value
            return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
    return ""
