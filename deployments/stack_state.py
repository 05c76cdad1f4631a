"""What is written down about a running local stack, in ``<home>/stack.json``, and which processes belong to it.

Process ids are used again, so each is kept with the time its process was born; and every process of a stack, down to
the grandchildren of a flow run, carries the stack's own id in its environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import psutil

# in the environment of all that a stack starts; no setting, and so without our prefix
MARK: Final = "LOCAL_STACK_ID"
PartName = str
PartWord = Literal["starting", "ready", "waiting", "done", "failed"]


@dataclass(frozen=True)
class PartState:
    """One part.

    Attributes:
        state: ``waiting`` for its next start after it ended, ``failed`` when it was given up, ``done`` for work that
            ends by itself.
        since: when it came into this state (seconds since the epoch).
        restarts: how often it was started again.
        told: why it last ended, for a person.
    """

    state: PartWord
    since: float
    pid: int | None = None
    born: float | None = None
    url: str | None = None
    restarts: int = 0
    told: str = ""


@dataclass(frozen=True)
class StackState:
    """A stack and the process that supervises it."""

    id: str
    pid: int
    born: float
    started: float
    state: Literal["starting", "ready", "stopping"]
    sandbox: bool
    warm: bool = False
    parts: Mapping[PartName, PartState] = field(default_factory=dict)

    @property
    def prefect_api(self) -> str:
        """What PREFECT_API_URL is to be."""
        return f"{self.parts['prefect'].url}/api"

    @property
    def supervised(self) -> bool:
        """The supervisor is alive."""
        return alive(self.pid, self.born)

    @property
    def well(self) -> bool:
        """Everything is as it should be."""
        return self.supervised and all(part.state in ("ready", "done") for part in self.parts.values())


def file(home: Path) -> Path:
    """Where the state of the stack of ``home`` is written."""
    return home / "stack.json"


def read(home: Path) -> StackState | None:
    """What the file says, or None without a file or with one that cannot be read; it may be of a dead stack."""
    try:
        told: dict[str, Any] = json.loads(file(home).read_text())
        return StackState(**{**told, "parts": {name: PartState(**part) for name, part in told["parts"].items()}})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError):  # of another version, or half written by a full disk
        return None


def write(home: Path, state: StackState) -> None:
    """Replace the file as a whole, so that nobody reads half of it."""
    path = file(home)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(json.dumps(asdict(state), indent=1))
    fresh.replace(path)


def alive(pid: int | None, born: float | None) -> bool:
    """This process, and not another one under its id, lives."""
    try:
        process = psutil.Process(pid) if pid else None
        return bool(process and process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def family(state: StackState) -> list[psutil.Process]:
    """Every living process of the stack but its supervisor, whoever their parent is by now."""
    known = {(part.pid, part.born) for part in state.parts.values()}
    found = []
    for process in psutil.process_iter():
        try:
            ours = (process.pid, process.create_time()) in known or process.environ().get(MARK) == state.id
            if ours and process.pid != state.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # gone meanwhile, or another user's
    return found


def stop(processes: Sequence[psutil.Process], seconds: float) -> list[int]:
    """Ask them to end, then make them; the ids of those that had to be made to."""
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, stubborn = psutil.wait_procs(processes, timeout=seconds)
    for process in stubborn:
        try:
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(stubborn, timeout=5)
    return [process.pid for process in stubborn]
