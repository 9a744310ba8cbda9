"""Every code block of the documentation runs, page by page, from top to bottom.

A block says what it is. ``python`` and ``bash`` are run as a reader runs them; ``toml`` and
``yaml`` are read; ``text`` is no code. One that cannot be run says why, in a comment before it:
``<!-- not run: needs Docker -->``. Two other comments stand before blocks, unseen by readers:
``<!-- first: ... -->`` holds Python that makes what the block needs, and ``<!-- until stopped -->``
says that each line of it runs until Ctrl-C.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import cached_session
import cached_session.testing
from cached_session import SyncOptions, errors
from cached_session.devserver import DevServer
from cached_session.history.parts import PART_BYTES
from cached_session.journal import tail_cache
from cached_session.remote import wire

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PICTURE_BYTES = 128 * 1024
"""The largest size of a picture: a page loads several, and each version stays in the history."""
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
ELSEWHERE = {"frameworks.md": "tests/adapters/test_framework_examples.py"}
"""Pages whose blocks need another environment, and the test that runs them there."""
SERVER = "http://localhost:3000"
"""Placeholder for a server: blocks use a development server of their page instead, on a free
port."""
METRICS_PORT = "9464"
"""Placeholder for the port of a block's server, which is replaced by a free one."""
MOST_NOT_RUN = 4
SHELL = f"""
make() {{ command make --dry-run -C '{ROOT}' "$@" >/dev/null; }}
pip() {{ (cd '{ROOT}' && '{sys.executable}' -m tests.installable "$@"); }}
python() {{
    [[ "$1 $2" == "-m "@(tests|benchmarks).* ]] || {{ command python "$@"; return; }}
    local help word; help=$(cd '{ROOT}'; command python -m "$2" --help) || return 1
    for word in "$@"; do [[ $word != --* ]] || grep -q -e "$word" <<<"$help" || return 1; done
}}
"""
"""Commands that are checked and not run: for `make` the target must exist, for `pip` the package
must be ours or pinned, and for a test campaign its options must be valid."""


@dataclass(frozen=True)
class Block:
    """A code block that a reader may paste."""

    kind: str
    code: str
    line: int
    why_not: str = ""
    first: str = ""
    until_stopped: bool = False


def blocks(text: str) -> Iterator[Block]:
    """Return the blocks of a page with the content of the comment before each."""
    comment = ""
    for token in MarkdownIt().enable("table").parse(text):
        if token.type == "html_block":
            comment = token.content.strip().removeprefix("<!--").removesuffix("-->").strip()
        elif token.type in ("fence", "code_block"):
            what, _, said = comment.partition(":")
            yield Block(
                kind=token.info.split(" ")[0],
                code=token.content,
                line=(token.map or [0])[0] + 1,
                why_not=said.strip() if what == "not run" else "",
                first=textwrap.dedent(said) if what == "first" else "",
                until_stopped=what == "until stopped",
            )
            comment = ""
        elif token.type == "inline":
            comment = ""


def of_page(page: Path) -> list[Block]:
    return list(blocks(page.read_text(encoding="utf-8")))


