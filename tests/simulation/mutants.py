"""Run the simulation on mutants of the library: ``python -m tests.simulation.mutants``.

Each mutant is one replacement of text in a copy of the library. `docs/testing.md` contains the
output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["MUTANTS", "main"]

ROOT = Path(__file__).parents[2]

MUTANTS: dict[str, tuple[str, str, str]] = {
    "tie-break: equal stamps sort by counter before writer": (
        "journal/tables/states.py",
        'columns = ("session", "branch", *PLACE.split(", "))',
        (
            'columns = ("session", "branch", "turn_stamp", "turn_counter", "turn_writer", "stamp", '
            '"counter", "writer")'
        ),
    ),
    "turn: left out of the order": (
        "journal/tables/states.py",
        'columns = ("session", "branch", *PLACE.split(", "))',
        'columns = ("session", "branch", "stamp", "writer", "counter")',
    ),
    "turn: left out of the places of items": (
        "journal/tables/new_rows.py",
        "        place = (*op.turn_key, op.stamp, *op.dot)",
        "        place = (op.stamp, *op.dot, op.stamp, *op.dot)",
    ),
    "turn: left out of the digest": (
        "history/ops.py",
        "    stamp, writer, counter = turn or TurnKey(stamp, *dot)",
        "    stamp, writer, counter = TurnKey(stamp, *dot)",
    ),
    "turn: not on the wire": (
        "remote/wire.py",
        "    if op.turn is not None:\n",
        "    if False:\n",
    ),
    "turn: an answer does not look for its call": (
        "journal/tables/writes.py",
        "if turn is None and choice.answers:",
        "if turn is None and choice.answers and False:",
    ),
    "turn: stored parts forget it": (
        "journal/tables/inbox.py",
        "turn=None if key == (stamp, *dot) else key,",
        "turn=None,",
    ),
    "turn: a batch that is not the last is added to the cached tail": (
        "journal/tables/writes.py",
        "is_last = tx.is_last(op)",
        "is_last = True",
    ),
    "mark: covered by a clear": (
        "journal/tables/frontier_tables.py",
        "            if kind in (Kind.CLEAR.value, Kind.MARK.value)",
        (
            "            if kind == Kind.MARK.value:\n                continue\n"
            "            if kind == Kind.CLEAR.value"
        ),
    ),
    "mark: removed by a clear": (
        "journal/tables/apply.py",
        "    def _clear(self, covered: Frontier, by: Dot | None) -> None:\n",
        (
            "    def _clear(self, covered: Frontier, by: Dot | None) -> None:\n"
            '        self.conn.execute("DELETE FROM marks WHERE session = ?", (self.session,))\n'
        ),
    ),
    "mark: an earlier one replaces a later one": (
        "journal/tables/marks.py",
        '"> (stamp, writer, counter)"',
        '"<> (stamp, writer, counter)"',
    ),
    "batch: a missing part counts as a removed item": (
        "history/parts.py",
        "            return None\n        if text is",
        "            payloads.append(GONE)\n            continue\n        if text is",
    ),
    "pop: forgotten if it arrives before its item": (
        "journal/tables/apply.py",
        "hidden = set(self.popped(op.dot))",
        "hidden: set[int] = set()",
    ),
    "clear: forgotten if it arrives before an item": (
        "journal/tables/apply.py",
        "        if op.dot.counter in known.cleared:\n            hidden",
        "        if False:\n            hidden",
    ),
    "ack: the ids in the response are not compared": (
        "replication/store_plan.py",
        "unconfirmed = [memory for memory in step.memories if memory.id not in stored]",
        "unconfirmed: list[EncodedMemory] = []",
    ),
    "ack: a request without a usable response counts as acknowledged": (
        "replication/store_plan.py",
        "        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):\n",
        (
            "        if error.verdict is Verdict.UNREACHABLE:\n            return\n"
            "        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):\n"
        ),
    ),
    "clear: the frontier covers operations that have not arrived": (
        "journal/tables/writes.py",
        "encode_clear(tx.clear_frontier())",
        "encode_clear(_all_of(tx.frontier()))",
    ),
    "clear: the frontier names earlier clears": (
        "journal/tables/frontier_tables.py",
        "if kind in (Kind.CLEAR.value, Kind.MARK.value) or not self._is_here(",
        "if kind == Kind.MARK.value or kind == Kind.POP.value and not self._is_here(",
    ),
    "clear: the frontier names a pop whose item has not arrived": (
        "journal/tables/frontier_tables.py",
        "if kind in (Kind.CLEAR.value, Kind.MARK.value) or not self._is_here(",
        "if kind in (Kind.CLEAR.value, Kind.MARK.value) or False and not self._is_here(",
    ),
    "claim: won whatever the server responds": (
        "replication/claim_rules.py",
        "return deleted >= 1 or claim.is_parked",
        "return deleted >= 0 or claim.is_parked",
    ),
    "claim: an item that is being sent counts as never sent": (
        "journal/tables/claims.py",
        "    if state == PENDING:",
        "    if state in (PENDING, SENT):",
    ),
    "claim: the stored intent says that the server was not asked": (
        "replication/confirmed_pop.py",
        "claims.record(session, claim, ClaimState.ASKED, context.now_ms())",
        "claims.record(session, claim, ClaimState.RESERVED, context.now_ms())",
    ),
    "claim: no intent is stored before the server is asked": (
        "journal/tables/claims.py",
        '"INSERT INTO claims VALUES',
        '"INSERT INTO claims SELECT * FROM (VALUES (?, ?, ?, ?, ?, ?, ?)) WHERE 0 --',
    ),
    "claim: notes of other devices are ignored": (
        "replication/claim_rules.py",
        "if claimers == {own}:",
        "if own in claimers:",
    ),
    "claim: a response without the device's own note counts": (
        "replication/claim_rules.py",
        "if claimers == {own}:",
        "if claimers <= {own}:",
    ),
    "claim: a parked item that is retried counts as never sent": (
        "journal/tables/parked_operations.py",
        'f"UPDATE waiting SET state = {SENT}, error',
        'f"UPDATE waiting SET state = 0, error',
    ),
    "migration: a journal of format 1 keeps its format number": (
        "journal/tables/schema.py",
        'FORMAT, _statements())\n    conn.execute(f"PRAGMA user_version = {FORMAT}")',
        "FORMAT, _statements())",
    ),
    "migration: a journal of format 1 gets an empty search index": (
        "journal/tables/search_index.py",
        "conn.execute(f\"INSERT OR REPLACE INTO meta VALUES ('{KEY}', '0')\")",
        (
            "last = '(SELECT coalesce(max(seq), 0) FROM ops)'\n"
            "        conn.execute(f\"INSERT OR REPLACE INTO meta VALUES ('{KEY}', {last})\")"
        ),
    ),
    "claim: no note is left on the server": (
        "replication/confirmed_pop.py",
        "        await remote.leave_note()\n",
        "        context.remote.find_by_tag = _only(claim_note, claim)\n",
    ),
    "claim: a parked item counts as never sent": (
        "journal/tables/claims.py",
        "    if state == PENDING:",
        "    if state in (PENDING, PARKED):",
    ),
    "claim: a lost item counts as popped": (
        "replication/confirmed_pop.py",
        "claims.requeue(session, claim)",
        "claims.confirm(context.author(), session, claim)",
    ),
    "listing: pages that do not connect count as complete": (
        "replication/listing_scan.py",
        "        if is_inconsistent and self.is_finished and",
        "        if False and",
    ),
    "listing: a resumed listing need not connect to its earlier pages": (
        "replication/listing_scan.py",
        "self._above[-CHECKPOINT_IDS:],",
        "(),",
    ),
    "listing: memories added above a resumed listing are skipped": (
        "replication/pull.py",
        "            if await listing.read(whole=whole):\n",
        "            if await listing.read(whole=whole) and False:\n",
    ),
    "digests are not checked": (
        "history/parts.py",
        "if text is None or seal(head, first.digest, index, text) != by_position[index, 0].seal:",
        "if text is None:",
    ),
    "run: continues after an operation of another writer": (
        "history/clock.py",
        "is_near = last_was_mine and now_ms",
        "is_near = now_ms",
    ),
    "run: continues after a pruned operation arrives again": (
        "journal/tables/apply.py",
        "        if own or not is_known:\n",
        "        if True:\n",
    ),
    "parked: the gap of a partly stored batch is not explained": (
        "replication/gap_search.py",
        "                if found is None:\n                    return True",
        "                if found is None:\n                    return False",
    ),
    "dropped: the claim of a dropped operation stays": (
        "journal/tables/claims.py",
        "        shown = [] if op is None else payloads_of(conn, op.seq)\n",
        (
            "        if op is None:\n            continue\n"
            "        shown = payloads_of(conn, op.seq)\n"
        ),
    ),
    "dropped: the pull position is not reset": (
        "journal/tables/parked_operations.py",
        "    if dropped:\n",
        "    if False:\n",
    ),
    "stamp: taken from the wall clock only": (
        "history/clock.py",
        "max(wall, highest + 1)",
        "max(wall, 1)",
    ),
    "gaps: missing operations are not fetched": (
        "replication/gaps.py",
        "    due = await gaps.due(\n",
        "    return\n    due = await gaps.due(\n",
    ),
    "forget: sent before the removal is acknowledged": (
        "journal/tables/outbox.py",
        "b.seq IS NULL AND",
        "1 AND",
    ),
    "forget: sent before the item itself is acknowledged": (
        "journal/tables/outbox.py",
        "a.seq IS NULL LIMIT",
        "1 LIMIT",
    ),
    "forget: marked as done before the server is asked": (
        "replication/push.py",
        "        for start in range(0, len(ids), FORGETS_A_REQUEST):\n",
        (
            "        await outbox.delete_forgets(session, due)\n"
            "        for start in range(0, len(ids), FORGETS_A_REQUEST):\n"
        ),
    ),
    "writer: the same id after every opening": (
        "engine/engine.py",
        "self.writer = runtime.writer()",
        "self.writer = new_writer(hash_of(path))",
    ),
    "audit: a removed item that was restored stays": (
        "replication/audit.py",
        "    if not plan.resend:\n        return plan.forget\n",
        "    if True:\n        return plan.forget\n",
    ),
    "pauses: measured with the wall clock only": (
        "replication/steady_clock.py",
        "        return max(now, steady)",
        "        return now",
    ),
    "tail cache: survives a write of another process": (
        "journal/sqlite/tracked_connection.py",
        "return conn, conn.data_version(), conn.history_changes",
        "return conn, 0, conn.history_changes",
    ),
}
PRELUDE = {
    "replication/confirmed_pop.py": (
        "\n\ndef _only(note, claim):\n"
        "    async def tagged(agent, tag):\n"
        "        ref = claim.ref\n"
        "        from cached_session.remote.wire import claim_id\n"
        "        key = agent.rsplit('-', 1)[1]\n"
        "        who = claim.claimer\n"
        "        mine = claim_id(key, ref.dot, ref.index, who)\n"
        "        return [{'id': mine, 'metadata': {'cs_by': who}}]\n\n"
        "    return tagged\n"
    ),
    "journal/tables/writes.py": (
        "\n\ndef _all_of(frontier):\n"
        "    from cached_session.history.frontier import Frontier\n\n"
        "    return Frontier({writer: 1 << 40 for writer in frontier.writers()})\n"
    ),
    "engine/engine.py": (
        "\n\nfrom cached_session.runtime import new_writer\n\n\ndef hash_of(path):\n"
        "    import hashlib\n\n"
        "    return hashlib.sha256(os.path.basename(path).encode()).digest()[:15]\n"
    ),
}
"""Code that a mutant needs at the end of its module."""


def main(arguments: list[str] | None = None) -> int:
    """Try every mutant, and return 1 if one of them survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    asked = parser.parse_args(arguments)
    survivors = 0
    print("| what is broken | caught after | says |\n|---|---|---|")
    for name, change in MUTANTS.items():
        if asked.only in name:
            try:
                seeds, error = _try(*change, asked.seeds, asked.jobs)
            except _Changed as changed:
                survivors += 1
                print(f"| {name} | {changed} has changed: write this one anew | |", flush=True)
                continue
            survivors += seeds is None
            after = "**not caught**" if seeds is None else f"{seeds} seeds"
            print(f"| {name} | {after} | {error} |", flush=True)
    return 1 if survivors else 0


class _Changed(Exception):
    """The text that a mutant replaces is missing."""


def _broken(text: str, module: str, old: str, new: str) -> str:
    """Return the text of a module with one replacement.

    Raises:
        _Changed: the text to replace is missing, or occurs more than once.
    """
    if text.count(old) != 1:
        raise _Changed(module)
    return text.replace(old, new) + PRELUDE.get(module, "")


def _try(module: str, old: str, new: str, seeds: int, jobs: int) -> tuple[int | None, str]:
    """Return the number of seeds after which a mutant is caught (None: never), and the message."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "cached_session", root / "cached_session", ignore=skip)
        for used in ("tests/simulation", "tests/golden"):
            shutil.copytree(ROOT / used, root / used, ignore=skip)
        path = root / "cached_session" / module
        path.write_text(_broken(path.read_text(), module, old, new))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.simulation.run", "--shrink", "0", "--json"),
                *("--seeds", str(seeds), "--jobs", str(jobs)),
            ],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["failed"]:
        return None, ""
    first = f"seed {found['failed'][0]} failed: "
    says = [line for line in done.stderr.splitlines() if line.startswith(first)]
    return found["failed"][0] + 1, (says or [first])[0].removeprefix(first)[:90].replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
