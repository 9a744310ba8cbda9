"""Random faults: `havoc` breaks networks and the server at random, and repairs them at the end."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cached_session.devserver import DevServer
from cached_session.testing.network import Network

__all__ = ["Havoc", "havoc"]

FAULTS = ("cut", "stall", "slow", "disconnect", "restart", "lose_request", "lose_response", "busy")


@dataclass
class Havoc:
    """The record of the faults of one call of `havoc`; print it when a test fails."""

    seed: int
    """The seed of the faults; equal seeds produce identical faults."""
    done: list[str] = field(default_factory=list)
    """The faults so far, in order: kind, URL of the network, duration."""
    failed: BaseException | None = None
    """The error that ended the faults early, if any; it is raised at the end of the block."""


@contextlib.contextmanager
def havoc(
    server: DevServer,
    networks: Sequence[Network],
    *,
    seed: int = 0,
    pause: float = 0.2,
    faults: Sequence[str] = FAULTS,
) -> Iterator[Havoc]:
    """Break networks and the server at random, one fault after the other, in a ``with`` block.

    At the end of the block every fault has been repaired. Equal seeds produce identical faults in
    an identical order; the times of the faults depend on the machine.

    Args:
        server: The server that is restarted, and that loses requests and responses.
        networks: The networks that are cut, stalled and slowed, one at a time.
        pause: Average seconds between two faults; a fault lasts about as long.
        faults: The kinds of faults that are drawn, out of `FAULTS`.

    Raises:
        ValueError: a kind of fault is unknown, or ``faults`` or ``networks`` is empty.
    """
    unknown = set(faults) - set(FAULTS)
    if unknown or not faults or not networks:
        raise ValueError(
            f"havoc needs at least one network and kinds of faults out of {', '.join(FAULTS)}; "
            f"got {list(faults)} and networks: {len(networks)}"
        )
    record, stop = Havoc(seed), threading.Event()
    thread = threading.Thread(
        target=_break_until,
        args=(stop, record, server, networks, pause, faults),
        name="cached-session-havoc",
        daemon=True,
    )
    thread.start()
    try:
        yield record
    finally:
        stop.set()
        thread.join()
    if record.failed is not None:
        raise record.failed


def _break_until(
    stop: threading.Event,
    record: Havoc,
    server: DevServer,
    networks: Sequence[Network],
    pause: float,
    faults: Sequence[str],
) -> None:
    """Apply one random fault after the other until `stop` is set."""
    draw = random.Random(record.seed)
    try:
        while not stop.wait(draw.uniform(0.5, 1.5) * pause):
            fault, network = draw.choice(list(faults)), draw.choice(list(networks))
            seconds = draw.uniform(0.5, 1.5) * pause
            record.done.append(f"{fault} {network.url} {seconds:.2f}s")
            with contextlib.ExitStack() as repairs:
                _apply(fault, server, network, seconds, record.seed, repairs)
                stop.wait(seconds)
    except BaseException as error:  # noqa: BLE001 - raised in the thread of the test
        record.failed = error


def _apply(
    fault: str,
    server: DevServer,
    network: Network,
    seconds: float,
    seed: int,
    repairs: contextlib.ExitStack,
) -> None:
    """Apply one fault, and register its repair."""
    if fault == "restart":
        server.stop()
        repairs.callback(server.start)
    elif fault == "disconnect":
        network.disconnect()
    elif fault == "slow":
        repairs.enter_context(network.slow(seconds / 4))
    elif fault in ("cut", "stall"):
        repairs.enter_context(getattr(network, fault)())
    elif fault == "busy":
        repairs.enter_context(server.faults.unavailable(retry_after=seconds))
    else:
        repairs.enter_context(getattr(server.faults, fault)(probability=0.5, seed=seed))
