"""``make soak``: a backfill from an exchange that misbehaves, by a worker that is killed, ends as if nothing had been.

The sandbox exchange answers 429 and 503, hangs, cuts replies, sends rows twice, in disorder and malformed, and
is away for an hour of its clock. A worker backfills every symbol; it is killed (SIGKILL) on the way and started
again until the ledger lacks nothing. Then every stored candle is compared with a backfill without faults:
what is not equal must stand in quarantine, with its reason.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rich.console import Console

from deployments.sandbox import Sandbox, running_sandbox
from tasks import gaps, ledger, quarantine
from tasks.settings import load_settings
from tasks.store import Store, open_store, read_candles
from trading.candles import digest
from trading.errors import TradeflowsError
from trading.window import Timeframe, Window

FAULTS: Final = {
    "rate_limited": 0.10,
    "failing": 0.05,
    "hanging": 0.02,
    "truncated": 0.01,
    "duplicated": 0.01,
    "shuffled": 0.20,
    "malformed": 0.005,
}
OUTAGE: Final = timedelta(hours=1)
ROUNDS: Final = 200
BATCH: Final = 20_000


class SoakFailed(TradeflowsError):
    """The store is not what a backfill without faults leaves."""


@dataclass(frozen=True)
class Plan:
    """What to soak.

    Attributes:
        windows: the backfill, one window per symbol of candles in ``folder``.
        kills: how often the worker is killed.
        speed: seconds of the exchange's clock per real one: its outage of an hour takes 3600 / speed.
        retry_after: seconds that the exchange asks to wait with a 429.
        timeout: seconds after which the worker gives a reply up; the exchange hangs for three times as long.
        flow: work by the command with its Prefect flow; else by the same steps without Prefect.
    """

    folder: Path
    windows: tuple[Window, ...]
    kills: int
    speed: float
    retry_after: float
    timeout: float
    flow: bool
    seed: int


@dataclass(frozen=True)
class Report:
    """What the soak saw."""

    candles: int
    absent: int
    quarantined: dict[str, int]
    statuses: dict[str, int]
    kills: int
    rounds: int
    seconds: float


def soak(plan: Plan, home: Path, console: Console) -> Report:
    """Backfill with faults and without, and compare.

    Raises:
        SoakFailed: they differ in a candle that is not in quarantine, or the backfill did not end.
    """
    clock = max(window.end for window in plan.windows) + timedelta(days=1)
    with running_sandbox(folder=plan.folder, clock=clock.isoformat()) as exchange:
        _work(plan, exchange, home / "calm").communicate()
    console.print("backfill without faults: done")
    started = time.monotonic()
    with running_sandbox(folder=plan.folder, clock=clock.isoformat(), speed=plan.speed) as exchange:
        outage: dict[str, float | str] = {
            "outage_start": (clock + OUTAGE / 4).isoformat(),
            "outage_seconds": OUTAGE.total_seconds(),
        }
        waits = {"retry_after": plan.retry_after, "hang_seconds": 3 * plan.timeout}
        exchange.set_faults(**FAULTS, **outage, **waits, seed=plan.seed)
        kills, rounds = _until_complete(plan, exchange, home / "storm", console)
        statuses = Counter[str]()
        for replies in exchange.requests().values():
            statuses.update(replies)
    seconds = time.monotonic() - started
    with open_store(home / "calm") as calm, open_store(home / "storm") as storm:
        found = _compared(plan, calm, storm)
    return Report(*found, statuses=dict(sorted(statuses.items())), kills=kills, rounds=rounds, seconds=seconds)


def _until_complete(plan: Plan, exchange: Sandbox, home: Path, console: Console) -> tuple[int, int]:
    """Start the worker again and again until nothing is missing; kill it on the way."""
    chance = random.Random(plan.seed)  # noqa: S311 - moments to kill at
    killed = 0
    for number in range(1, ROUNDS + 1):
        before = _stored(plan, home)
        worker = _work(plan, exchange, home)
        if killed < plan.kills:
            # somewhere in the share of the work that is this kill's
            goal = (killed + chance.uniform(0.2, 1.0)) / (plan.kills + 1)
            while worker.poll() is None:
                if _stored(plan, home) >= max(goal, before):
                    time.sleep(chance.uniform(0.0, 0.3))  # into the middle of what it does then
                    worker.kill()
                    killed += 1
                    console.print(f"killed after {_stored(plan, home):.0%} of the candles")
                    break
                time.sleep(0.1)
        worker.communicate()
        if _stored(plan, home) >= 1:
            if killed < plan.kills:
                raise SoakFailed(f"the worker was done after {killed} of {plan.kills} kills; give it more candles")
            return killed, number
    raise SoakFailed(f"after {ROUNDS} starts of the worker the ledger still lacks {1 - _stored(plan, home):.2%}")


def _stored(plan: Plan, home: Path) -> float:
    """Share of the bars that the ledger has approved."""
    with open_store(home) as store:
        left = sum(part.slots for window in plan.windows for part in ledger.missing(store, window))
    return 1 - left / sum(window.slots for window in plan.windows)


def _compared(plan: Plan, calm: Store, storm: Store) -> tuple[int, int, dict[str, int]]:
    count = absent = 0
    reasons: Counter[str] = Counter()
    for window in plan.windows:
        expected, got = read_candles(calm, window), read_candles(storm, window)
        if ledger.missing(calm, window) or expected.empty:
            raise SoakFailed(f"the backfill without faults did not end: {ledger.missing(calm, window)[:1]}")
        invented = got.index.difference(expected.index)
        if len(invented):
            raise SoakFailed(f"{window}: {len(invented)} candles are in no answer of the exchange, first {invented[0]}")
        both = expected.loc[got.index]
        if digest(both) != digest(got):
            raise SoakFailed(f"{window}: {int((both != got).any(axis=1).sum())} candles have other values")
        rows = quarantine.find(storm, window.symbol, window.timeframe.value)
        explained = {row["open_time"] for row in rows if row["reasons"]}
        lost = expected.index.difference(got.index)
        unexplained = [moment for moment in lost if moment.to_pydatetime() not in explained]
        if unexplained:
            raise SoakFailed(
                f"{window}: {len(unexplained)} candles are missing without a reason, first {unexplained[0]}"
            )
        on_record = {one.gap.start + at * window.timeframe.delta for one in gaps.within(storm, window)
                     for at in range((one.gap.end - one.gap.start) // window.timeframe.delta)}  # fmt: skip
        if not {moment.to_pydatetime() for moment in lost} <= on_record:
            raise SoakFailed(f"{window}: candles are missing that are on record as no gap")
        count, absent = count + len(got), absent + len(lost)
        reasons.update(reason for row in rows for reason in row["reasons"])
    return count, absent, dict(sorted(reasons.items()))


def _work(plan: Plan, exchange: Sandbox, home: Path) -> subprocess.Popen[bytes]:
    """The worker as a process."""
    first = plan.windows[0]
    span = [f"{moment:%Y-%m-%dT%H:%M:%S}" for moment in (first.start, first.end)]
    symbols = [window.symbol for window in plan.windows]
    if plan.flow:
        command = ["deployments.command", "ingest", *symbols, "--timeframe", first.timeframe.value]
        command += ["--start", span[0], "--end", span[1]]
    else:
        command = ["deployments.soak", "--work", *symbols, "--span", first.timeframe.value, *span]
    settings = {
        "TRADEFLOWS_HOME": str(home),
        "TRADEFLOWS_EXCHANGE_URL": exchange.url,
        "TRADEFLOWS_MAX_BAD_SHARE": "0.05",
        "TRADEFLOWS_SOURCE_TIMEOUT": str(plan.timeout),
        "TRADEFLOWS_SOURCE_PAUSE": "0.05",
        "TRADEFLOWS_CIRCUIT_SECONDS": "1",
        "TRADEFLOWS_EXCHANGE_WEIGHT_PER_MINUTE": "1000000",
    }
    log = home.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )


def work(symbols: Sequence[str], timeframe: Timeframe, start: datetime, end: datetime) -> None:
    """Backfill by the steps of the ingest flow, without Prefect; windows that fail are left for the next start."""
    from tasks.guarding import opened_sources
    from tasks.ingestion import batches, ingest_batches, plan

    settings = load_settings()
    with (
        open_store(settings.home) as store,
        opened_sources(settings, store, ["exchange"], metered=False) as sources,
    ):
        todo = batches(plan(store, sources[0](), symbols, timeframe, start, end), BATCH)
        ingest_batches(store, sources, todo, now=end, max_bad_share=settings.max_bad_share, flow_run_id=None)


def generated(folder: Path, symbols: int, bars: int, seed: int = 7) -> tuple[Window, ...]:
    """One-minute candles of generated markets as files, and their windows."""
    import numpy as np

    from deployments.sandbox.generator import Recipe, generate
    from deployments.sandbox.markets import GENERATED_START
    from trading.candles import frame_of

    recipes = [Recipe(f"S{number:03d}USDT", 100.0 + number, 0.0006, 50.0, 2) for number in range(symbols)]
    opens = int(GENERATED_START.timestamp() * 1000) + 60_000 * np.arange(bars, dtype="int64")
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in generate(recipes, bars, seed).items():
        frame_of(opens, values).reset_index().to_parquet(folder / f"{name}_1m.parquet")
    end = GENERATED_START + timedelta(minutes=bars)
    return tuple(Window(recipe.symbol, Timeframe.M1, GENERATED_START, end) for recipe in recipes)


def from_files(source: Path, folder: Path) -> tuple[Window, ...]:
    """Real one-hour candles from files ``<exchange>_<symbol>_1h.parquet``, and the window that all of them have."""
    from tasks.files import read
    from trading.candles import COLUMNS, frame_of

    folder.mkdir(parents=True, exist_ok=True)
    frames = {}
    for path in sorted(source.glob("*_1h.*")):
        rows = read(path)
        frames[path.stem.split("_")[1]] = frame_of(rows["open_time"].to_numpy(), rows[list(COLUMNS)].to_numpy())
    start = max(frame.index[0] for frame in frames.values()).to_pydatetime()
    end = min(frame.index[-1] for frame in frames.values()).to_pydatetime()
    for symbol, frame in frames.items():
        frame.reset_index().to_parquet(folder / f"{symbol}_1h.parquet")
    return tuple(Window(symbol, Timeframe.H1, start, end) for symbol in frames)


def main() -> None:
    """Soak, and print what was seen; exit code 1 where the stores differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--bars", type=int, default=50_000, help="one-minute bars of each generated symbol")
    parser.add_argument("--candles", type=Path, help="folder of real <exchange>_<symbol>_1h files to use instead")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--speed", type=float, default=60.0, help="of the exchange's clock: its outage is an hour")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--span", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        start, end = (datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in options.span[1:])
        work(options.work, Timeframe(options.span[0]), start, end)
        return
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="tradeflows-soak-") as temporary:
        folder = Path(temporary) / "candles"
        windows = (
            from_files(options.candles, folder)
            if options.candles
            else generated(folder, options.symbols, options.bars, options.seed)
        )
        plan = Plan(folder, windows, options.kills, options.speed, 1.0, 2.0, True, options.seed)
        report = soak(plan, Path(temporary) / "homes", console)
    console.print(
        f"{report.candles:,} candles of {len(windows)} symbols are equal to the backfill without faults, "
        f"{report.absent:,} are in quarantine instead\n"
        f"killed {report.kills} times, started {report.rounds} times, {report.seconds:.0f} s\n"
        f"replies of the exchange by status: {report.statuses}\n"
        f"rows put aside by reason: {report.quarantined}"
    )


if __name__ == "__main__":
    main()
