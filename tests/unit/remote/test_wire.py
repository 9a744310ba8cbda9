from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.history.clock import MAX_STAMP
from cached_session.history.frontier import Frontier
from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import (
    Dot,
    ItemRef,
    Kind,
    Operation,
    encode_clear,
    encode_pop,
    escape_payload,
    unescape_payload,
)
from cached_session.history.parts import Part, assemble
from cached_session.remote.ids import memory_id, namespace, placeholder_id, version_of
from cached_session.remote.wire import (
    EVENT_LAST,
    HIDDEN,
    Placeholder,
    Unreadable,
    decode,
    memories_of,
    placeholder,
)

SESSION = "talk"
KEY = session_key(SESSION)
DOT = Dot("abcdefghwriter", 7)
WRITER = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=8, max_size=30)


def append(*payloads: str, **fields: Any) -> Operation:
    given = {"stamp": 1 << 40, "said_ms": 1_700_000_000_123, "private": False, **fields}
    return Operation(given.pop("dot", DOT), Kind.APPEND, payloads=payloads, **given)


def memories(op: Operation, session: str = SESSION) -> list[dict[str, Any]]:
    return list(memories_of(op, op.digest(session_key(session)), session))


def received(op: Operation, session: str = SESSION) -> Operation | None:
    key = session_key(session)
    parts = [decode(json.loads(json.dumps(memory)), key) for memory in memories(op, session)]
    assert all(isinstance(part, Part) for part in parts)
    return assemble(parts, key)  # type: ignore[arg-type]


@given(
    st.lists(st.text(max_size=20).map(json.dumps), min_size=1, max_size=5),
    WRITER,
    st.integers(1, (1 << 53) - 1),
    st.integers(1, MAX_STAMP),
    st.integers(-(1 << 53), (1 << 53) - 1),
    st.booleans(),
    st.text(max_size=10),
)
def test_an_operation_comes_back_from_the_wire(
    payloads: list[str],
    writer: str,
    counter: int,
    stamp: int,
    said_ms: int,
    private: bool,
    session: str,
) -> None:
    """Every operation is encoded as memories and decoded without loss, and has the same memories
    each time."""
    dot = Dot(writer, counter)
    op = append(*payloads, dot=dot, stamp=stamp, said_ms=said_ms, private=private)
    own = tuple(unescape_payload(escape_payload(payload)) for payload in payloads)
    assert received(op, session) == replace(op, payloads=own)
    assert memories(op, session) == memories(copy.deepcopy(op), session)


def test_pops_and_clears_come_back_from_the_wire() -> None:
    """Pops and clears are memories too, even a clear that takes several parts."""
    pop = Operation(DOT, Kind.POP, 5, 6, (encode_pop(ItemRef(Dot("x" * 12, 3), 1, 2)),))
    many = Frontier.of((f"writer{letter * 8}", 2 * n + 1) for letter in "ab" for n in range(3000))
    clear = Operation(DOT, Kind.CLEAR, 5, 6, (encode_clear(many),))
    assert received(pop) == pop
    assert received(clear) == clear
    assert len(memories(clear)) > 1


def test_a_private_item_has_no_readable_content() -> None:
    """The item is only in the metadata field that holds the payload."""
    op = append('{"role":"user","content":"the secret"}', private=True)
    (memory,) = memories(op)
    assert memory["content"] == HIDDEN
    del memory["metadata"]["cs_x"]
    assert "secret" not in json.dumps(memory)


@pytest.mark.parametrize(
    ("said_ms", "event"),
    [
        (1_700_000_000_999, 1_700_000_000),
        (0, 0),
        (EVENT_LAST * 1000, EVENT_LAST),
        (-1, None),
        (EVENT_LAST * 1000 + 1000, None),
        (-(1 << 52), None),
    ],
)
def test_the_event_time_is_sent_if_the_server_accepts_it(said_ms: int, event: int | None) -> None:
    """A clock before 1970 or far in the future loses the event time, and not the operation."""
    op = append("1", said_ms=said_ms)
    assert memories(op)[0].get("event_time") == event
    assert received(op) == op


