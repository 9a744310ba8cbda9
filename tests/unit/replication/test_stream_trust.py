"""The trust in an event stream, by a clock that is a number."""

from __future__ import annotations

from cached_session.replication.stream_trust import GRACE_SECONDS, MOST_PROOFS, StreamTrust

LATE = GRACE_SECONDS + 0.1


def missed(trust: StreamTrust, now: float) -> None:
    """Report an operation of which no event has told."""
    trust.found_by_poll("a", now - LATE)
    assert not trust.is_trusted(now)


def test_a_new_stream_is_trusted() -> None:
    """Nothing speaks against it yet."""
    assert StreamTrust().is_trusted(0.0)


def test_an_operation_without_an_event_ends_the_trust_until_an_event_brings_one() -> None:
    """The event may follow within the grace time, because it can be slower than a poll."""
    trust = StreamTrust()
    trust.found_by_poll("a", 10.0)
    assert trust.is_trusted(10.0 + GRACE_SECONDS)
    assert not trust.is_trusted(10.0 + LATE)
    trust.heard("a", 20.0)
    assert not trust.is_trusted(20.0)
    trust.proved()
    assert trust.is_trusted(20.0)


def test_an_event_soon_after_a_poll_is_no_miss() -> None:
    """Neither an event of another session, nor a later one, explains what the poll has found."""
    trust = StreamTrust()
    trust.found_by_poll("a", 10.0)
    trust.heard("a", 11.0)
    assert trust.is_trusted(20.0)
    trust.found_by_poll("a", 30.0)
    trust.heard("b", 30.5)
    trust.found_by_poll("a", 31.0)
    trust.heard("a", 30.0 + LATE)
    assert not trust.is_trusted(30.0 + LATE)


def test_a_stream_that_misses_again_has_to_prove_more() -> None:
    """A stream that reports a part is not trusted after each event of that part."""
    trust = StreamTrust()
    needed = []
    for number in range(8):
        missed(trust, 100.0 * number)
        proofs = 0
        while not trust.is_trusted(100.0 * number):
            trust.proved()
            proofs += 1
        needed.append(proofs)
    assert needed == [1, 2, 4, 8, MOST_PROOFS, MOST_PROOFS, MOST_PROOFS, MOST_PROOFS]


def test_a_closed_session_says_nothing_about_the_stream() -> None:
    """No event of it is expected any more."""
    trust = StreamTrust()
    trust.found_by_poll("a", 10.0)
    trust.forget("a")
    assert trust.is_trusted(100.0)
