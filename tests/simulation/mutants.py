"""``python -m tests.simulation.mutants``: break the library one way at a time; is it noticed?

Each mutant is one replacement of text in a copy of the library. What stands in `docs/testing.md` is
what this prints.
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
        "journal/reads.py",
        'writer DESC, counter DESC, idx DESC"\n)\n"""The same',
        'counter DESC, writer DESC, idx DESC"\n)\n"""The same',
    ),
    "batch completeness: what is missing counts as removed": (
        "history/parts.py",
        "        else:\n            return None\n    op = ",
        "        else:\n            payloads.append(GONE)\n    op = ",
    ),
    "a pop that came before its item is not remembered": (
        "journal/apply.py",
        "hidden = set(self.popped(op.dot))",
        "hidden: set[int] = set()",
    ),
    "a clear that came before an item is not remembered": (
        "journal/apply.py",
        "        if counter in known.cleared:\n            hidden",
        "        if False:\n            hidden",
    ),
    "ack: the ids in the answer are not compared": (
        "replication/push.py",
        "        if memory[\"id\"] not in stored and not await _is_held(link, agent, memory)",
        "        if False",
    ),
    "ack: an answer without a yes counts as one": (
        "replication/push.py",
        "        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):\n            raise",
        "        if error.verdict is Verdict.UNREACHABLE:\n"
        "            return set()\n"
        "        if error.verdict not in (Verdict.REFUSED, Verdict.CONFLICT):\n            raise",
    ),
    "clear: the frontier covers what is not here yet": (
        "journal/writes.py",
        "clear_payload(tx.unsettled())",
        "clear_payload(_all_of(tx.frontier()))",
    ),
    "claim: whatever the server says, the item is ours": (
        "replication/claim.py",
        "[identity]) == 1",
        "[identity]) >= 0",
    ),
    "claim: what is being sent counts as never sent": (
        "journal/claims.py",
        "return self.state == PENDING",
        "return self.state in (PENDING, SENT)",
    ),
    "claim: the intent says that nothing was asked": (
        "journal/claims.py",
        '"UPDATE claims SET asked = 1 WHERE',
        '"UPDATE claims SET asked = 0 WHERE',
    ),
    "claim: an item lost to another is popped again": (
        "replication/claim.py",
        "lost |= {(claim.ref.dot, claim.ref.index)}",
        "lost |= frozenset()",
    ),
    "seals are not checked": (
        "history/parts.py",
        "seal(key, first.digest, index) != ",
        "seal(key, first.digest, index) is ",
    ),
    "run: goes on after something from elsewhere": (
        "history/clock.py",
        "current is not None and last_was_mine and",
        "current is not None and",
    ),
    "stamp: the wall clock alone": (
        "history/clock.py",
        "max(wall, highest_seen + 1)",
        "max(wall, 1)",
    ),
    "holes are not repaired": (
        "replication/pull.py",
        "    due = await link.journal.read(\n",
        "    return\n    due = await link.journal.read(\n",
    ),
    "forget: before the removal is acknowledged": (
        "journal/outbox.py",
        "coalesce(b.state, 2) = 2",
        "1",
    ),
    "forget: before the item itself is acknowledged": (
        "journal/outbox.py",
        "coalesce(a.state, 2) = 2",
        "1",
    ),
    "forget: struck off before the server was asked": (
        "replication/push.py",
        "        for start in range(0, len(ids), FORGETS_A_REQUEST):\n            await link.remote",
        "        await link.journal.write(\n"
        "            lambda conn, due=due: outbox.forgotten(conn, session_id, due)\n        )\n"
        "        for start in range(0, len(ids), FORGETS_A_REQUEST):\n            await link.remote",
    ),
    "writer: the same after every opening": (
        "core.py",
        "self.writer = runtime.writer()",
        "self.writer = new_writer(hash_of(path))",
    ),
    "audit: a removed item put back stays": (
        "replication/audit.py",
        "        if plan.resend:\n            # Another",
        "        if False:\n            # Another",
    ),
    "pauses end by the wall clock alone": (
        "replication/link.py",
        "        return max(now, steady)",
        "        return now",
    ),
    "a warm tail outlives another process's write": (
        "journal/items.py",
        "version = (changed, conn.total_changes)",
        "version = (0, conn.total_changes)",
    ),
}
PRELUDE = {
    "journal/writes.py": (
        "\n\ndef _all_of(frontier):\n"
        "    from cached_session.history.frontier import Frontier\n\n"
        "    return Frontier({writer: 1 << 40 for writer in frontier.writers()})\n"
    ),
    "core.py": (
        "\n\nfrom cached_session.runtime import new_writer\n\n\ndef hash_of(path):\n"
        "    import hashlib\n\n"
        "    return hashlib.sha256(os.path.basename(path).encode()).digest()[:15]\n"
    ),
}
"""What a mutant needs besides, at the end of its module."""


def main(arguments: list[str] | None = None) -> int:
    """Try every mutant; 1 if one of them survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    asked = parser.parse_args(arguments)
    survivors = 0
    print("| what is broken | caught after | says |\n|---|---|---|")
    for name, change in MUTANTS.items():
        if asked.only in name:
            seeds, error = _try(name, *change, asked.seeds, asked.jobs)
            survivors += seeds is None
            after = "**not caught**" if seeds is None else f"{seeds} seeds"
            print(f"| {name} | {after} | {error} |", flush=True)
    return 1 if survivors else 0


def _try(
    name: str, module: str, old: str, new: str, seeds: int, jobs: int
) -> tuple[int | None, str]:
    """After how many seeds a mutant is caught (None: never), and by which complaint."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "cached_session", root / "cached_session", ignore=skip)
        shutil.copytree(ROOT / "tests/simulation", root / "tests/simulation", ignore=skip)
        path = root / "cached_session" / module
        text = path.read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{name}: {module} has changed; write this mutant anew")
        path.write_text(text.replace(old, new) + PRELUDE.get(module, ""))
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.run", "--seeds", str(seeds)]
            + ["--jobs", str(jobs), "--shrink", "0", "--json"],
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
