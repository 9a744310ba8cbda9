"""The public names exist and are documented, and there are no others."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import cached_session

PROMISED = {
    "CachedSession",
    "CachedSessionError",
    "Entry",
    "InvalidArgument",
    "JournalCorrupt",
    "JournalError",
    "JournalFull",
    "JournalTooNew",
    "PopUnconfirmed",
    "SessionCache",
    "SessionClosed",
    "Status",
    "SyncError",
    "SyncOptions",
    "SyncReport",
    "SyncTimeout",
    "Unauthorized",
}
OPERATIONS = {
    "CachedSession": (
        "from_url get_items add_items pop_item clear_session sync flush status entries search "
        "recall parked retry_parked drop_parked audit close"
    ).split(),
    "SessionCache": "session status sync flush close".split(),
}


def test_all_holds_every_documented_name() -> None:
    """Each name in the documentation can be imported from the package."""
    assert set(cached_session.__all__) >= PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED | set(cached_session.__all__)))
def test_a_public_name_is_documented(name: str) -> None:
    """`help()` has a text for each public name."""
    thing = getattr(cached_session, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.getdoc(thing), f"{name} has no docstring"
        assert thing.__doc__, f"{name} only inherits its docstring"


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in OPERATIONS.items() for name in names]
)
def test_an_operation_is_documented(owner: str, name: str) -> None:
    """Every public operation exists and describes its guarantees."""
    assert inspect.getdoc(getattr(getattr(cached_session, owner), name))


def test_errors_have_one_root() -> None:
    """Catching `CachedSessionError` catches every error that the library raises on purpose."""
    errors = {
        thing
        for name in cached_session.__all__
        if inspect.isclass(thing := getattr(cached_session, name)) and issubclass(thing, Exception)
    }
    assert errors
    assert all(issubclass(error, cached_session.CachedSessionError) for error in errors)


def test_importing_the_library_loads_no_extra() -> None:
    """`import cached_session` works with the run-time dependencies alone."""
    extras = {"agents", "rich", "starlette", "typer", "uvicorn", "pytest"}
    extras |= {"langchain_core", "llama_index", "pydantic_ai", "strands"}
    code = f"import sys, cached_session; print(sorted({extras} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