def test_only_the_first_memory_names_the_session() -> None:
    """The session id is sent once an operation, shortened, and omitted if UTF-8 cannot encode
    it."""
    first, second = memories(append("1", "2"), "é" * 2000)
    assert first["metadata"]["cs_sid"] == "é" * 1024
    assert "cs_sid" not in second["metadata"]
    assert "cs_sid" not in memories(append("1"), "half \ud800")[0]["metadata"]


def test_a_placeholder_explains_its_operation() -> None:
    """A placeholder is decoded as an explanation of its dot, and its id differs from the
    operation's."""
    op = append("1")
    note = placeholder(op, SESSION)
    assert decode(note, KEY) == Placeholder(DOT)
    assert note["id"] not in {memory["id"] for memory in memories(op)}


scraps = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = ["v", "op", "w", "c", "s", "t", "n", "i", "p", "j", "d", "e", "x", "h", "sid"]


@given(
    st.dictionaries(st.sampled_from(["id", "metadata", "content", "tags"]), scraps)
    | st.fixed_dictionaries(
        {
            "id": scraps
            | st.sampled_from(
                [
                    memory_id(KEY, DOT, 0),
                    memory_id(KEY, DOT, 0, 1),
                    placeholder_id(KEY, DOT),
                    f"cs2-{KEY[:12]}-x",
                    f"cs0-{KEY[:12]}-x",
                    f"cs٣-{KEY[:12]}-x",
                ]
            ),
            "metadata": scraps
            | st.dictionaries(st.sampled_from(FIELDS).map("cs_{}".format), scraps),
        }
    )
)
def test_arbitrary_memories_are_unreadable_at_worst(memory: dict[str, Any]) -> None:
    """A memory of a server is foreign, unreadable, or exactly what its id says."""
    _reads_safely(memory)


@given(st.sampled_from(FIELDS), scraps | st.sampled_from([1e308, 7.0, "append", "void", "0" * 16]))
def test_one_wrong_field_makes_a_memory_unreadable_at_worst(field: str, value: Any) -> None:
    """A memory with a single field replaced or removed raises only Unreadable."""
    for memory in (memories(append("1", "2"))[1], placeholder(append("1"), SESSION)):
        changed = copy.deepcopy(memory)
        changed["metadata"][f"cs_{field}"] = value
        _reads_safely(changed)
        del changed["metadata"][f"cs_{field}"]
        _reads_safely(changed)


def _reads_safely(memory: dict[str, Any]) -> None:
    try:
        found = decode(memory, KEY)
    except Unreadable:
        return
    if isinstance(found, Part):
        assert memory["id"] == memory_id(KEY, found.dot, found.index, found.part)
        assert 0 < found.stamp <= MAX_STAMP
        assert 0 <= found.index < found.count
        assert 0 <= found.part < found.parts
        found.text.encode()
    elif found is not None:
        assert memory["id"] == placeholder_id(KEY, found.dot)


def _changed(**fields: Any) -> dict[str, Any]:
    memory = memories(append("1", "2"))[1]
    memory["metadata"] = {**memory["metadata"], **fields}
    return memory


