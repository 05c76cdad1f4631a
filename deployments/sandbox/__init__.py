"""The sandbox exchange as a process of its own, for the demo, the local stack and tests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

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
        self._put("clock", {"time": time})

    def set_speed(self, speed: float) -> None:
        """Let the exchange's clock run on at so many of its seconds per real one; 0 stops it."""
        self._put("clock", {"speed": speed})

    def set_faults(self, **faults: float | str) -> None:
        """Switch faults on (see ``deployments.sandbox.faults.Faults``); without arguments, all off."""
        self._put("faults", faults)

    def correct(self, symbol: str, timeframe: str, open_time: datetime, **values: float) -> None:
        """Change ``open``, ``high``, ``low``, ``close`` or ``volume`` of a candle, as exchanges do late."""
        candle = {"symbol": symbol, "timeframe": timeframe, "open_time": open_time.isoformat(), **values}
        self._put("corrections", candle)

    def cut(self, symbol: str, timeframe: str, start: datetime, end: datetime) -> int:
        """Take the candles out that open in [start, end); how many those were."""
        span = {"start": start.isoformat(), "end": end.isoformat()}
        return int(self._put("gaps", {"symbol": symbol, "timeframe": timeframe} | span)["changed"])

    def restore(self) -> None:
        """Put everything back that was corrected or cut."""
        self._put("corrections", {"restore": True})

    def requests(self) -> dict[str, dict[str, int]]:
        """How many replies of each status there were, by what was asked: ``{"klines": {"200": 12}}``."""
        counts: dict[str, dict[str, int]] = httpx.get(f"{self.url}/sandbox/requests").raise_for_status().json()
        return counts

    def forget_requests(self) -> None:
        """Begin to count anew."""
        self._put("requests", {})

    def _put(self, what: str, body: Mapping[str, object]) -> Any:
        return httpx.put(f"{self.url}/sandbox/{what}", json=body).raise_for_status().json()


@contextmanager
def running_sandbox(
    *,
    clock: str | None = None,
    speed: float | None = None,
    folder: Path | None = None,
    seed: int = 7,
    rendered: bool = False,
) -> Iterator[Sandbox]:
    """The exchange on a free loopback port, answering; stopped at the end.

    Args:
        clock: its time (ISO 8601), or ``now`` for one that runs along; the default is two minutes after the shipped
            history's last day, standing still.
        speed: seconds of its clock per real second; the default is 1 for ``now`` and else 0.
        folder: candle files to serve beside the shipped markets.
        rendered: make the text of the folder's candles before the start, so that the first request for a candle
            costs no more than the next: for measurements.

    Raises:
        SourceUnavailable: it did not start; shows what it said.
    """
    command = [sys.executable, "-m", "deployments.sandbox", "--seed", str(seed)]
    command += ["--clock", clock] if clock else []
    command += ["--speed", str(speed)] if speed is not None else []
    command += ["--folder", str(folder)] if folder else []
    command += ["--rendered"] if rendered else []
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
