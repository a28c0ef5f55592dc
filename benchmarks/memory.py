"""How much memory a process has used."""

from __future__ import annotations

import re
import resource
from pathlib import Path


def peak_kb() -> int:
    """This process's largest resident set so far, in KB.

    Linux counts it for the program that runs; `ru_maxrss`, which other systems have, also counts
    what the process was before: a copy of the one that started it.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