@pytest.mark.parametrize(
    "fields",
    [
        {"cs_w": "ABCDEFGH"},
        {"cs_w": "short"},
        {"cs_w": "abcdefgh\n"},
        {"cs_w": None},
        {"cs_c": 0},
        {"cs_c": 7.5},
        {"cs_c": True},
        {"cs_c": 1 << 53},
        {"cs_c": 8},
        {"cs_i": 2},
        {"cs_i": -1},
        {"cs_i": 0},
        {"cs_n": 0},
        {"cs_n": 1},
        {"cs_n": 1 << 31},
        {"cs_p": 0},
        {"cs_j": 1},
        {"cs_s": "0" * 16},
        {"cs_s": f"{MAX_STAMP + 1:016x}"},
        {"cs_s": "-1"},
        {"cs_s": "zz"},
        {"cs_s": 5},
        {"cs_op": "merge"},
        {"cs_op": ["append"]},
        {"cs_op": None},
        {"cs_t": 1 << 53},
        {"cs_d": "d" * 65},
        {"cs_e": None},
        {"cs_x": "x" * 24577},
        {"cs_x": "\ud800"},
        {"cs_x": None},
    ],
)
def test_a_field_out_of_its_bounds_is_unreadable(fields: dict[str, Any]) -> None:
    """Each field is checked for its type and range before it reaches the journal."""
    with pytest.raises(Unreadable):
        decode(_changed(**fields), KEY)


def test_numbers_may_come_back_as_floats() -> None:
    """A server that stores numbers as floats changes nothing."""
    fields = {"cs_c": 7.0, "cs_n": 2.0, "cs_i": 1.0, "cs_p": 1.0, "cs_j": 0.0, "cs_t": 1.7e12}
    part = decode(_changed(**fields), KEY)
    assert isinstance(part, Part)
    assert (part.dot, part.count, part.index, part.said_ms) == (DOT, 2, 1, 1_700_000_000_000)
    assert {type(value) for value in (part.dot.counter, part.count, part.index)} == {int}


def test_a_newer_wire_version_is_not_misread() -> None:
    """A memory of a later version is reported with the remedy."""
    memory = _changed()
    memory["id"] = memory["id"].replace("cs1-", "cs2-")
    with pytest.raises(Unreadable, match="upgrade"):
        decode(memory, KEY)


@pytest.mark.parametrize(
    "identity", [None, 7, "", "mem_123", "CS1-" + KEY[:12] + "-x", "xcs1-000000000000-w-1-0", []]
)
def test_a_foreign_memory_is_ignored(identity: object) -> None:
    """A memory with another kind of id is foreign, whatever metadata and tags it has."""
    memory = {**_changed(), "id": identity}
    assert decode(memory, KEY) is None


def test_another_session_s_memory_is_unreadable() -> None:
    """A memory that appears in another session's listing is not applied there."""
    with pytest.raises(Unreadable):
        decode(_changed(), session_key("other"))


def test_lost_metadata_is_reported() -> None:
    """A memory whose metadata the server has lost is unreadable, and not ignored."""
    for metadata in (None, [], "x"):
        with pytest.raises(Unreadable):
            decode({"id": memory_id(KEY, DOT, 0), "metadata": metadata}, KEY)


@given(st.text(st.characters(), max_size=300))
def test_every_session_id_makes_a_legal_agent_id(session: str) -> None:
    """Agent ids have only legal characters and are shorter than the server's limit."""
    agent = agent_id(session)
    assert set(agent) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert len(agent) <= 160
    assert not agent.startswith((".", "_"))
    assert agent.endswith(session_key(session))
    assert namespace(agent) == f"_dakera_agent_{agent}"


@given(st.lists(st.text(st.characters(), max_size=5), unique=True, max_size=20))
def test_session_ids_never_share_an_agent_id(sessions: list[str]) -> None:
    """The mapping is one-to-one, also for lone surrogates and similar ids."""
    assert len({agent_id(session) for session in sessions}) == len(sessions)
    assert len({session_key(session) for session in sessions}) == len(sessions)


@given(
    st.lists(
        st.tuples(WRITER, st.integers(1, 200), st.integers(0, 200), st.integers(0, 200)),
        unique=True,
        max_size=20,
    )
)
def test_memory_ids_are_one_to_one(places: list[tuple[str, int, int, int]]) -> None:
    """No two parts share an id, and every id has the library's prefix."""
    ids = [memory_id(KEY, Dot(writer, counter), i, p) for writer, counter, i, p in places]
    assert len(set(ids)) == len(ids)
    assert {version_of(identity) for identity in ids} <= {1}
