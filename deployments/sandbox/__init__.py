"""The sandbox exchange as a process of its own, for the demo, the local stack and tests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from trading.errors import SourceUnavailable

READY: Final = "sandbox exchange on "


@dataclass(frozen=True)
class Sandbox:
    """A running sandbox exchange."""

    url: str
    pid: int

    def set_clock(self, time: str) -> None:
        """Set the exchange's clock (ISO 8601)."""
        httpx.put(f"{self.url}/sandbox/clock", json={"time": time}).raise_for_status()

    def set_faults(self, **faults: float) -> None:
        """Switch faults on (see ``deployments.sandbox.server.Faults``); without arguments, all off."""
        httpx.put(f"{self.url}/sandbox/faults", json=faults).raise_for_status()


@contextmanager
def running_sandbox(*, clock: str | None = None, folder: Path | None = None, seed: int = 7) -> Iterator[Sandbox]:
    """The exchange on a free loopback port, answering; stopped at the end.

    Args:
        clock: its time (ISO 8601), or ``now`` for one that runs along; the default is two minutes after the shipped
            history's last day, standing still.
        folder: candle files to serve beside the shipped markets.

    Raises:
        SourceUnavailable: it did not start; shows what it said.
    """
    command = [sys.executable, "-m", "deployments.sandbox", "--seed", str(seed)]
    command += ["--clock", clock] if clock else []
    command += ["--folder", str(folder)] if folder else []
    with (
        # a file, not a pipe: nobody reads what it says later, and a full pipe would block it
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        ) as process,
    ):
        try:
            line = next((line for line in process.stdout or () if line.startswith(READY)), None)
            if line is None:
                said.seek(0)
                raise SourceUnavailable(f"the sandbox exchange did not start: {said.read().decode()[-500:].strip()}")
            yield Sandbox(line.removeprefix(READY).strip(), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
