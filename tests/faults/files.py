"""Let the Nth file operation fail, for every N until a run passes without a fault: ``make faults``.

Each run is a fork of this process, which has imported everything and opened nothing. It works on a
copy of the files that its scene begins with. Every file operation passes the fault library
(`shim.c`, preloaded): the Nth fails once or permanently, is cut short, or kills the process.
`workload.Work` checks each call. Afterwards, the same session and a new one must show everything
that was acknowledged and accept a new item, and the file must be sound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import select
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cached_session import CachedSession, SyncOptions
from tests.faults.shim import FAULTS, KILL, Fault, Shim, build
from tests.faults.workload import Work, text_message

OPTIONS = SyncOptions(busy_timeout=0.2, close_timeout=1.0)
LONGEST = 60.0
LEFT_OVER = (".salvaging", ".salvaging-wal", ".salvaging-shm", ".salvaged", ".salvaged-wal")

Tell = Callable[..., None]


def opened(path: Path) -> CachedSession:
    return CachedSession("s", journal=path, options=OPTIONS)


# -- scenes ----------------------------------------------------------------------------------------


async def nothing(_: Path) -> None:
    """Begin without a file."""


async def some_messages(path: Path) -> None:
    async with opened(path) as session:
        await session.add_items(text_message("old"))
        await session.add_items(text_message("a", "b"))


async def damaged(path: Path) -> None:
    """Damage the index of the outbox, so that the first write detects it."""
    await some_messages(path)
    with closing(sqlite3.connect(path)) as conn:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = 'place'"
        (root,) = conn.execute(sql).fetchone()
        (size,) = conn.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)


async def calls(work: Work, arm: Callable[[], None], path: Path) -> None:
    """Run all calls of a session, from opening to the last one before the close."""
    arm()
    await work.everything()


async def close(work: Work, arm: Callable[[], None], path: Path) -> None:
    """Close a session and open it again while the fault lasts."""
    await work.add("c")
    arm()
    await work.session.close()
    work.session = opened(path)
    await work.read()
    await work.add("d")


async def recover(work: Work, arm: Callable[[], None], path: Path) -> None:
    """Detect damage, set the file aside and copy its contents to a new file."""
    arm()
    await work.add("refused")
    await work.add("c")
    await work.read()
    await work.pop()


async def follow(work: Work, arm: Callable[[], None], path: Path) -> None:
    """Remove the file and its log while the session has it open."""
    await work.add("c")
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    arm()
    await work.add("d")
    await work.pop()
    await work.add("e")
    await work.read()


@dataclass(frozen=True)
class Scene:
    begin: Callable[[Path], Awaitable[None]]
    play: Callable[[Work, Callable[[], None], Path], Awaitable[None]]
    state: tuple[str, ...]
    """Prepares the journal."""
    asides: int = 0
    """Number of damaged files that the scene sets aside."""
    survives: bool = True
    """Whether everything acknowledged survives a kill. Items in a file that was removed while it
    was open exist only in that process."""


OLD = ("old", "a", "b")
SCENES = {
    "calls": Scene(nothing, calls, ()),
    "close": Scene(some_messages, close, OLD),
    "recover": Scene(damaged, recover, OLD, asides=1),
    "follow": Scene(some_messages, follow, OLD, survives=False),
}


# -- one run ---------------------------------------------------------------------------------------


async def play(
    scene: Scene, path: Path, fault: Fault, nth: int, shim: Shim, tell: Tell
) -> dict[str, Any]:
    """Play a scene with a fault, then without one, and return what happened."""
    work = Work(opened(path), [list(scene.state)], tell=lambda states: tell("possible", states))
    await scene.play(work, lambda: shim.arm(fault, nth), path)
    shim.heal()
    hit, where, passed = shim.hit, shim.where, shim.passed
    if fault.action == KILL:
        assert not hit, "it should be dead"
    if scene.asides:
        # If the damage has not been detected yet, detect it now.
        await work.add("noticed")
    await work.check_after_fault()
    await work.session.close()
    await reopened(scene, path, work.possible)
    return {"hit": hit, "where": where, "passed": passed, "failed": work.failed}


async def reopened(scene: Scene, path: Path, possible: list[list[str]]) -> None:
    """Open another session: it must show what is stored and accept more, the file must be sound,
    and no temporary file may be left."""
    work = Work(opened(path), possible)
    if scene.asides:
        await work.add("noticed")
    await work.check_after_fault()
    await work.session.close()
    with closing(sqlite3.connect(path)) as conn:
        sound = [row[0] for row in conn.execute("PRAGMA integrity_check")]
        assert sound == ["ok"], sound
    files = sorted(found.name for found in path.parent.iterdir())
    asides = [name for name in files if ".damaged-" in name and not name.endswith(("-wal", "-shm"))]
    assert len(asides) == scene.asides, files
    assert not [name for name in files if name.endswith(LEFT_OVER)], files


def forked(run: Callable[[Tell], Any]) -> tuple[list[list[Any]], int]:
    """Return what a forked child reports, and how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)

            def tell(*values: Any) -> None:
                os.write(write, json.dumps(values).encode() + b"\n")

            result = asyncio.run(run(tell))
            tell("done", result)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - told to the parent
            text = json.dumps(["error", traceback.format_exc()[-6000:]])
            os.write(write, text.encode() + b"\n")
            os._exit(1)
    os.close(write)
    data, until = b"", time.monotonic() + LONGEST
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            data += b'["error", "it hangs"]\n'
            break
        more = os.read(read, 1 << 16)
        if not more:
            break
        data += more
    os.close(read)
    _, status = os.waitpid(pid, 0)
    lines = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    return lines, status


