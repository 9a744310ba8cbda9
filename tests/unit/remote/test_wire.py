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
    MARK_BYTES,
    Dot,
    ItemRef,
    Kind,
    Mark,
    Operation,
    TurnKey,
    encode_clear,
    encode_mark,
    encode_pop,
    escape_payload,
    unescape_payload,
)
from cached_session.history.parts import Part, assemble
from cached_session.remote.ids import memory_id, namespace, placeholder_id, version_of
from cached_session.remote.wire import (
    ENCRYPTED,
    EVENT_LAST,
    HIDDEN,
    MARK_PARTS,
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
    each time. This is true in both versions."""
    dot = Dot(writer, counter)
    op = append(*payloads, dot=dot, stamp=stamp, said_ms=said_ms, private=private)
    own = tuple(unescape_payload(escape_payload(payload)) for payload in payloads)
    for one in (op, replace(op, version=1)):
        assert received(one, session) == replace(one, payloads=own)
        assert memories(one, session) == memories(copy.deepcopy(one), session)


IDS = st.text("abcXYZ019_.-", min_size=1, max_size=64)


@given(WRITER, st.integers(1, (1 << 53) - 1), st.integers(1, MAX_STAMP), st.data())
def test_turn_branch_and_key_come_back_from_the_wire(
    writer: str, counter: int, stamp: int, data: st.DataObject
) -> None:
    """The fields of version 2 are decoded without loss, whichever of them an append has."""
    turn = TurnKey(stamp, writer, counter)
    dot = Dot(data.draw(WRITER.filter(writer.__ne__)), data.draw(st.integers(1, 1 << 40)))
    op = append(
        '"text"',
        dot=dot,
        stamp=data.draw(st.integers(stamp, MAX_STAMP)),
        turn=data.draw(st.sampled_from([turn, None])),
        branch=data.draw(st.just("") | IDS),
        key_id=data.draw(st.just("") | IDS),
    )
    assert received(op) == op
    assert (memories(op)[0]["content"] == ENCRYPTED) == bool(op.key_id)


def test_a_turn_that_names_its_own_operation_is_a_head() -> None:
    """A head may name itself. It is decoded as any other head, and has the same digest."""
    head = append("1")
    explicit = append("1", turn=head.turn_key)
    assert explicit.digest(KEY) == head.digest(KEY)
    assert "cs_ts" in memories(explicit)[0]["metadata"]
    assert received(explicit) == head


TURN = {"cs_ts": f"{1 << 39:016x}", "cs_tw": "zwriter234567", "cs_tc": 1}
OWN = {"cs_ts": f"{1 << 40:016x}", "cs_tw": DOT.writer, "cs_tc": DOT.counter}
CLEAR = Operation(DOT, Kind.CLEAR, 1 << 40, 5, (encode_clear(Frontier()),))
MARK = Operation(DOT, Kind.MARK, 1 << 40, 5, (encode_mark(Mark("title", "", "a talk")),))


@pytest.mark.parametrize(
    "fields", [{}, TURN, OWN, {**TURN, "cs_tc": 1.0}, {"cs_b": "", "cs_k": ""}]
)
def test_fields_of_version_2_are_accepted(fields: dict[str, Any]) -> None:
    """The tests of refusals below change these valid fields."""
    part = decode(_changed(**fields), KEY)
    assert isinstance(part, Part)
    assert part.turn == (TurnKey(1 << 39, "zwriter234567", 1) if fields.get("cs_tc") == 1 else None)


@pytest.mark.parametrize(
    "fields",
    [
        *({name: value for name, value in TURN.items() if name != left} for left in TURN),
        {**TURN, "cs_ts": None},
        {**TURN, "cs_ts": "0" * 16},
        {**TURN, "cs_ts": f"{MAX_STAMP + 1:016x}"},
        {**TURN, "cs_ts": f"{(1 << 40) + 1:016x}"},
        {**TURN, "cs_tw": "Zwriter234567"},
        {**TURN, "cs_tw": ["zwriter234567"]},
        {**TURN, "cs_tc": 0},
        {**TURN, "cs_tc": 1 << 53},
        {**TURN, "cs_tc": True},
        {**TURN, "cs_tw": DOT.writer, "cs_tc": DOT.counter},
        {**TURN, "cs_tw": DOT.writer, "cs_tc": DOT.counter + 1},
        {"cs_b": "a|b"},
        {"cs_b": "a" * 65},
        {"cs_b": None},
        {"cs_b": ["a"]},
        {"cs_b": "é"},
        {"cs_k": "a\n"},
        {"cs_k": 7},
    ],
)
def test_an_invalid_field_of_version_2_is_unreadable(fields: dict[str, Any]) -> None:
    """A turn is complete, within its limits and before its operation; an id has legal characters.
    A reader of version 1 does not look at these fields."""
    with pytest.raises(Unreadable):
        decode(_changed(**fields), KEY)
    old = memories(append("1", "2", version=1))[1]
    assert isinstance(decode({**old, "metadata": {**old["metadata"], **fields}}, KEY), Part)


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        (CLEAR, TURN),
        (CLEAR, {"cs_k": "key"}),
        (CLEAR, {"cs_n": 2}),
        (MARK, TURN),
        (MARK, {"cs_b": "branch"}),
        (MARK, {"cs_n": 2}),
        (MARK, {"cs_p": MARK_PARTS + 1}),
    ],
)
def test_a_field_that_its_kind_does_not_have_is_unreadable(
    op: Operation, fields: dict[str, Any]
) -> None:
    """Only an append has a turn and several payloads. Marks have no branch, and a replica without
    the key must be able to apply a clear."""
    (memory,) = memories(op)
    assert isinstance(decode(memory, KEY), Part)
    memory["metadata"].update(fields)
    with pytest.raises(Unreadable):
        decode(memory, KEY)


def test_version_1_has_no_marks() -> None:
    """A mark under an id of version 1 is unreadable."""
    (memory,) = memories(replace(MARK, version=1))
    with pytest.raises(Unreadable, match="invalid cs_op='mark'"):
        decode(memory, KEY)


def test_the_longest_mark_has_a_legal_number_of_parts() -> None:
    """A mark of the largest size comes back, also if each character is escaped."""
    room = MARK_BYTES - len(encode_mark(Mark("t", "", "")))
    for character in ("é", "€", "😀", " "):
        value = character * (room // len(character.encode()))
        op = Operation(DOT, Kind.MARK, 5, 6, (encode_mark(Mark("t", "", value)),))
        assert received(op) == op


def test_encrypted_payloads_are_not_readable() -> None:
    """Neither content nor metadata name the session or show text outside of the payload."""
    (memory,) = memories(append("c2VjcmV0", key_id="2026-11"))
    assert memory["content"] == ENCRYPTED
    assert memory["tags"] == ["cached-session", "cs-op"]
    assert memory["metadata"]["cs_k"] == "2026-11"
    assert "cs_sid" not in memory["metadata"]


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
FIELDS += ["ts", "tw", "tc", "b", "k"]


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
                    memory_id(KEY, DOT, 0, version=1),
                    f"cs2-{KEY[:12]}-x",
                    f"cs3-{KEY[:12]}-x",
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
    version = version_of(memory.get("id")) or 0
    if isinstance(found, Part):
        assert memory["id"] == memory_id(KEY, found.dot, found.index, found.part, found.version)
        assert found.turn is None or found.turn.stamp <= found.stamp
        assert 0 < found.stamp <= MAX_STAMP
        assert 0 <= found.index < found.count
        assert 0 <= found.part < found.parts
        found.text.encode()
    elif found is not None:
        assert memory["id"] == placeholder_id(KEY, found.dot, version)


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
        {"cs_s": "5"},
        {"cs_s": "0x00000000000010"},
        {"cs_s": "0000_0000_0000_1"},
        {"cs_s": 5},
        {"cs_c": "--7"},
        {"cs_c": "٧"},
        {"cs_op": "merge"},
        {"cs_op": ["append"]},
        {"cs_op": None},
        {"cs_t": 1 << 53},
        {"cs_d": "d" * 65},
        {"cs_e": None},
        {"cs_x": ""},
        {"cs_x": "é"},
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
    memory["id"] = memory["id"].replace("cs2-", "cs3-")
    with pytest.raises(Unreadable, match="version 3; upgrade"):
        decode(memory, KEY)
    memory["id"] = memory["id"].replace("cs3-", "cs0-")
    with pytest.raises(Unreadable, match="does not exist"):
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
    assert {version_of(identity) for identity in ids} <= {2}
