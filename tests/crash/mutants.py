"""Run the kills on mutants of the library: ``python -m tests.crash.mutants``.

Each mutant is one replacement of text in a copy of the library. `docs/testing.md` contains the
output.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

MUTANTS: dict[str, tuple[str, str, str]] = {
    "a call returns before its commit": (
        "journal/writer.py",
        "                _commit(conn)\n            except",
        (
            "                for function, result in zip(functions, results, strict=True):\n"
            "                    if hasattr(function, '__self__'):\n"
            "                        function.__self__.done(result, None)\n"
            "                _commit(conn)\n            except"
        ),
    ),
    "an operation and its effect are two transactions": (
        "journal/writer.py",
        "            try:\n                # Check under the lock",
        (
            '            conn.execute("COMMIT")\n'
            "            _commit = lambda _: None\n"
            "            try:\n                # Check under the lock"
        ),
    ),
    "ack: stored before the operation is sent": (
        "replication/push.py",
        "        try:\n            unkept = await store(",
        (
            "        early = [operation.seq for operation in step.operations]\n"
            "        await context.journal.outbox.acknowledge(early, 1)\n"
            "        try:\n            unkept = await store("
        ),
    ),
    "outbox: operations are removed before the server responds": (
        "journal/tables/outbox.py",
        "    return [seq for seq, *_ in chosen]\n",
        (
            "    acknowledge(conn, [seq for seq, *_ in chosen])\n"
            "    return [seq for seq, *_ in chosen]\n"
        ),
    ),
    "outbox: operations in flight at a kill are not sent again": (
        "journal/tables/outbox.py",
        "seq <= ? AND {UNSENT} ORDER BY seq LIMIT ?",
        "seq <= ? AND state = {PENDING} ORDER BY seq LIMIT ?",
    ),
}


class Changed(Exception):
    """The text that a mutant replaces is missing."""


def attempt(module: str, old: str, new: str, kills: int, seed: int) -> tuple[int | None, str]:
    """Return the number of kills after which a mutant is caught (None: never), and the message."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "cached_session", root / "cached_session", ignore=skip)
        shutil.copytree(ROOT / "tests/crash", root / "tests/crash", ignore=skip)
        path = root / "cached_session" / module
        text = path.read_text()
        if text.count(old) != 1:
            raise Changed(module)
        path.write_text(text.replace(old, new))
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tests.crash.campaign"),
                *("--kills", str(kills), "--seed", str(seed)),
            ],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    if not done.returncode:
        return None, ""
    found = re.search(
        r"HistoryMismatch: seed \d+, (?:after )?kill (\d+)(?: \([^)]*\))?: (.*)", done.stderr
    )
    if found is None:
        return 0, done.stderr.strip().splitlines()[-1][:90]
    return int(found[1]) + 1, found[2][:90].replace("|", "/")


def main() -> int:
    """Try every mutant, and return 1 if one of them survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    given = parser.parse_args()
    survivors = 0
    print("| what is broken | caught after | says |\n|---|---|---|")
    for name, change in MUTANTS.items():
        if given.only not in name:
            continue
        kills, says = attempt(*change, given.kills, given.seed)
        survivors += kills is None
        after = "**not caught**" if kills is None else f"{kills} kills"
        print(f"| {name} | {after} | {says} |", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
