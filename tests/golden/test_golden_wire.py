"""Data in the formats that servers and disks already hold.

These golden files are written once and never regenerated. When one of these tests fails, the change
is wrong, or it needs a new wire version or a migration, with additional golden files.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cached_session.history.frontier import Frontier
from cached_session.history.ids import agent_id, session_key
from cached_session.history.ops import (
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
from cached_session.history.parts import Part, assemble, cut
from cached_session.history.session_name import session_name, split_name
from cached_session.journal.tables import schema
from cached_session.remote.ids import (
    READABLE_VERSIONS,
    WIRE_VERSION,
    memory_id,
    placeholder_id,
)
from cached_session.remote.wire import (
    Placeholder,
    Unreadable,
    claim_note,
    claim_tag,
    claimers,
    decode,
    memories_of,
    placeholder,
)

HERE = Path(__file__).parent


def golden(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text(encoding="ascii"))


def spelled(entry: dict[str, Any]) -> str:
    """Return a session id of the golden file, in which a long one is written as a repetition."""
    return entry["session_id"] * entry.get("times", 1)


@pytest.mark.parametrize("entry", golden("agent-ids"), ids=lambda entry: entry["about"])
def test_the_ids_of_a_session_are_frozen(entry: dict[str, Any]) -> None:
    """The key, agent id, memory ids and placeholder id of a session are frozen."""
    session, dot = spelled(entry), Dot("abcdefghijklmnopqrstuvwx", 42)
    key = session_key(session)
    assert agent_id(session) == entry["agent_id"]
    for version in READABLE_VERSIONS:
        found = {
            "first_memory": memory_id(key, dot, 0, version=version),
            "memory_of_item_3": memory_id(key, dot, 3, version=version),
            "memory_of_item_3_part_2": memory_id(key, dot, 3, 2, version),
            "placeholder": placeholder_id(key, dot, version),
        }
        # The file has the ids of version 1. Only the number of the version differs.
        assert found == {name: f"cs{version}{entry[name].removeprefix('cs1')}" for name in found}


def test_the_key_of_a_session_is_its_hash() -> None:
    """The golden ids match the documentation: 128 bits of SHA-256 over the id's UTF-8."""
    for entry in golden("agent-ids"):
        data = spelled(entry).encode("utf-8", "surrogatepass")
        assert entry["agent_id"].endswith("-" + hashlib.sha256(data).hexdigest()[:32])
    assert len({entry["agent_id"] for entry in golden("agent-ids")}) == len(golden("agent-ids"))


@pytest.mark.parametrize("entry", golden("session-names"), ids=lambda entry: entry["about"])
def test_the_names_of_a_session_with_a_prefix_are_frozen(entry: dict[str, Any]) -> None:
    """The name, key and agent id that follow from key prefix and session id are frozen."""
    name = session_name(entry["key_prefix"], entry["session_id"])
    assert name == entry["name"]
    assert split_name(name) == (entry["key_prefix"], entry["session_id"])
    assert (session_key(name), agent_id(name)) == (entry["key"], entry["agent_id"])


def test_the_name_of_a_session_without_prefix_is_its_id() -> None:
    """Journals and servers from before key prefixes keep their names."""
    assert all(session_name("", spelled(entry)) == spelled(entry) for entry in golden("agent-ids"))


SESSION = "user-123 / café"
DOT = Dot("abcdefghijklmnopqrstuvwx", 42)
STAMP = 1_700_000_000_123 << 16 | 5
SAID = 1_700_000_111_222
LONG = "äöü😀 and so on; " * 2770
ITEMS = (
    '{"role":"user","content":"Where is my parcel? \\u2028"}',
    json.dumps(
        {"type": "function_call_output", "call_id": "c1", "output": LONG}, ensure_ascii=False
    ),
    '{"z":1,"a":[1180591620717411303424,-0.0,5e-324,"\\ud800"],"content":"exact"}',
)
TWO_PARTS = json.dumps({"role": "assistant", "content": LONG[:4800]}, ensure_ascii=False)
CLEARED = [("abcdefghijklmnopqrstuvwx", n) for n in (1, 2, 3, 7)] + [("zwriter234567", 1)]
POP = encode_pop(ItemRef(Dot("zwriter234567", 9), 1, 3))
CLEAR = encode_clear(Frontier.of(CLEARED))
HEAD = TurnKey(1_700_000_000_000 << 16, "zwriter234567", 7)
VERSION_1 = {
    "append": Operation(DOT, Kind.APPEND, STAMP, SAID, ITEMS, version=1),
    "append-private": Operation(DOT, Kind.APPEND, STAMP, SAID, ITEMS[:1], private=True, version=1),
    "append-1969": Operation(DOT, Kind.APPEND, 1, -5, ITEMS[:1], version=1),
    "pop": Operation(DOT, Kind.POP, STAMP, SAID, (POP,), version=1),
    "clear": Operation(DOT, Kind.CLEAR, STAMP, SAID, (CLEAR,), version=1),
}
VERSION_2 = {
    "append-head": Operation(DOT, Kind.APPEND, STAMP, SAID, (ITEMS[0], TWO_PARTS, ITEMS[2])),
    "append-in-a-turn": Operation(DOT, Kind.APPEND, STAMP, SAID, ITEMS[:1], turn=HEAD),
    "append-on-a-branch": Operation(
        DOT, Kind.APPEND, STAMP, SAID, ITEMS[:1], turn=HEAD, branch="draft-2.b"
    ),
    "append-private": Operation(DOT, Kind.APPEND, STAMP, SAID, ITEMS[:1], private=True),
    "append-encrypted": Operation(
        DOT, Kind.APPEND, STAMP, SAID, ("3q2-7w_opaque", "AAECAw"), key_id="2026-11"
    ),
    "pop": Operation(DOT, Kind.POP, STAMP, SAID, (POP,)),
    "clear": Operation(DOT, Kind.CLEAR, STAMP, SAID, (CLEAR,), branch="draft-2.b"),
    "mark": Operation(
        DOT, Kind.MARK, STAMP, SAID, (encode_mark(Mark("title", "", {"text": "Café"})),)
    ),
}
OPERATIONS = {**VERSION_1, **{f"version-2-{name}": op for name, op in VERSION_2.items()}}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_memories_of_an_operation_are_frozen(name: str) -> None:
    """The memories of an operation, all of their fields and the order of them, are frozen."""
    op = OPERATIONS[name]
    written = list(memories_of(op, op.digest(session_key(SESSION)), SESSION))
    assert json.dumps(written) == json.dumps(golden(name))


