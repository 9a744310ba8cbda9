"""Build the fault library from `shim.c` and call it through ctypes. It has to be preloaded."""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPEN, READ, WRITE, SYNC, CUT, NAME, LOOK, MAP, LOCK, MAKE = (1 << bit for bit in range(10))
PASS, FAIL, TEAR, KILL = range(4)
ANY = OPEN | READ | WRITE | SYNC | CUT | NAME | LOOK | MAP | LOCK
CHANGES = OPEN | WRITE | SYNC | CUT | NAME


@dataclass(frozen=True)
class Fault:
    """A fault at the n-th operation of some kinds."""

    action: int
    code: int
    mask: int
    for_good: bool = False


FAULTS = {
    "I/O error, once": Fault(FAIL, errno.EIO, ANY),
    "I/O error, for good": Fault(FAIL, errno.EIO, ANY, for_good=True),
    "disk full, once": Fault(FAIL, errno.ENOSPC, WRITE | MAKE),
    "disk full, for good": Fault(FAIL, errno.ENOSPC, WRITE | MAKE, for_good=True),
    "half a write, then full": Fault(TEAR, errno.ENOSPC, WRITE),
    "access denied, once": Fault(FAIL, errno.EACCES, OPEN | NAME),
    "access denied, for good": Fault(FAIL, errno.EACCES, OPEN | NAME, for_good=True),
    "read-only, for good": Fault(FAIL, errno.EROFS, WRITE | CUT | NAME | MAKE, for_good=True),
    "killed": Fault(KILL, 0, CHANGES),
}


def build(directory: Path) -> Path | None:
    """Compile the library into a directory, or return None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = directory / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"],
        check=True,
    )
    return library


class Shim:
    """The preloaded library of this process."""

    def __init__(self, place: Path) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fault_where.restype = ctypes.c_char_p
        self._library.fault_passed.restype = ctypes.c_long
        self._library.fault_set.argtypes = [ctypes.c_long, *[ctypes.c_int] * 4]
        self._library.fault_place(str(place).encode())

    def arm(self, fault: Fault, nth: int) -> None:
        self._library.fault_set(nth, fault.action, fault.code, fault.mask, fault.for_good)

    def heal(self) -> None:
        """Let no operation fail any more. The counters of past faults stay readable."""
        self._library.fault_heal()

    @property
    def hit(self) -> bool:
        return bool(self._library.fault_hit())

    @property
    def where(self) -> str:
        return self._library.fault_where().decode()

    @property
    def passed(self) -> int:
        return self._library.fault_passed()
