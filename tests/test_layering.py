"""Imports point down, between folders and inside them (docs/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "cached_session"
ROOT = Path(__file__).parent.parent / PACKAGE

# A layer may import from itself and from the layers named here. A top-level module of the package
# is a layer of its own, by its name. `history` is the bottom.
SEAMS = {"errors", "fork_safety", "options", "runtime", "models", "telemetry", "humanize"}
REMOTE = {"remote.protocol", "remote.ids", "remote.errors", "remote.wire"}  # modules without I/O
ENGINE = SEAMS | REMOTE | {"history", "journal", "replication"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "models": set(),
    "options": {"errors"},
    "runtime": {"errors"},
    "fork_safety": set(),
    "telemetry": {"fork_safety"},
    "humanize": set(),
    "history": {"errors", "runtime"},
    "journal": SEAMS | {"history"},
    "remote": SEAMS | {"history"},
    "replication": SEAMS | REMOTE | {"history", "journal"},
    "paths": {"errors"},
    "engine": ENGINE | {"paths", "remote.connect"},
    "session": ENGINE | {"engine", "paths", "remote.connect"},
    "cache": ENGINE | {"engine", "paths", "remote.connect", "session"},
    "moving": ENGINE | {"cache", "engine", "session"},
    "diagnosis": ENGINE | {"cache", "paths", "remote.connect", "remote.dakera", "remote.probe"},
    "__init__": SEAMS
    | {"cache", "diagnosis", "engine", "journal", "moving", "replication", "session"},
    "cli": SEAMS | {"__init__", "cache", "devserver", "paths", "session"},
    "__main__": {"cli"},
    "devserver": set(),
    "testing": SEAMS | {"cache", "devserver", "session"},
    "adapters": SEAMS | {"cache", "session"},
}


# The tiers of each folder, lowest first: a module may import from lower tiers, and not from its
# own. A subfolder is one entry; the test on circles alone orders its modules.
TIERS: dict[str, list[set[str]]] = {
    "history": [
        {"clock", "item_text", "ranges", "session_name", "tool_calls"},
        {"frontier", "ids"},
        {"session_ref"},
        {"ops"},
        {"order", "parts", "turns"},
    ],
    "journal": [
        {"sqlite"},
        {"tables"},
        {"recovery"},
        {"open_connection", "quota", "start_thread", "tail_cache", "thread_pool"},
        {"connections", "inspection"},
        {"idle_work"},
        {"writer"},
        {"readers"},
        {"get_items", "search"},
        {"history"},
        {"imports"},
        {"journal"},
        {"compaction"},
    ],
    "remote": [
        {"address", "bounded_body", "dns", "errors", "ids", "json_body", "redact", "sse"},
        {"memory_fields", "sdk"},
        {"wire"},
        {"http", "protocol"},
        {"probe", "retention"},
        {"dakera"},
        {"connect"},
    ],
    "replication": [
        {
            "announced",
            "backoff",
            "batch_size",
            "claim_rules",
            "gap_search",
            "listing_progress",
            "local_errors",
            "results",
            "steady_clock",
            "stream_trust",
            "tasks",
        },
        {
            "listing_scan",
            "pauses",
            "push_plan",
            "push_state",
            "schedule",
            "server_check",
            "store_plan",
        },
        {"context"},
        {"encode_memories", "event_listener", "ingest", "leader", "retention_guard", "store"},
        {"gaps", "listing", "push"},
        {"pull"},
        {"announced_loop", "audit", "confirmed_pop", "pull_loop"},
        {"audit_loop", "push_loop"},
        {"replicator"},
    ],
    "engine": [
        {
            "accepted_server",
            "loop_host",
            "notifier",
            "open_turns",
            "sdk_compaction",
            "session_config",
            "status_report",
        },
        {"first_read"},
        {"engine"},
        {"changes", "importer", "network_calls"},
    ],
    "cli": [
        {"config", "detect_format", "escape", "exit_codes"},
        {"extras", "output", "progress", "sessions"},
        {"common", "devserver", "render_history", "render_reports", "render_status"},
        {"commands", "import_export", "parked"},
        {"app"},
        {"main"},
    ],
    "diagnosis": [
        {"finding", "lock_holders"},
        {"journal_file", "journal_state", "locks", "server"},
    ],
    "moving": [{"direct_items", "jsonl", "sqlite"}, {"export", "file_import"}, {"dakera_import"}],
    "adapters": [{"bridge", "item_format"}, {"langchain", "llama_index", "pydantic_ai", "strands"}],
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def layer(module: str) -> str:
    """Return the layer of a module: `cached_session.journal.tables.item_rows` is in `journal`,
    `cached_session` in `__init__`."""
    return [*module.split("."), "__init__"][1]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Return (absolute name, line) of each import, including those inside functions and for
    types."""
    package = module_name(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                ups = node.level - (path.name == "__init__.py")
                base = ".".join([*package[: len(package) - ups], *filter(None, [base])])
            for alias in node.names:
                inner = ROOT.parent.joinpath(*base.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield (f"{base}.{alias.name}" if is_module else base), node.lineno


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    for name, line in imports(path):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            yield name, line


def may(module: str, imported: str) -> bool:
    mine, theirs = layer(module), layer(imported)
    if mine == theirs:
        return True
    allowed = ALLOWED[mine]
    return theirs in allowed or ".".join(imported.split(".")[1:3]) in allowed


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    """No module imports from a layer above it, lazily or for types."""
    module = module_name(path)
    assert layer(module) in ALLOWED, f"{module} is in no layer; put it on the map"
    upward = [f"line {line}: {name}" for name, line in own_imports(path) if not may(module, name)]
    assert not upward, f"{module} may not import {', '.join(upward)}"


def tier(module: str) -> tuple[str, int] | None:
    """Return the ordered folder of a module and its tier there; None where no order is declared."""
    folder, *inner = [*module.split(".")[1:], "", ""][:2]
    if folder not in TIERS or not inner[0]:
        return None
    for number, names in enumerate(TIERS[folder]):
        if inner[0] in names:
            return folder, number
    raise AssertionError(f"{module} has no tier in its folder; add it to TIERS")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_inside_a_folder(path: Path) -> None:
    """No module imports from its own tier of its folder or from one above it."""
    module = module_name(path)
    mine = tier(module)
    if mine is None or path.name == "__init__.py":
        return
    for name, line in own_imports(path):
        theirs = tier(name)
        if theirs is None or theirs[0] != mine[0]:
            continue
        same_subfolder = theirs == mine and name.split(".")[:3] == module.split(".")[:3]
        assert theirs[1] < mine[1] or same_subfolder, f"line {line}: {module} imports {name}"


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or through others."""

    def reachable(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for following in graph.get(waiting.pop(), set()) - found:
                found.add(following)
                waiting.append(following)
        return found

    reach = {module: reachable(module) for module in graph}
    groups = {
        frozenset(other for other in reach[module] if module in reach.get(other, ()))
        for module in graph
        if module in reach[module]
    }
    return [set(group) for group in groups]


def test_no_modules_import_each_other() -> None:
    """There is no import circle anywhere in the package."""
    names = {module_name(path) for path in modules()}
    graph = {
        module_name(path): {name for name, _ in own_imports(path) if name in names}
        - {module_name(path)}
        for path in modules()
    }
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    """The search for circles finds one through several modules, and nothing else."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


FRAMEWORKS = {
    "langchain_core": "adapters/langchain.py",
    "llama_index": "adapters/llama_index.py",
    "pydantic_ai": "adapters/pydantic_ai.py",
    "strands": "adapters/strands.py",
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_is_imported_by_its_adapter_alone(framework: str) -> None:
    """No other module imports it, so that the library works without it."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in modules()
        for name, _ in imports(path)
        if name.split(".")[0] == framework
    }
    assert users == {FRAMEWORKS[framework]}


def test_history_does_no_input_or_output() -> None:
    """The modules of the model import nothing that does I/O."""
    world = {"aiosqlite", "anyio", "asyncio", "dakera", "httpx", "os", "pathlib", "random"}
    world |= {"secrets", "socket", "sqlite3", "threading", "time", "uuid"}
    reached = {
        f"{path.name}: {name}"
        for path in (ROOT / "history").rglob("*.py")
        for name, _ in imports(path)
        if name.split(".")[0] in world
    }
    assert not reached


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("cached_session.journal.tables.item_rows", "cached_session.history.ops", True),
        ("cached_session.history.ops", "cached_session.journal.tables.item_rows", False),
        ("cached_session.replication.pull", "cached_session.remote.protocol", True),
        ("cached_session.replication.pull", "cached_session.remote.dakera", False),
        ("cached_session.devserver.app", "cached_session.remote.wire", False),
        ("cached_session.session", "cached_session.cli.main", False),
        ("cached_session.session", "cached_session.testing", False),
        ("cached_session.session", "cached_session.adapters", False),
        ("cached_session.adapters.strands", "cached_session.engine.engine", False),
        ("cached_session.remote.dakera", "cached_session.journal", False),
    ],
)
def test_the_rule_itself_forbids_upward_imports(module: str, imported: str, allowed: bool) -> None:
    """The rule that the other tests apply gives the intended answers for examples."""
    assert may(module, imported) is allowed


SQL_WORDS = ("import sqlite3", "sqlite3.connect", "lambda conn", "conn.execute", "PRAGMA")


def test_sql_is_written_in_the_journal_alone() -> None:
    """No module above the journal uses its connections: callers use methods with names. The import
    of other databases and the development server have databases of their own."""
    others = {"journal", "devserver"}
    allowed = {"moving/sqlite.py", "moving/direct_items.py"}
    found = []
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        if name.split("/")[0] in others or name in allowed:
            continue
        text = path.read_text(encoding="utf-8")
        found += [f"{name}: {word}" for word in SQL_WORDS if word in text]
    assert found == []
