"""The claims table: who wants an item, and what is known about it."""

from __future__ import annotations

import sqlite3

import pytest

from cached_session.history.ops import Dot
from cached_session.history.session_ref import SessionRef
from cached_session.journal.tables import claims
from cached_session.journal.tables.claims import Claim, ClaimState
from cached_session.journal.tables.states import ACKED, PARKED, PENDING, SENT
from tests.journal_rows import OPS, set_states, spoil
from tests.unit.journal.tables.arrivals import ME, SESSION, add, author, items, pop

UNKNOWN = SessionRef.of("unknown")


def put(conn: sqlite3.Connection, *texts: str, state: int = ACKED) -> None:
    """Append items that have got so far."""
    for text in texts:
        add(conn, text)
    set_states(conn, state)


def reserve(conn: sqlite3.Connection, now_ms: int = 100) -> Claim:
    claim = claims.reserve(conn, author(), SESSION, now_ms)
    assert claim is not None
    return claim


def state_of(conn: sqlite3.Connection, counter: int) -> int:
    (state,) = conn.execute(f"SELECT state FROM {OPS} WHERE counter = ?", (counter,)).fetchone()
    return int(state)


def test_the_latest_item_is_claimed_and_stays(conn: sqlite3.Connection) -> None:
    """It is in the history until the server has answered."""
    put(conn, "one", "two")
    claim = reserve(conn)
    assert (claim.ref.dot, claim.row[0]) == (Dot(ME, 2), b'"two"')
    assert not claim.is_ours
    assert items(conn) == ["one", "two"]
    (found,) = claims.open_claims(conn, SESSION)
    assert (found.ref, found.state, found.claimer) == (claim.ref, ClaimState.RESERVED, ME)
    assert found.since_ms == 100
    assert found.is_visible


def test_claims_and_pops_pass_over_a_claimed_item(conn: sqlite3.Connection) -> None:
    """Each item is given to one caller."""
    put(conn, "one", "two", "three")
    assert reserve(conn).ref.dot.counter == 3
    assert reserve(conn).ref.dot.counter == 2
    assert pop(conn) == "one"
    assert claims.reserve(conn, author(), SESSION, 100) is None


def test_an_item_that_was_never_sent_is_popped_immediately(conn: sqlite3.Connection) -> None:
    """No other device can have it, so the server is not asked."""
    put(conn, "one", state=PENDING)
    assert reserve(conn).is_ours
    assert items(conn) == []
    assert claims.open_claims(conn, SESSION) == []


@pytest.mark.parametrize("state", [SENT, ACKED, PARKED])
def test_a_claim_knows_what_the_server_may_hold(conn: sqlite3.Connection, state: int) -> None:
    """An operation under way may or may not be there; a refused one may be there in part."""
    put(conn, "one", state=state)
    claim = reserve(conn)
    assert (claim.is_in_flight, claim.is_parked) == (state == SENT, state == PARKED)
    assert claims.is_parked(conn, SESSION, claim.ref.dot) is (state == PARKED)


def test_a_state_is_recorded_while_the_claim_is_open(conn: sqlite3.Connection) -> None:
    """A claim that another process has resolved has no row any more."""
    put(conn, "one")
    claim = reserve(conn)
    assert claims.record_state(conn, SESSION, claim, ClaimState.ASKED, 200)
    (found,) = claims.open_claims(conn, SESSION)
    assert (found.state, found.since_ms) == (ClaimState.ASKED, 200)
    claims.release(conn, SESSION, claim)
    assert not claims.record_state(conn, SESSION, claim, ClaimState.LOST, 300)


def test_a_released_item_can_be_claimed_again(conn: sqlite3.Connection) -> None:
    """It stays as it was."""
    put(conn, "one")
    claim = reserve(conn)
    claims.release(conn, SESSION, claim)
    assert items(conn) == ["one"]
    assert reserve(conn).ref == claim.ref


def test_a_confirmed_claim_pops_its_item(conn: sqlite3.Connection) -> None:
    """Although a later item is there by now."""
    put(conn, "one")
    claim = reserve(conn)
    add(conn, "two")
    claims.confirm(conn, author(), SESSION, claim)
    assert items(conn) == ["two"]
    assert claims.open_claims(conn, SESSION) == []


@pytest.mark.parametrize(("state", "then"), [(ACKED, SENT), (PARKED, PARKED)])
def test_a_lost_item_is_sent_again(conn: sqlite3.Connection, state: int, then: int) -> None:
    """Except for a parked one: the server refuses it."""
    put(conn, "one", state=state)
    claims.requeue(conn, SESSION, reserve(conn))
    assert claims.open_claims(conn, SESSION) == []
    assert state_of(conn, 1) == then
    assert items(conn) == ["one"]


def test_a_claim_is_open_until_its_item_is_removed(conn: sqlite3.Connection) -> None:
    """The pop of another device ends the contest."""
    put(conn, "one")
    claim = reserve(conn)
    assert claims.is_open(conn, SESSION, claim)
    conn.execute("UPDATE ops SET live = 0, body = NULL")
    assert not claims.is_open(conn, SESSION, claim)
    (found,) = claims.open_claims(conn, SESSION)
    assert not found.is_visible


def test_the_claim_of_a_dropped_operation_is_found(conn: sqlite3.Connection) -> None:
    """It has to be released, and its item is not visible."""
    put(conn, "one")
    reserve(conn)
    for table in ("ops", "waiting", "acked"):
        conn.execute(f"DELETE FROM {table}")
    (found,) = claims.open_claims(conn, SESSION)
    assert not found.is_visible


def test_a_spoiled_claim_is_reported(conn: sqlite3.Connection) -> None:
    """It names no item that could be asked for."""
    put(conn, "one")
    reserve(conn)
    spoil(conn, "UPDATE claims SET since_ms = 'soon'")
    with pytest.raises(ValueError, match=f"the row of the claim on {ME}:1 is not valid"):
        claims.open_claims(conn, SESSION)


def test_an_unknown_session_has_no_claims(conn: sqlite3.Connection) -> None:
    """Nor anything to claim."""
    put(conn, "one")
    claim = reserve(conn)
    assert claims.reserve(conn, author(), UNKNOWN, 100) is None
    assert claims.open_claims(conn, UNKNOWN) == []
    assert not claims.is_parked(conn, UNKNOWN, claim.ref.dot)
    assert not claims.record_state(conn, UNKNOWN, claim, ClaimState.ASKED, 100)
    claims.requeue(conn, UNKNOWN, claim)
    assert len(claims.open_claims(conn, SESSION)) == 1
