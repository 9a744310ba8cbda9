"""Write the test vectors anew.

    python -m tests.vectors.generate

The committed files are the truth: run this only to add cases, and check that the difference
contains no changed result. `test_vectors` computes the results again, and does not use this module.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

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
    seal,
    unescape_payload,
)
from cached_session.history.parts import cut
from cached_session.remote.ids import claim_id, memory_id, placeholder_id
from cached_session.remote.wire import memories_of, placeholder
from tests.property.histories import Writer, frontier_of, names
from tests.property.reference_model import marks, order, visible
from tests.vectors.vector_json import HERE, operation_json, repeated

Case = dict[str, Any]

SESSION = "user-123 / café"
KEY = session_key(SESSION)
PHONE, LAPTOP = "phonephonephone", "laptoplaptoplaptop"
STAMP = 1_700_000_000_000 << 16
TIME = 1_700_000_000_123
QUESTION = '{"role":"user","content":"Where is my parcel?"}'
ANSWER = '{"role":"assistant","content":"In Zürich. 😀"}'
HEAD = TurnKey(STAMP, LAPTOP, 4)


def append(*payloads: str, **fields: Any) -> Operation:
    given = {"dot": Dot(PHONE, 1), "kind": Kind.APPEND, "stamp": STAMP, "said_ms": TIME, **fields}
    return Operation(payloads=payloads, **given)


def escapes() -> Iterator[Case]:
    """Return payloads, their escaped form and the payload that a reader restores from it."""
    for about, payload in {
        "ASCII is not changed": QUESTION,
        "an accent": '"caf\u00e9"',
        "a decomposed accent": '"cafe\u0301"',
        "a character outside of the first plane": '"\U0001f600"',
        "line separators and a byte order mark": '"\u2028\u2029\ufeff"',
        "JSON's own escapes": '"\\" \\\\ \\n \\u0001"',
        "an escape that the writer has written": '"caf\\u00e9"',
        "a lone surrogate, which stays escaped": '"half \\ud83d"',
        "white space, which stays escaped": '{"a": "\u00e9"}',
    }.items():
        text = escape_payload(payload)
        yield {
            "about": about,
            "payload": payload,
            "escaped": text,
            "restored": unescape_payload(text),
        }


OPERATIONS = {
    "version 1, an append": append(QUESTION, ANSWER, version=1),
    "version 1, a private append": append(QUESTION, private=True, version=1),
    "version 1, a pop": append(
        encode_pop(ItemRef(Dot(LAPTOP, 9), 1, 3)), kind=Kind.POP, dot=Dot(PHONE, 2), version=1
    ),
    "version 1, a clear": append(
        encode_clear(Frontier.of([(PHONE, 1), (PHONE, 2), (LAPTOP, 9)])),
        kind=Kind.CLEAR,
        dot=Dot(PHONE, 3),
        version=1,
    ),
    "the head of a turn": append(QUESTION),
    "two items in the turn of another device": append(
        ANSWER, QUESTION, dot=Dot(PHONE, 7), stamp=STAMP + 5, turn=HEAD
    ),
    "a private append on a branch": append(QUESTION, private=True, branch="draft-2.b"),
    "an append with encrypted payloads": append("3q2-7w", "AAECAw", key_id="2026-11"),
    "a pop": append(encode_pop(ItemRef(Dot(LAPTOP, 9), 1, 3)), kind=Kind.POP, dot=Dot(PHONE, 2)),
    "a clear on a branch": append(
        encode_clear(Frontier.of([(PHONE, 1), (PHONE, 2), (LAPTOP, 9)])),
        kind=Kind.CLEAR,
        dot=Dot(PHONE, 3),
        branch="draft-2.b",
    ),
    "a mark": append(
        encode_mark(Mark("title", "", {"text": "Zürich"})), kind=Kind.MARK, dot=Dot(PHONE, 4)
    ),
    "the largest numbers": append(
        "0", dot=Dot("7" * 64, (1 << 53) - 1), stamp=(1 << 62) - 1, said_ms=(1 << 53) - 1
    ),
    "the smallest numbers": append("0", dot=Dot("a" * 8, 1), stamp=1, said_ms=-(1 << 53)),
}


def digests() -> Iterator[Case]:
    """Return operations with the encoded head, the digest, and the seal of each payload."""
    for about, op in OPERATIONS.items():
        head, digest = op.head(KEY), op.digest(KEY)
        yield {
            "about": about,
            "session_id": SESSION,
            "session_key": KEY,
            "operation": operation_json(op),
            "head": head.decode(),
            "digest": digest,
            "seals": [
                seal(head, digest, index, escape_payload(payload))
                for index, payload in enumerate(op.payloads)
            ],
        }


def memories() -> Iterator[Case]:
    """Return operations with the id and metadata of their memories, and of their placeholder."""
    long = append(repeated([['{"content":"', 1], ["é ", 3000], ['"}', 1]]), QUESTION)
    for about, op in {**OPERATIONS, "an item of several parts": long}.items():
        written = list(memories_of(op, op.digest(KEY), SESSION))
        note = placeholder(op, SESSION)
        yield {
            "about": about,
            "session_id": SESSION,
            "operation": operation_json(op),
            "memories": [{"id": m["id"], "metadata": m["metadata"]} for m in written],
            "placeholder": {"id": note["id"], "metadata": note["metadata"]},
        }


def ids() -> Iterator[Case]:
    """Return session ids, and the ids on the server that follow from them."""
    dot = Dot(PHONE, 42)
    for session_id in ("plain", "", "café", "a b/c", "-.-", "日本", "\ud800", "x" * 200):
        key = session_key(session_id)
        yield {
            "session_id": session_id,
            "session_key": key,
            "agent_id": agent_id(session_id),
            "writer": dot.writer,
            "counter": dot.counter,
            "memories": [
                {
                    "version": version,
                    "item_0": memory_id(key, dot, 0, version=version),
                    "item_3_part_0": memory_id(key, dot, 3, 0, version),
                    "item_3_part_2": memory_id(key, dot, 3, 2, version),
                    "placeholder": placeholder_id(key, dot, version),
                }
                for version in (1, 2)
            ],
            "claim_note_on_item_3": claim_id(key, dot, 3, LAPTOP),
        }


def parts() -> Iterator[Case]:
    """Return escaped payloads as [text, repetitions], and the length and hash of their parts."""
    for about, pieces in {
        "one character": [["7", 1]],
        "exactly one part": [["x", 12288]],
        "one character more": [["x", 12289]],
        "two full parts": [["x", 24576]],
        "a space at the cut": [["x", 12288], [" ", 1], ["x", 100]],
        "a space before the cut": [["x", 12287], [" ", 1], ["x", 100]],
        "words": [["word and ", 4000]],
        "spaces back to the middle of a part": [["x", 6145], [" ", 6000], ["x", 6000]],
        "only spaces: the cut is in the middle of a part": [["x", 6000], [" ", 9000], ["x", 10]],
        "escapes, which a cut may divide": [["\\u00e9", 5000]],
    }.items():
        found = cut(repeated(pieces))
        yield {
            "about": about,
            "text": pieces,
            "lengths": [len(part) for part in found],
            "sha256": [hashlib.sha256(part.encode()).hexdigest() for part in found],
        }


def merges() -> Iterator[Case]:
    """Return operations in any order, with the visible items and the marks that they give."""
    for about, ops in _written_histories():
        yield _merge(about, ops)
    for seed in range(8):
        yield _merge(f"random history {seed}", list(_random_history(random.Random(seed))))


def _merge(about: str, ops: Iterable[Operation]) -> Case:
    ops = list(ops)
    branches = sorted({op.branch for op in ops if op.kind is Kind.APPEND})
    return {
        "about": about,
        "operations": [operation_json(op) for op in ops],
        "visible": {
            branch: [
                {"writer": dot.writer, "counter": dot.counter, "index": index, "payload": payload}
                for dot, index, payload in visible(ops, branch)
            ]
            for branch in branches
        },
        "marks": [
            {
                "type": kind,
                "key": key,
                "value": value,
                "writer": dot.writer,
                "counter": dot.counter,
            }
            for (kind, key), (dot, value) in sorted(marks(ops).items())
        ],
    }


def _written_histories() -> Iterator[tuple[str, list[Operation]]]:
    first = append('"question"', dot=Dot(PHONE, 1), stamp=STAMP)
    other = append('"hello"', '"good day"', dot=Dot(LAPTOP, 1), stamp=STAMP + 1)
    late = append('"answer"', dot=Dot(PHONE, 2), stamp=STAMP + 2, turn=first.turn_key)
    yield "a turn stays together", [late, other, first]
    resumed = append('"approved"', dot=Dot(LAPTOP, 2), stamp=STAMP + 3, turn=first.turn_key)
    yield "a turn is continued on another device", [resumed, other, late, first]
    yield "the head of a turn is missing", [late, other]
    yield (
        "operations of both versions",
        [late, first, replace(other, version=1), append('"x"', dot=Dot(LAPTOP, 3), version=1)],
    )
    pop = append(encode_pop(ItemRef(other.dot, 0, 2)), kind=Kind.POP, dot=Dot(PHONE, 3))
    yield "a pop", [pop, other, first]
    yield "a pop of an item that is not here", [pop, first]
    gone = replace(other, payloads=("", '"good day"'))
    yield "a popped payload is missing", [pop, gone, first]
    covers = encode_clear(Frontier.of([first.dot, late.dot]))
    clear = append(covers, kind=Kind.CLEAR, dot=Dot(LAPTOP, 2), stamp=STAMP + 3)
    yield "a clear leaves what its writer had not seen", [clear, first, late, other]
    yield "a clear arrives before the operations that it covers", [clear, late, first]
    title = append(
        encode_mark(Mark("title", "", "first")), kind=Kind.MARK, dot=Dot(PHONE, 1), stamp=STAMP
    )
    later = append(
        encode_mark(Mark("title", "", "second")), kind=Kind.MARK, dot=Dot(LAPTOP, 1), stamp=STAMP
    )
    yield "of marks with one stamp, the larger writer wins", [title, later]
    newest = replace(later, dot=Dot(LAPTOP, 2), stamp=STAMP + 1)
    yield "the later mark wins", [newest, title]
    others = replace(title, dot=Dot(PHONE, 2), payloads=(encode_mark(Mark("usage", "a", 1)),))
    third = replace(title, dot=Dot(PHONE, 3), payloads=(encode_mark(Mark("title", "a", None)),))
    yield "marks differ by type and by key", [title, others, third]
    covers = encode_clear(Frontier.of([title.dot, others.dot]))
    clear = append(covers, kind=Kind.CLEAR, dot=Dot(LAPTOP, 3), stamp=STAMP + 9)
    yield "a clear does not cover marks", [title, others, clear]
    branch = replace(late, branch="draft-2.b")
    yield "a branch has its own items", [first, branch, other]


def _random_history(chance: random.Random) -> Iterator[Operation]:
    writers = [Writer(name, "true") for name in names(3)]
    ops: list[Operation] = []
    for _ in range(12):
        writer, choice = chance.choice(writers), chance.randrange(1 << 12)
        what = chance.choice(("append", "append", "append", "pop", "clear", "mark", "learn"))
        if what == "learn":
            writer.learn(chance.sample(ops, len(ops) // 2))
        elif what == "append":
            texts = (f'"{writer.name} {writer.counter + 1}.{n}"' for n in range(1 + choice % 2))
            ops.append(writer.write(Kind.APPEND, tuple(texts), writer.turn(choice // 4)))
        elif what == "mark":
            mark = Mark("title", str(choice % 2), choice)
            ops.append(writer.write(Kind.MARK, (encode_mark(mark),)))
        elif what == "clear":
            marked = {op.dot for op in ops if op.kind is Kind.MARK}
            covered = Frontier.of(frontier_of(writer.known.values()) - marked)
            ops.append(writer.write(Kind.CLEAR, (encode_clear(covered),)))
        elif items := [op for op in writer.known.values() if op.kind is Kind.APPEND]:
            op = chance.choice(items)
            ref = ItemRef(op.dot, choice % len(op.payloads), len(op.payloads))
            ops.append(writer.write(Kind.POP, (encode_pop(ref),)))
    return iter(chance.sample(ops, len(ops)))


def orders() -> Iterator[Case]:
    """Return appends in any order, and the order of them in the history."""
    turns = [None, HEAD, TurnKey(STAMP, PHONE, 1), TurnKey(STAMP - 1, "7" * 64, 9)]
    ops = [
        append("0", dot=Dot(writer, counter), stamp=stamp, turn=turn)
        for writer, counters in ((PHONE, (8, 9, 10)), (LAPTOP, (8, 11)), ("7" * 64, (1 << 40,)))
        for counter in counters
        for stamp, turn in [(STAMP + counter % 3, turns[(counter + len(writer)) % 4])]
    ]
    ops += [append("0", dot=Dot(PHONE, 1)), append("0", dot=Dot(LAPTOP, 4))]
    ops.append(append("0", dot=Dot(PHONE, 100), stamp=(1 << 62) - 1, turn=HEAD))
    ops.append(append("0", dot=Dot(LAPTOP, 100), stamp=STAMP, turn=HEAD))
    random.Random(5).shuffle(ops)
    yield {
        "about": "by turn, then by stamp, writer and counter",
        "operations": [operation_json(op) for op in ops],
        "ordered": [[op.dot.writer, op.dot.counter] for op in sorted(ops, key=order)],
    }


def payloads() -> Iterator[Case]:
    """Return payloads of pops, clears and marks, and whether they are valid."""
    pop = '{"w":"phonephonephone","c":1,"i":0,"n":1}'
    valid = {
        "pop": [pop, '{"w":"x","c":9007199254740991,"i":2147483646,"n":2147483647}'],
        "clear": ["{}", '{"phonephonephone":[[1,4],[6,6]]}'],
        "mark": [
            '{"type":"title","key":"","value":null}',
            '{"key":"k","value":[18446744073709551615,-9223372036854775808,1.5],"type":"a.b-c_9"}',
        ],
    }
    invalid = {
        "pop": [
            "{}",
            "[]",
            pop.replace('"c":1', '"c":0'),
            pop.replace('"c":1', '"c":1.0'),
            pop.replace('"c":1', '"c":9007199254740992'),
            pop.replace('"i":0', '"i":1'),
            pop.replace('"i":0', '"i":-1'),
            pop.replace('"n":1', '"n":2147483648'),
            pop.replace('"n":1', '"n":true'),
            pop.replace('"phonephonephone"', "7"),
        ],
        "clear": [
            "[]",
            '{"phonephonephone":[]}',
            '{"phonephonephone":[[0,1]]}',
            '{"phonephonephone":[[2,1]]}',
            '{"phonephonephone":[[1]]}',
            '{"phonephonephone":[[1,9007199254740992]]}',
        ],
        "mark": [
            "{}",
            "7",
            '{"type":"title","key":""}',
            '{"type":"title","key":"","value":1,"more":2}',
            '{"type":"","key":"","value":1}',
            '{"type":"a b","key":"","value":1}',
            '{"type":"title","key":7,"value":1}',
            '{"type":"title","key":"","value":NaN}',
            '{"type":"title","key":"","value":1e999}',
            '{"type":"title","key":"","value":"\\ud800"}',
            '{"type":"title","key":"' + "k" * 257 + '","value":1}',
            '{"type":"title","key":"","value":' + "[" * 65 + "]" * 65 + "}",
        ],
    }
    for is_valid, kinds in ((True, valid), (False, invalid)):
        for kind, texts in kinds.items():
            for text in texts:
                yield {"kind": kind, "payload": text, "valid": is_valid}


def unusual() -> Iterator[Case]:
    """Return memories that this library does not write and that a reader must accept."""
    op = OPERATIONS["the head of a turn"]
    own = {"cs_ts": f"{STAMP:016x}", "cs_tw": PHONE, "cs_tc": 1}
    for about, fields in {
        "a head that names itself": own,
        "an empty branch and key": {"cs_b": "", "cs_k": ""},
        "integers as floats": {"cs_c": 1.0, "cs_n": 1.0, "cs_i": 0.0, "cs_p": 1.0, "cs_j": 0.0},
        "integers as texts": {"cs_c": "1", "cs_n": "1", "cs_i": "0", "cs_p": "1", "cs_j": "0"},
        "an unknown field": {"cs_zz": [1]},
    }.items():
        case = _refusal(about, op, fields)
        del case["refused_at"]
        yield {**case, "operation": operation_json(op)}


def refusals() -> Iterator[Case]:
    """Return memories that a reader must not apply, each with the reason and the step that finds
    it."""
    op = OPERATIONS["two items in the turn of another device"]
    turn = {"cs_ts": f"{STAMP:016x}", "cs_tw": LAPTOP, "cs_tc": 4}
    yield from _changed(
        op,
        {
            "the writer has an illegal character": {"cs_w": "PhonePhone"},
            "the writer is too short": {"cs_w": "phone"},
            "the counter is not the counter in the id": {"cs_c": 8},
            "the counter is too large": {"cs_c": 1 << 53},
            "the counter is not an integer": {"cs_c": 7.5},
            "the stamp is zero": {"cs_s": "0" * 16},
            "the stamp is 2**62": {"cs_s": f"{1 << 62:016x}"},
            "the stamp is a number": {"cs_s": 5},
            "the stamp has too few digits": {"cs_s": "5"},
            "the kind is unknown": {"cs_op": "merge"},
            "the kind is missing": {"cs_op": None},
            "the time is out of range": {"cs_t": 1 << 53},
            "there are no payloads": {"cs_n": 0},
            "there are too many payloads": {"cs_n": 1 << 31},
            "the index is not below the number of payloads": {"cs_n": 1},
            "the part is not below the number of parts": {"cs_j": 1},
            "the text is empty": {"cs_x": ""},
            "the text is too long": {"cs_x": "x" * 12289},
            "the text is not ASCII": {"cs_x": "é"},
            "the digest is missing": {"cs_d": None},
            "the seal is missing": {"cs_e": None},
            "the stamp of the turn is above that of the operation": {"cs_ts": f"{STAMP + 6:016x}"},
            "the stamp of the turn is zero": {"cs_ts": "0" * 16},
            "the counter of the turn is zero": {"cs_tc": 0},
            "the counter of the turn is too large": {"cs_tc": 1 << 53},
            "the writer of the turn is not valid": {"cs_tw": "a|b"},
            "the turn begins with a later operation of its own writer": {
                "cs_tw": PHONE,
                "cs_tc": 8,
            },
            "the turn names its own operation with another stamp": {"cs_tw": PHONE, "cs_tc": 7},
            "the branch has an illegal character": {"cs_b": "a|b"},
            "the branch is too long": {"cs_b": "b" * 65},
            "the key id is not a text": {"cs_k": 7},
        },
    )
    for left in turn:
        case = _refusal(f"the turn has no {left}", op, {})
        del case["memories"][1]["metadata"][left]
        yield case
    yield from _changed(OPERATIONS["a pop"], {"a pop has a turn": turn})
    yield from _changed(OPERATIONS["a pop"], {"a pop is encrypted": {"cs_k": "2026-11"}})
    yield from _changed(OPERATIONS["a pop"], {"a pop has two payloads": {"cs_n": 2}})
    yield from _changed(OPERATIONS["a clear on a branch"], {"a clear has a turn": turn})
    yield from _changed(OPERATIONS["a mark"], {"a mark has a turn": turn})
    yield from _changed(OPERATIONS["a mark"], {"a mark has a branch": {"cs_b": "draft"}})
    yield from _changed(
        OPERATIONS["version 1, a pop"], {"version 1 has no marks": {"cs_op": "mark"}}
    )
    for version in (0, 3, 9999):
        case = _refusal(f"there is no wire version {version}", op, {"cs_v": version})
        for memory in case["memories"]:
            memory["id"] = memory["id"].replace("cs2-", f"cs{version}-")
        yield case
    case = _refusal("the memory is of another session", op, {})
    yield {**case, "session_id": "another session"}
    case = _refusal("the metadata is missing", op, {})
    case["memories"][1]["metadata"] = None
    yield case
    yield from _unsealed(op)


def _unsealed(op: Operation) -> Iterator[Case]:
    for about, fields in {
        "the text does not match the seal": {"cs_x": QUESTION.replace("parcel", "letter")},
        "the seal is another": {"cs_e": "0" * 16},
        "the turn is another": {"cs_tc": 3},
        "the turn is left out": {"cs_ts": f"{op.stamp:016x}", "cs_tw": PHONE, "cs_tc": 7},
        "the branch is another": {"cs_b": "draft"},
        "the key is another": {"cs_k": "2026-11"},
        "the stamp is another": {"cs_s": f"{STAMP + 6:016x}"},
        "the item is private": {"cs_h": 1},
    }.items():
        case = _refusal(about, op, fields, at="seal")
        if "cs_x" not in fields and "cs_e" not in fields:
            for memory in case["memories"]:
                memory["metadata"].update(fields)
        yield case


def _changed(op: Operation, changes: dict[str, dict[str, Any]]) -> Iterator[Case]:
    for about, fields in changes.items():
        yield _refusal(about, op, fields)


def _refusal(about: str, op: Operation, fields: dict[str, Any], at: str = "memory") -> Case:
    """Return a case whose last memory has other fields than the operation."""
    written = [
        {"id": memory["id"], "metadata": copy.copy(memory["metadata"])}
        for memory in memories_of(op, op.digest(KEY), SESSION)
    ]
    written[-1]["metadata"].update(fields)
    return {"about": about, "session_id": SESSION, "refused_at": at, "memories": written}


FILES = {
    "escapes": escapes,
    "digests": digests,
    "ids": ids,
    "parts": parts,
    "memories": memories,
    "orders": orders,
    "merges": merges,
    "payloads": payloads,
    "unusual": unusual,
    "refusals": refusals,
}


def main() -> None:
    """Write all files."""
    for name, cases in FILES.items():
        text = json.dumps(list(cases()), indent=1)
        (HERE / f"{name}.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
