"""Where the process of a flow run is: on this machine and in sight, or somewhere that cannot be looked at from here.

Workers write down where they are with each run that they take (``PLACE``). Process ids are used again, so a process
counts only if it was born while its run was about to start.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import psutil

# the label of a flow run that says where its process is
PLACE: Final = "tradeflows.place"
# clocks, and the time between a process's birth and what is written down of it
_SLACK: Final = timedelta(seconds=5)


def here() -> str:
    """This machine, since it started, and this container; empty where the system does not tell (no Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def lives(pid: str | None, since: datetime, until: datetime) -> bool:
    """Whether a process of that id lives here that was born in ``[since, until]`` (UTC)."""
    if pid is None or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        process = psutil.Process(int(pid))
        born = process.create_time()
        ended = process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return not ended and (since - _SLACK).timestamp() <= born <= (until + _SLACK).timestamp()


def seen_alive(pid: str | None, place: str | None, since: datetime, until: datetime) -> bool | None:
    """Whether a run's process lives; None where that cannot be told from here.

    Args:
        pid: what Prefect knows as its infrastructure id.
        place: what its worker said of where it is.
        since: when the run was about to start, UTC.
        until: when it ran at the latest, UTC.
    """
    if lives(pid, since, until):
        return True
    return False if pid is not None and place and place == here() else None
