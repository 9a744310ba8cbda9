"""This implementation passes the test vectors, which a client in another language can use as well.

`docs/reference/wire.md` describes the files.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import (
    GONE,
    Dot,
    Kind,
    Operation,
    decode_clear,
    decode_mark,
    decode_pop,
    escape_payload,
    seal,
    unescape_payload,
)
from cached_session.history.order import position
from cached_session.history.parts import Part, assemble, cut, split
from cached_session.remote.ids import claim_id, memory_id, placeholder_id
from cached_session.remote.wire import Placeholder, Unreadable, decode, memories_of, placeholder
from tests.property.histories import KEY as SESSION_KEY
from tests.property.reference_model import marks, visible
from tests.property.replicas import Replica
from tests.vectors.vector_json import HERE, load, operation, operation_json, repeated

Case = dict[str, Any]

READERS = {"pop": decode_pop, "clear": decode_clear, "mark": decode_mark}
LEAST = {
    "digests": 13,
    "escapes": 9,
    "ids": 8,
    "memories": 14,
    "merges": 22,
    "orders": 1,
    "parts": 10,
    "payloads": 34,
    "refusals": 54,
    "unusual": 5,
}
"""The files, and the number of cases that each has."""


def cases(name: str) -> Any:
    return pytest.mark.parametrize("case", load(name), ids=lambda case: case.get("about", "case"))


def parts_of(case: Case) -> list[Part]:
    """Decode the memories of a case."""
    parts = [decode(memory, session_key(case["session_id"])) for memory in case["memories"]]
    assert all(isinstance(part, Part) for part in parts)
    return parts  # type: ignore[return-value]


def restored(op: Operation) -> Operation:
    """Return the operation that a reader builds: with the payloads that it restores."""
    payloads = [unescape_payload(escape_payload(payload)) for payload in op.payloads]
    return Operation(**{**vars(op), "payloads": tuple(payloads)})


def test_no_vector_is_lost() -> None:
    """Each file is tested, and has as many cases as it had when it was written."""
    assert {path.stem for path in HERE.glob("*.json")} == set(LEAST)
    assert {name: len(load(name)) for name in LEAST} == LEAST
    for name in LEAST:
        abouts = [case["about"] for case in load(name) if "about" in case]
        assert len(set(abouts)) == len(abouts)


@cases("escapes")
def test_escapes(case: Case) -> None:
    """A payload has this ASCII form, and a reader restores this payload from it."""
    assert escape_payload(case["payload"]) == case["escaped"]
    assert unescape_payload(case["escaped"]) == case["restored"]
    assert json.loads(case["restored"]) == json.loads(case["payload"])


@cases("digests")
def test_digests_and_seals(case: Case) -> None:
    """An operation has this encoded head, digest and seals."""
    op, key = operation(case["operation"]), session_key(case["session_id"])
    assert key == case["session_key"]
    assert op.head(key).decode() == case["head"]
    assert op.digest(key) == case["digest"]
    texts = map(escape_payload, op.payloads)
    seals = [seal(op.head(key), case["digest"], index, text) for index, text in enumerate(texts)]
    assert seals == case["seals"]


@cases("ids")
def test_ids(case: Case) -> None:
    """A session and a dot have these ids on the server."""
    key, dot = session_key(case["session_id"]), Dot(case["writer"], case["counter"])
    assert key == case["session_key"]
    assert agent_id(case["session_id"]) == case["agent_id"]
    for expected in case["memories"]:
        version = expected["version"]
        assert memory_id(key, dot, 0, version=version) == expected["item_0"]
        assert memory_id(key, dot, 3, version=version) == expected["item_3_part_0"]
        assert memory_id(key, dot, 3, 2, version) == expected["item_3_part_2"]
        assert placeholder_id(key, dot, version) == expected["placeholder"]
    assert claim_id(key, dot, 3, "laptoplaptoplaptop") == case["claim_note_on_item_3"]


@cases("parts")
def test_parts(case: Case) -> None:
    """A text is split into these parts."""
    found = cut(repeated(case["text"]))
    assert [len(part) for part in found] == case["lengths"]
    assert [hashlib.sha256(part.encode()).hexdigest() for part in found] == case["sha256"]
    assert "".join(found) == repeated(case["text"])


@cases("memories")
def test_memories(case: Case) -> None:
    """An operation is stored as these memories, and read from them."""
    op, session_id = operation(case["operation"]), case["session_id"]
    key = session_key(session_id)
    written = [*memories_of(op, op.digest(key), session_id), placeholder(op, session_id)]
    stripped = [{"id": memory["id"], "metadata": memory["metadata"]} for memory in written]
    assert stripped == [*case["memories"], case["placeholder"]]
    assert assemble(parts_of(case)[::-1], key) == restored(op)
    assert decode(case["placeholder"], key) == Placeholder(op.dot)


@cases("unusual")
def test_unusual_memories_are_accepted(case: Case) -> None:
    """Memories in a form that this library does not write are read as this operation."""
    op = assemble(parts_of(case), session_key(case["session_id"]))
    assert op == operation(case["operation"])


@cases("orders")
def test_orders(case: Case) -> None:
    """Operations sort in this order."""
    ops = sorted(map(operation, case["operations"]), key=position)
    assert [[op.dot.writer, op.dot.counter] for op in ops] == case["ordered"]


@cases("merges")
def test_merges(case: Case) -> None:
    """These operations, in any order, give these visible items and marks."""
    ops = [operation(data) for data in case["operations"]]
    assert [operation_json(op) for op in ops] == case["operations"]
    for arrived in (ops, ops[::-1], [*ops, *ops]):
        for branch, items in case["visible"].items():
            assert [
                {"writer": dot.writer, "counter": dot.counter, "index": index, "payload": payload}
                for dot, index, payload in visible(arrived, branch)
            ] == items
        found = {
            (mark["type"], mark["key"]): (Dot(mark["writer"], mark["counter"]), mark["value"])
            for mark in case["marks"]
        }
        assert marks(arrived) == found
    assert all(item["payload"] != GONE for items in case["visible"].values() for item in items)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    "case",
    [case for case in load("merges") if set(case["visible"]) <= {""}],
    ids=lambda case: case["about"],
)
def test_merges_in_a_journal(case: Case, *, backwards: bool) -> None:
    """A journal that applies these operations one by one shows these visible items and marks."""
    ops = [operation(data) for data in case["operations"]]
    replica = Replica()
    try:
        for op in ops[::-1] if backwards else ops:
            replica.apply(split(op, op.digest(SESSION_KEY), SESSION_KEY))
        shown = [
            (entry.writer, entry.counter, entry.index, entry.item) for entry in replica.entries()
        ]
        assert replica.marks() == marks(ops)
    finally:
        replica.close()
    assert shown == [
        (item["writer"], item["counter"], item["index"], json.loads(item["payload"]))
        for item in case["visible"].get("", [])
    ]


@pytest.mark.parametrize(
    "case", load("payloads"), ids=lambda case: f"{case['kind']} {case['payload'][:50]}"
)
def test_payloads(case: Case) -> None:
    """The payload of a pop, a clear or a mark is valid, or refused."""
    read = READERS[Kind(case["kind"]).value]
    if case["valid"]:
        read(case["payload"])
        return
    with pytest.raises(ValueError):  # noqa: PT011
        read(case["payload"])


@cases("refusals")
def test_refusals(case: Case) -> None:
    """The last memory is refused by itself, or the memories do not match their seals."""
    key, last = session_key(case["session_id"]), case["memories"][-1]
    if case["refused_at"] == "memory":
        with pytest.raises(Unreadable):
            decode(last, key)
        return
    assert case["refused_at"] == "seal"
    with pytest.raises(ValueError, match="does not match its seal"):
        assemble(parts_of(case), key)
