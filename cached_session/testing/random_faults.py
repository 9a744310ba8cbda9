"""An adversary that breaks things at random while a test goes on, and mends them at its end."""

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
    """What a nemesis did: printed by a failing test, it is the story of that test."""

    seed: int
    """What it was made with: the same one takes the same steps."""
    done: list[str] = field(default_factory=list)
    """Each step so far, in order: the fault, the line, and how long it lasts."""
    failed: BaseException | None = None
    """What went wrong in the nemesis itself; raised at the end of its ``with``."""


@contextlib.contextmanager
def havoc(
    server: DevServer,
    networks: Sequence[Network],
    *,
    seed: int = 0,
    pause: float = 0.2,
    faults: Sequence[str] = FAULTS,
) -> Iterator[Havoc]:
    """Break and mend the lines and the server in turn, until the end of the ``with``; then all is
    well again.

    The same seed takes the same steps in the same order; when they happen is up to the machine.

    Args:
        server: what is restarted, and loses requests and answers.
        networks: what is cut, stalled and slowed, one at a time.
        pause: seconds from one step to the next, on average; a fault lasts about as long.
        faults: which kinds there are, of `FAULTS`.

    Raises:
        ValueError: a fault is not known, or needs a line and there is none.
    """
    unknown = set(faults) - set(FAULTS)
    if unknown or not faults or not networks:
        raise ValueError(f"havoc needs a line and faults of {', '.join(FAULTS)}; got {faults}")
    chance, story, over = random.Random(seed), Havoc(seed), threading.Event()

    def step() -> None:
        fault, network = chance.choice(list(faults)), chance.choice(list(networks))
        lasting = chance.uniform(0.5, 1.5) * pause
        story.done.append(f"{fault} {network.url} {lasting:.2f}s")
        with contextlib.ExitStack() as undone:
            if fault == "restart":
                server.stop()
                undone.callback(server.start)
            elif fault == "disconnect":
                network.disconnect()
            elif fault == "slow":
                undone.enter_context(network.slow(lasting / 4))
            elif fault in ("cut", "stall"):
                undone.enter_context(getattr(network, fault)())
            elif fault == "busy":
                undone.enter_context(server.faults.unavailable(retry_after=lasting))
            else:
                undone.enter_context(getattr(server.faults, fault)(probability=0.5, seed=seed))
            over.wait(lasting)

    def run() -> None:
        try:
            while not over.wait(chance.uniform(0.5, 1.5) * pause):
                step()
        except BaseException as error:  # noqa: BLE001 - carried to the test's own thread
            story.failed = error

    thread = threading.Thread(target=run, name="cached-session-nemesis", daemon=True)
    thread.start()
    try:
        yield story
    finally:
        over.set()
        thread.join()
    if story.failed is not None:
        raise story.failed