@pytest.mark.parametrize("name", OPERATIONS)
def test_stored_memories_are_still_decoded(name: str) -> None:
    """Memories of both wire versions, as a server holds them, decode to their operation."""
    key = session_key(SESSION)
    parts = [decode(memory, key) for memory in golden(name)]
    assert all(isinstance(part, Part) for part in parts)
    op = assemble(parts, key)  # type: ignore[arg-type]
    written = OPERATIONS[name]
    assert op == replace(
        written, payloads=tuple(unescape_payload(escape_payload(p)) for p in written.payloads)
    )
    if not written.key_id:
        assert [json.loads(p) for p in op.payloads] == [json.loads(p) for p in written.payloads]
    assert {part.digest for part in parts} == {op.digest(key)}  # type: ignore[union-attr]


def test_the_memories_of_a_session_with_a_prefix_are_frozen() -> None:
    """They have the ids, digests and seals of the session's name, and a field with the prefix."""
    name, op = session_name("shop / é", SESSION), VERSION_2["append-head"]
    written = list(memories_of(op, op.digest(session_key(name)), name))
    assert json.dumps(written) == json.dumps(golden("version-2-append-with-prefix"))
    assert written[0]["metadata"]["cs_sid"] == SESSION
    assert written[0]["metadata"]["cs_pre"] == "shop / é"
    parts = [decode(memory, session_key(name)) for memory in written]
    found = assemble(parts, session_key(name))  # type: ignore[arg-type]
    assert found is not None
    assert found.dot == op.dot
    with pytest.raises(Unreadable):
        decode(written[0], session_key(SESSION))


def test_a_long_item_is_split_into_parts() -> None:
    """The golden append has three items, one of which is 60 KB and takes several memories."""
    assert 60_000 < len(ITEMS[1].encode()) < 62_000
    parts = len(cut(escape_payload(ITEMS[1])))
    assert parts > 3
    assert [m["metadata"]["cs_p"] for m in golden("append")] == [1, *[parts] * parts, 1]
    assert {m["metadata"]["cs_v"] for m in golden("append")} == {1}
    shorter = golden("version-2-append-head")
    assert [m["metadata"]["cs_p"] for m in shorter] == [1, 2, 2, 1]
    assert {m["metadata"]["cs_v"] for m in shorter} == {WIRE_VERSION}


@pytest.mark.parametrize(
    ("name", "parked"),
    [("placeholder", "append"), ("version-2-placeholder", "version-2-append-in-a-turn")],
)
def test_the_placeholder_of_a_parked_operation_is_frozen(name: str, parked: str) -> None:
    """The note that explains a parked operation is encoded and decoded as in the golden file."""
    written = placeholder(OPERATIONS[parked], SESSION)
    assert json.dumps(written) == json.dumps(golden(name))
    assert decode(golden(name), session_key(SESSION)) == Placeholder(DOT)


def test_the_journal_has_the_schema_of_its_format() -> None:
    """Tables, indexes, file mark and format version are frozen: a change needs a migration."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        schema.prepare(conn, ":memory:")
        found = {
            "application_id": conn.execute("PRAGMA application_id").fetchone()[0],
            "user_version": conn.execute("PRAGMA user_version").fetchone()[0],
            "sql": dict(
                conn.execute(
                    "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL "
                    "AND name NOT LIKE 'sqlite_%' ORDER BY name"
                ).fetchall()
            ),
        }
    expected = golden(f"schema-{schema.FORMAT}")
    for part in found, expected:
        # The wording of comments may change.
        part["sql"] = {name: _bare(sql) for name, sql in part["sql"].items()}
    assert found == expected


def _bare(sql: str) -> str:
    return " ".join(word for line in sql.splitlines() for word in line.split("--")[0].split())


def test_the_note_of_a_claim_is_frozen() -> None:
    """The note of a confirmed pop is frozen, names its claimer, and is not an operation."""
    key, item = session_key(SESSION), (Dot("abcdefghijklmnopqrstuvwx", 42), 1)
    note = claim_note(SESSION, *item, "zwriter234567", SAID)
    assert json.dumps(note) == json.dumps(golden("claim-note"))
    assert claim_tag(*item) in note["tags"]
    assert decode(note, key) is None
    assert claimers([note, *golden("pop")], key, *item) == {"zwriter234567"}
    assert claimers([note], key, item[0], 2) == set()
    assert claimers([{**note, "id": "mem_1"}, {"id": 1}], key, *item) == set()
