"""Key prefixes: the same session id under two prefixes is two sessions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cached_session import (
    CachedSession,
    InvalidArgument,
    Progress,
    SessionCache,
    SessionClosed,
    SyncError,
    SyncOptions,
    export_jsonl,
    import_dakera_export,
    import_jsonl,
)
from cached_session.devserver import DevServer
from cached_session.history.ids import agent_id
from cached_session.history.session_name import MARKER, session_name
from tests.session.session_support import contents, messages

PATIENCE = 30.0
QUICK = SyncOptions(request_timeout=5.0, close_timeout=0.5)


def leaks(*values: object) -> list[object]:
    """Return the values whose text shows an internal name."""
    shown = (MARKER, repr(MARKER)[1:-1], json.dumps(MARKER)[1:-1])
    return [value for value in values if any(mark in f"{value} {value!r}" for mark in shown)]


@pytest.mark.parametrize(
    "bad", [None, 1, b"shop", "a\ud800", "p" * 201], ids=["none", "int", "bytes", "lone", "long"]
)
def test_an_invalid_prefix_is_refused(bad: Any) -> None:
    """Every constructor refuses it, and the message names the argument."""
    for make in (
        lambda: CachedSession("1", journal=":memory:", key_prefix=bad),
        lambda: CachedSession.from_url(
            "1", url="http://localhost:1", journal=":memory:", key_prefix=bad
        ),
        lambda: SessionCache(":memory:", key_prefix=bad),
    ):
        with pytest.raises(InvalidArgument, match="key_prefix="):
            make()


@pytest.mark.parametrize("prefix", ["", "shop", "p" * 200, "Ü/\x00:\x1f1:a:", "日本"])
async def test_a_valid_prefix_is_accepted(prefix: str, place: str) -> None:
    """Any text of at most 200 characters is a prefix, and the session works with it."""
    async with CachedSession("1", journal=place, key_prefix=prefix) as session:
        assert (session.session_id, session.key_prefix) == ("1", prefix)
        await session.add_items(messages("a"))
        assert contents(await session.get_items()) == ["a"]


async def test_the_repr_shows_the_prefix(journal: Path) -> None:
    """It is shown if it is not empty."""
    async with SessionCache(journal) as plain, SessionCache(journal, key_prefix="shop") as shop:
        assert "key_prefix='shop'" in repr(shop)
        assert "key_prefix='shop'" in repr(shop.session("1"))
        assert "key_prefix" not in repr(plain) + repr(plain.session("1"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("", "1"), ("shop", "1")),
        (("shop", "1"), ("help", "1")),
        (("a", "b:c"), ("a:b", "c")),
        (("ab", "c"), ("a", "bc")),
        (("", "shop:1"), ("shop", "1")),
        (("", "\x1f4:shop:1"), ("shop", "1")),
    ],
)
async def test_two_prefixes_are_two_histories(
    journal: Path, one: tuple[str, str], other: tuple[str, str]
) -> None:
    """Items, pops, clears and searches of one session do not reach the other."""
    async with (
        CachedSession(one[1], journal=journal, key_prefix=one[0]) as first,
        CachedSession(other[1], journal=journal, key_prefix=other[0]) as second,
    ):
        await first.add_items(messages("apple", "plum"))
        await second.add_items(messages("apple", "pear"))
        assert contents(await first.get_items()) == ["apple", "plum"]
        assert contents([e.item for e in await second.search("apple")]) == ["apple"]
        assert await first.search("pear") == []
        assert contents([await second.pop_item()]) == ["pear"]
        assert (first.status().items, second.status().items) == (2, 1)
        await second.clear_session()
        assert contents([e.item for e in await first.entries()]) == ["apple", "plum"]
        assert await second.get_items() == []


async def test_caches_of_two_prefixes_share_a_journal(journal: Path) -> None:
    """Each lists, counts and reads its own sessions, by their public ids, over one engine."""
    async with (
        SessionCache(journal) as plain,
        SessionCache(journal, key_prefix="shop") as shop,
        SessionCache(journal, key_prefix="help") as empty,
    ):
        assert plain._engine is shop._engine
        await plain.session("1").add_items(messages("a"))
        await shop.session("1").add_items(messages("b", "c"))
        await shop.session("2").add_items(messages("d"))
        assert [info.session_id for info in await plain.sessions()] == ["1"]
        assert {info.session_id for info in await shop.sessions()} == {"1", "2"}
        assert [info.session_id for info in await empty.sessions()] == []
        assert {name: one.items for name, one in plain.status().sessions.items()} == {"1": 1}
        assert {name: one.items for name, one in shop.status().sessions.items()} == {"1": 2, "2": 1}
        assert (plain.status().items, shop.status().items, empty.status().items) == (1, 3, 0)
        assert (plain.status().pending, shop.status().pending) == (1, 2)
        whole = shop.journal_status()
        assert (whole.items, whole.pending, dict(whole.sessions)) == (4, 3, {})
        found = {
            prefix: {name: one.items for name, one in status.sessions.items()}
            for prefix, status in whole.prefixes.items()
        }
        assert found == {"": {"1": 1}, "shop": {"1": 2, "2": 1}}
        assert [one.pending for one in whole.prefixes.values()] == [1, 2]


async def test_changes_of_one_prefix_do_not_wake_the_other(journal: Path) -> None:
    """An iteration reports the changes of its own session only."""
    async with SessionCache(journal) as plain, SessionCache(journal, key_prefix="shop") as shop:
        changes = shop.session("1").changes([])
        await plain.session("1").add_items(messages("a"))
        await shop.session("1").add_items(messages("b"))
        change = await changes.__anext__()
        assert contents([entry.item for entry in change.entries]) == ["b"]


async def test_turns_of_two_prefixes_are_apart(journal: Path) -> None:
    """A block of one session does not take in the appends to the other."""
    async with SessionCache(journal) as plain, SessionCache(journal, key_prefix="shop") as shop:
        one, two = plain.session("1"), shop.session("1")
        async with one.turn():
            await one.add_items(messages("a"))
            await two.add_items(messages("b"))
            await two.add_items(messages("c"))
            await one.add_items(messages("d"))
        assert len(await one.turns()) == 1
        assert len(await two.turns()) == 2


async def test_two_prefixes_are_apart_on_the_server(journal: Path, server: DevServer) -> None:
    """Each has its own agent, and another device fetches each history on its own."""
    device: dict[str, Any] = {"url": server.url, "options": QUICK}
    async with (
        SessionCache(journal, key_prefix="shop", **device) as shop,
        SessionCache(journal, key_prefix="help", **device) as support,
    ):
        await shop.session("1").add_items(messages("a", "b"))
        await support.session("1").add_items(messages("c"))
        report = await shop.sync(timeout=PATIENCE)
        assert report.pending == 0
        assert shop.status().pending == 0
        await support.flush(timeout=PATIENCE)
        await shop.session("1").pop_item()
        await shop.flush(timeout=PATIENCE)
    agents = {prefix: agent_id(session_name(prefix, "1")) for prefix in ("shop", "help")}
    assert set(server.agents()) == set(agents.values())
    for prefix, agent in agents.items():
        assert agent.startswith(f"cs-{prefix}-1-")
        listed = [memory["metadata"] for memory in server.memories(agent)]
        named = [fields for fields in listed if "cs_sid" in fields]
        assert named
        assert {(fields["cs_pre"], fields["cs_sid"]) for fields in named} == {(prefix, "1")}
    other = journal.with_name("other.db")
    async with CachedSession.from_url("1", journal=other, key_prefix="shop", **device) as session:
        await session.sync(timeout=PATIENCE)
        assert contents(await session.get_items()) == ["a"]
        recalled = await session.recall("c")
        assert all(entry.item["content"] == "a" for entry in recalled.entries)
    async with CachedSession.from_url("1", journal=other, key_prefix="help", **device) as session:
        assert contents(await session.get_items()) == ["c"]
        audited = await session.audit()
        assert (audited.listed, audited.healed) == (1, 0)
    async with CachedSession.from_url("1", journal=other, **device) as session:
        await session.sync(timeout=PATIENCE)
        assert await session.get_items() == []


async def test_a_sync_of_a_cache_is_for_its_prefix(journal: Path, server: DevServer) -> None:
    """Its report counts the operations of its own sessions only."""
    async with SessionCache(journal, key_prefix="shop") as shop, SessionCache(journal) as plain:
        await shop.session("1").add_items(messages("a"))
        await plain.session("1").add_items(messages("b"))
        await plain.session("2").add_items(messages("c"))
    async with SessionCache(journal, url=server.url, options=QUICK, key_prefix="none") as empty:
        report = await empty.sync(timeout=PATIENCE)
        assert (report.pushed, report.pulled, report.pending) == (0, 0, 0)


async def test_a_confirmed_pop_takes_the_item_of_its_prefix(
    journal: Path, server: DevServer
) -> None:
    """The claim concerns the session with the prefix."""
    device: dict[str, Any] = {
        "url": server.url,
        "options": QUICK,
        "journal": journal,
        "pop": "confirmed",
    }
    async with (
        CachedSession.from_url("1", key_prefix="shop", **device) as shop,
        CachedSession.from_url("1", **device) as plain,
    ):
        await shop.add_items(messages("a"))
        await plain.add_items(messages("b"))
        await shop.flush(timeout=PATIENCE)
        await plain.flush(timeout=PATIENCE)
        assert contents([await shop.pop_item()]) == ["a"]
        assert await shop.pop_item() is None
        assert contents(await plain.get_items()) == ["b"]


async def test_progress_and_reports_have_the_public_id(
    journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """Callbacks, import reports and exports show the session id, never the internal name."""
    lines = tmp_path / "in.jsonl"
    lines.write_text("".join(json.dumps(item) + "\n" for item in messages("a", "b")))
    seen: list[Any] = []
    async with CachedSession.from_url(
        "1", url=server.url, journal=journal, key_prefix="shop", options=QUICK
    ) as session:
        report = await import_jsonl(session, lines, on_progress=seen.append)
        assert (report.session_id, report.added) == ("1", 2)
        again = await import_jsonl(session, lines)
        assert (again.added, again.known) == (0, 2)
        items = await session.import_items(messages("c"), source="x", on_progress=seen.append)
        assert items.session_id == "1"
        assert {progress.session_id for progress in seen} == {"1"}
        assert await export_jsonl(session, tmp_path / "out.jsonl") == 3
        await session.sync(timeout=PATIENCE)
        assert leaks(report, again, items, *seen, session.status(), await session.entries()) == []
    hydrated: list[Progress] = []
    async with CachedSession.from_url(
        "1",
        url=server.url,
        journal=journal.with_name("new.db"),
        key_prefix="shop",
        options=QUICK,
        on_progress=hydrated.append,
    ) as session:
        assert contents(await session.get_items()) == ["a", "b", "c"]
    assert {progress.session_id for progress in hydrated} == {"1"}


async def test_an_export_of_the_server_is_imported_into_its_own_prefix(
    journal: Path, server: DevServer, tmp_path: Path
) -> None:
    """Memories of a session are applied to it, and are unreadable for the id without prefix."""
    async with CachedSession.from_url(
        "1", url=server.url, journal=journal, key_prefix="shop", options=QUICK
    ) as session:
        await session.add_items(messages("a"))
        await session.flush(timeout=PATIENCE)
    memories = server.memories(agent_id(session_name("shop", "1")))
    file = tmp_path / "export.jsonl"
    file.write_text("".join(json.dumps(memory) + "\n" for memory in memories))
    async with SessionCache(tmp_path / "new.db", key_prefix="shop") as shop:
        assert (await import_dakera_export(shop.session("1"), file)).added == 1
        assert contents(await shop.session("1").get_items()) == ["a"]
    async with SessionCache(tmp_path / "new.db") as plain:
        report = await import_dakera_export(plain.session("1"), file)
        assert (report.added, report.unreadable) == (0, 1)


async def test_parked_operations_and_logs_show_no_internal_name(
    journal: Path, server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Both name the session by its id and its prefix, and so does every error."""
    caplog.set_level(logging.DEBUG, "cached_session")
    server.faults.status(422, route="POST /v1/memories/store/batch", count=1)
    async with CachedSession.from_url(
        "1", url=server.url, journal=journal, key_prefix="shop", options=QUICK
    ) as session:
        await session.add_items(messages("a"))
        with pytest.raises(SyncError) as refused:
            await session.flush(timeout=PATIENCE)
        (parked,) = await session.parked()
        assert parked.session_id == "1"
        assert session.status().parked == 1
        assert await session.retry_parked([parked.dot]) == 1
        await session.flush(timeout=PATIENCE)
        status = session.status()
    with pytest.raises(SessionClosed, match="'1' with key prefix 'shop'") as closed:
        await session.get_items()
    ours = [record for record in caplog.records if record.name.startswith("cached_session")]
    (record,) = [record for record in ours if "is parked" in record.getMessage()]
    assert "session '1' with key prefix 'shop' is parked" in record.getMessage()
    assert vars(record).items() >= {"session": "1", "key_prefix": "shop"}.items()
    assert leaks(refused.value, closed.value, parked, status, *map(vars, ours)) == []
    assert leaks(*(record.getMessage() for record in ours)) == []