def run(kind: str, code: str, place: Path) -> subprocess.CompletedProcess[str]:
    """Run one block as its reader does: a program, or commands in a shell."""
    command = (
        [sys.executable, "-W", "error", "-c", runnable(code)]
        if kind == "python"
        else ["bash", "-euc", SHELL + code]
    )
    return subprocess.run(
        command,
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment(place: Path) -> dict[str, str]:
    """Make an environment with an empty home directory, so that no block uses the journal or the
    settings of the user."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DAKERA_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HOME": str(place), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
    return {**clean, **home, "PATH": path, "PYTHONPATH": str(ROOT / "examples")}


def runnable(code: str) -> str:
    """Compile a block with top-level await, as `python -m asyncio` would."""
    tree = compile(code, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if not any(isinstance(node, ast.Await) for part in tree.body for node in _outside(part)):
        return code
    body = textwrap.indent(code, "    ")
    return f"import asyncio\nasync def _block():\n{body}\nasyncio.run(_block())"


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """Return the nodes of a statement that are in no function."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from _outside(child)


def run_until_output(line: str, place: Path) -> None:
    """Start a command, wait for its first output, and interrupt it."""
    with subprocess.Popen(
        # The shell is replaced by the command, which would ignore Ctrl-C as a background process.
        ["bash", "-euc", f"exec {line}"],
        cwd=place,
        env={**environment(place), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert process.poll() is None, f"{line}\n{said}{process.stdout.read()}"
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=30)[0]
            assert process.returncode in (0, 130), f"{line}\n{said}{rest}"
        finally:
            process.kill()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def check(block: Block, url: str, port: str, place: Path) -> None:
    """Run the block, or parse it."""

    def real(code: str) -> str:
        return code.replace(SERVER, url).replace(METRICS_PORT, port)

    if block.kind == "toml":
        tomllib.loads(block.code)
    elif block.kind == "yaml":
        assert yaml.safe_load(block.code)
    elif block.until_stopped:
        for line in block.code.splitlines():
            run_until_output(real(line).replace("--port 3000", "--port 0"), place)
    else:
        if block.first and block.kind != "python":
            done = run("python", real(block.first), place)
            assert done.returncode == 0, f"{block.first}\n{done.stdout}{done.stderr}"
        before = block.first if block.kind == "python" else ""
        done = run(block.kind, real(before + "\n" + block.code), place)
        assert done.returncode == 0, f"{block.code}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if of_page(page) and page.name not in ELSEWHERE],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page share a directory, and succeed without a warning."""
    run_page(page, tmp_path)


def run_page(page: Path, place: Path) -> None:
    with DevServer() as server:
        port = free_port()
        for block in of_page(page):
            if block.kind != "text" and not block.why_not:
                check(block, server.url, port, place)


def test_a_page_that_is_run_elsewhere_is_run_there() -> None:
    """The test that is listed for the page names it."""
    for page, test in ELSEWHERE.items():
        assert (DOCS / page).exists()
        assert f'"{page}"' in (ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_block_has_a_known_language(page: Path) -> None:
    """An indented block, or a language that is not run, is found, so that no block is skipped."""
    known = {"python", "bash", "toml", "yaml", "text"}
    lost = [
        f"line {block.line}: {block.kind!r}" for block in of_page(page) if block.kind not in known
    ]
    assert not lost, f"{page.name}: {lost}"


def test_few_blocks_are_not_run() -> None:
    """Only blocks that need more than a test has (Docker, a cluster) are excluded, with a
    reason."""
    reasons = [block.why_not for page in PAGES for block in of_page(page) if block.why_not]
    assert all(len(reason) > 8 for reason in reasons)
    assert len(reasons) <= MOST_NOT_RUN


def test_everything_public_is_in_the_reference() -> None:
    """The API page names each public name, unless it has its own page, and each has a docstring."""
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    elsewhere = {f"cached_session.{name}" for name in [*errors.__all__, "SyncOptions"]}
    for module in (cached_session, cached_session.testing):
        public = {f"{module.__name__}.{name}" for name in module.__all__}
        assert public - named - elsewhere == set()
        assert [name for name in module.__all__ if not getattr(module, name).__doc__] == []


def test_every_field_on_the_wire_is_explained() -> None:
    """Each metadata field that the code writes or reads is in the tables of the wire page."""
    page = (DOCS / "reference" / "wire.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(cs_\w+)`", page, re.MULTILINE))
    used = set(re.findall(r'"(cs_\w+)"', inspect.getsource(wire)))
    assert explained == used


@pytest.mark.parametrize(
    "words",
    [
        "nothing was sent for",
        "is the process alive",
        "syncs this journal",
        "is locked by another program",
        "may forget",
        "continues",
        "is parked: ",
        "was damaged. ",
        ".damaged-",
    ],
)
def test_the_troubleshooting_page_quotes_the_code(words: str) -> None:
    """The page quotes messages of the terminal and the log literally, so that a search finds
    them."""
    assert words in (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    package = Path(cached_session.__file__).parent
    assert any(words in path.read_text(encoding="utf-8") for path in package.rglob("*.py"))


def test_the_architecture_page_names_every_module() -> None:
    """Each top-level module and package has its row, and each row its module."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE)
    named = {name.rstrip("/") for row in rows for name in re.findall(r"`([a-z_.]+/?)`", row)}
    package = Path(cached_session.__file__).parent
    there = {
        path.name
        for path in package.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.name[0] != "_"
    }
    assert there - named == set()
    assert {name for name in named - there if "." in name or (package / name).is_dir()} == set()


def test_figures_match_the_code() -> None:
    """Defaults and limits on the pages are those of the library."""
    options = SyncOptions()
    said = {
        "guides/sizing.md": [
            f"an item over {PART_BYTES // 1024} KiB",
            f"at most {tail_cache.MOST_BYTES_IN_ALL >> 20} MiB of all histories",
            f"{tail_cache.MOST_BYTES_OF_ONE >> 20} MiB of one; of a longer one, its tail",
            f"written within {options.push_delay * 1000:.0f} ms",
            f"{options.max_batch_memories} memories or {options.max_batch_bytes // 1024} KiB each",
            f"one listing every {options.poll_interval_listening:.0f} s, whatever",
            f"one listing every {options.poll_interval:.0f} s for a session in use",
            f"growing to every {options.poll_interval_idle:.0f} s",
            f"about once in {options.audit_interval / 3600:.0f} h",
            f"in pages of {options.page_size}",
            f"pages of {options.first_page_size}, then {options.page_size} memories",
            f"`parallel_sessions` ({options.parallel_sessions})",
        ],
        "concepts.md": [
            f"`hydrate_timeout`, {options.hydrate_timeout:.0f} seconds",
            f"`close_timeout`, {options.close_timeout:.0f} seconds",
        ],
        "guides/multiple-devices.md": [f"`poll_interval` ({options.poll_interval:.0f} seconds)"],
        "guides/offline.md": [f"`backoff_max` ({options.backoff_max:.0f} seconds)"],
        "guides/keys.md": [f"an expiry in {wire.TTL_SECONDS // 365 // 86400} years"],
        "../README.md": [f"polled every {options.poll_interval:.0f} seconds"],
    }
    missing = {
        page: [figure for figure in figures if figure not in (DOCS / page).read_text("utf-8")]
        for page, figures in said.items()
    }
    assert not any(missing.values()), missing


def test_the_comparison_names_every_session_of_the_sdk() -> None:
    """The page covers the installed SDK, and describes the wrapper's default correctly."""
    from agents import memory
    from agents.extensions import memory as extensions

    page = (DOCS / "comparison.md").read_text(encoding="utf-8")
    interfaces = {"OpenAIResponsesCompactionAwareSession", "Session", "SessionABC"}
    theirs = {
        name
        for module in (memory, extensions)
        for name in module.__all__
        if name.endswith("Session") and name not in interfaces
    }
    assert len(theirs) > 5
    assert [name for name in sorted(theirs) if f"`{name}`" not in page] == []
    ttl = inspect.signature(extensions.EncryptedSession.__init__).parameters["ttl"].default
    assert ttl == 600
    assert "its default is ten minutes" in page
    assert "empty after ten minutes" in (DOCS / "faq.md").read_text(encoding="utf-8")


def test_the_alerts_use_existing_metrics(tmp_path: Path) -> None:
    """The recipe is run, and it serves every metric that an alert uses."""
    page = of_page(DOCS / "observability.md")
    (program,) = [block for block in page if block.kind == "python"]
    (alerts,) = [yaml.safe_load(block.code) for block in page if block.kind == "yaml"]
    with DevServer() as server:
        code = program.code.replace(SERVER, server.url).replace(METRICS_PORT, free_port())
        lines = run("python", code, tmp_path).stdout.splitlines()
    served = {re.split(r"[ {]", line)[0] for line in lines}
    asked = {alert["expr"].split(" ")[0] for alert in alerts}
    assert asked
    assert asked <= served


def test_the_reference_holds_no_code_that_is_not_run() -> None:
    """The docstrings on the reference pages contain no code blocks, including those of the
    adapters."""
    shown = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"cached_session.adapters.Bridge", "cached_session.remote.wire"} <= shown
    found = [
        f"{name}: {block.code}"
        for name in sorted(shown)
        for text in docstrings(name)
        for block in blocks(text)
    ]
    assert not found


def docstrings(name: str) -> Iterator[str]:
    """Return the docstrings of a module, or of a class or function with its members. Adapters are
    parsed and not imported, because their frameworks may be missing."""
    at = ROOT / name.replace(".", "/")
    if at.is_dir() or at.with_suffix(".py").exists():
        module, inner = name, None
    else:
        module, _, inner = name.rpartition(".")
        if (ROOT / module.replace(".", "/")).is_dir():
            found = getattr(importlib.import_module(module), inner)
            module, inner = found.__module__, found.__name__
    place = ROOT / module.replace(".", "/")
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    tree: ast.AST = ast.parse(source.read_text(encoding="utf-8"))
    if inner is not None:
        (tree,) = [one for one in ast.walk(tree) if getattr(one, "name", None) == inner]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def test_blocks_are_found_with_their_comments() -> None:
    """A reason, a preparation and an indented block are found, and a comment elsewhere is
    ignored."""
    page = textwrap.dedent("""
        <!-- not run: needs Docker -->
        ```bash
        docker compose up
        ```
        <!-- first:
        x = 1
        -->
        ```python
        print(x)
        ```
        <!-- not run: of something else -->
        words

            indented()
    """)
    docker, python, indented = blocks(page)
    assert (docker.kind, docker.why_not, docker.first) == ("bash", "needs Docker", "")
    assert (python.kind, python.why_not, python.first.strip()) == ("python", "", "x = 1")
    assert (indented.kind, indented.why_not, indented.code) == ("", "", "indented()\n")


def test_a_failing_block_is_reported(tmp_path: Path) -> None:
    """The runner distinguishes success from failure in every language."""
    for kind, code in (
        ("python", "raise SystemExit(3)"),
        ("python", "import asyncio\nawait asyncio.sleep(0)\nraise SystemExit(3)"),
        ("bash", "false; true"),
        ("bash", "make no-such-target"),
        ("bash", "pip install 'cached-session[no-such-extra]'"),
        ("bash", "pip install a-package-that-nobody-pinned"),
    ):
        assert run(kind, code, tmp_path).returncode != 0, code
    with pytest.raises(AssertionError, match="no-such-command"):
        run_until_output("cached-session no-such-command", tmp_path)


def test_the_pictures_in_the_repository_are_small_and_shown() -> None:
    """Each picture is small and is shown on a page."""
    texts = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for folder in ("images", "plots", "screens"):
        for picture in (DOCS / folder).iterdir():
            assert f"{folder}/{picture.name})" in texts, picture
            assert picture.stat().st_size < PICTURE_BYTES, picture