def run_once(
    scene: Scene, template: Path, place: Path, fault: Fault, nth: int, shim: Shim
) -> dict[str, Any]:
    """Run once over a copy of the template and return what happened, with "error" if that is a
    failure."""
    shutil.copytree(template, place)
    path = place / "j.db"
    told, status = forked(lambda tell: play(scene, path, fault, nth, shim, tell))
    kind, *rest = told[-1] if told else ("error", "it told nothing")
    if kind == "done":
        return rest[0]
    if fault.action == KILL and os.WIFSIGNALED(status) and kind == "possible":
        allowed = rest[0]
    elif fault.action == KILL and os.WIFSIGNALED(status) and not told:
        allowed = [list(scene.state)]
    else:
        return {"error": rest[0]}
    if not scene.survives:
        return {"hit": True, "where": "", "failed": {}}
    told, _ = forked(lambda _: reopened(scene, path, allowed))
    if told[-1][0] == "error":
        return {"error": told[-1][1]}
    return {"hit": True, "where": "killed", "failed": {}}


# -- all of them -----------------------------------------------------------------------------------


def run_each(
    name: str, fault_name: str, shim: Shim, base: Path, *, stride: int, first: int
) -> tuple[Counter[str], list[str]]:
    """Run with N = first, first + stride, ... until a run passes without a fault, and return the
    results and the failures."""
    scene, fault = SCENES[name], FAULTS[fault_name]
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    template = base / "template"
    template.mkdir()
    told, _ = forked(lambda _: scene.begin(template / "j.db"))
    assert told[-1][0] == "done", told
    nth = first
    while True:
        place = base / "run"
        found = run_once(scene, template, place, fault, nth, shim)
        tally["runs"] += 1
        if "error" in found:
            kept = Path(tempfile.mkdtemp(prefix=f"wrong-{name}-{nth}-"))
            shutil.copytree(place, kept / "files")
            wrong.append(f"{name}, {fault_name}, N={nth} (files in {kept}):\n{found['error']}")
            if len(wrong) >= 5:
                break
        elif not found["hit"]:
            # In the damage scene only the call that detects the damage may fail.
            calls_failed = sum(found["failed"].values())
            if calls_failed > scene.asides:
                wrong.append(f"{name}: a run without a fault failed: {found['failed']}")
            break
        else:
            for error, count in found["failed"].items():
                tally[error] += count
        shutil.rmtree(place)
        nth += stride
    shutil.rmtree(base / "run", ignore_errors=True)
    shutil.rmtree(template)
    return tally, wrong


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scene", choices=SCENES, action="append")
    parser.add_argument("--fault", choices=FAULTS, action="append")
    parser.add_argument("--stride", type=int, default=1, help="every so many operations")
    parser.add_argument("--nth", type=int, help="only this one")
    parser.add_argument("--seed", type=int, default=0, help="where below the stride it begins")
    given = parser.parse_args()
    if "shim" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as directory:
            library = build(Path(directory))
            if library is None:
                print("there is no C compiler (cc): the fault library cannot be built")
                return 2
            environment = {**os.environ, "LD_PRELOAD": str(library)}
            command = [sys.executable, "-m", "tests.faults.files", *sys.argv[1:]]
            return os.spawnve(os.P_WAIT, sys.executable, command, environment)
    if given.nth is None:
        logging.disable()
    began = time.monotonic()
    runs, all_wrong = 0, []
    for name in given.scene or SCENES:
        for fault_name in given.fault or FAULTS:
            first = random.Random(f"{given.seed}{name}{fault_name}").randint(1, given.stride)
            with tempfile.TemporaryDirectory() as directory:
                base = Path(directory).resolve()
                shim = Shim(base / "run")
                tally, wrong = run_each(
                    name,
                    fault_name,
                    shim,
                    base,
                    stride=given.stride if given.nth is None else 1_000_000,
                    first=given.nth or first,
                )
            failed = ", ".join(
                f"{error} {tally[error]}" for error in sorted(tally) if error != "runs"
            )
            print(f"{name:8} {fault_name:26} {tally['runs']:5} runs  {failed}", flush=True)
            for text in wrong:
                print(text, flush=True)
            runs += tally["runs"]
            all_wrong += wrong
    seconds = time.monotonic() - began
    print(f"{runs} runs in {seconds:.0f} s, {len(all_wrong)} went wrong")
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
