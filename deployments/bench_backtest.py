"""The backtest's part of ``make bench``: one run, its growth, a sweep, a portfolio, and the first call of a process.

Everybody gets the same candles, targets and costs, made beforehand: a moving-average cross of 20 and 50 bars, long and
short, with a stop loss, a take profit, a fee and slippage. Peers get what suits them best: vectorbt plain arrays and an
index without a time zone, the bare loop contiguous columns. ``python -m deployments.bench_backtest`` prints this part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from deployments import bench_backtest_peers as peers
from deployments.bench_figures import Figure, best, market
from trading.backtest.engine import BacktestResult, Costs, Limits, Protection, Rules, Sizing, run, run_portfolio
from trading.backtest.metrics import summarise
from trading.candles import COLUMNS, frame_of
from trading.strategies import rule, sma_cross

HOUR_MS: Final = 3_600_000
YEAR: Final = 8766.0
MILLION: Final = 1_000_000
FEW: Final = 100_000
SETS: Final = 1_000
AT_ONCE: Final = 50  # vectorbt takes 40 MB per set of 100,000 bars
RULES: Final = Rules(
    Costs(0.0005, 0.0001), Sizing(units=1.0), Protection(stop_loss=0.02, take_profit=0.04), cash=10_000_000.0
)


def backtest_figures() -> list[Figure]:
    """All of them; some three minutes, most of them the peers'.

    Raises:
        AssertionError: the bare loop and ours disagree about the equity after any bar.
    """
    generated = market(MILLION, HOUR_MS)
    figures = [*first_calls(), *one_run(generated, "generated")]
    folder = Path(os.environ.get("TRADEFLOWS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if folder.is_dir():
        figures += one_run(tiled(real_hours(folder), MILLION), "real")
    return [*figures, growth(generated), sweeps(), portfolio(generated)]


def one_run(candles: pd.DataFrame, kind: str) -> list[Figure]:
    """``run`` and ``summarise`` of a million bars, against everyone."""
    targets = targets_of(candles)
    few, some = candles.iloc[:FEW], targets[:FEW]

    def ours() -> BacktestResult:
        result = run(candles, targets, RULES)
        summarise(result, YEAR)
        return result

    def bare() -> tuple[np.ndarray, tuple[float, ...]]:
        equity, counts = peers.bare(candles, targets, RULES)
        peers.bare_figures(equity, RULES.cash)
        return equity, counts

    def stats() -> Any:
        theirs = peers.with_vectorbt(candles, targets, RULES)
        theirs.stats(silence_warnings=True)
        return theirs

    def more_stats() -> Any:
        theirs = stats()
        theirs.returns_stats()
        theirs.trades.sqn()
        return theirs

    def all_stats() -> None:
        more_stats().trades.stats(silence_warnings=True)

    result, (equity, counts) = ours(), bare()
    if not np.array_equal(equity, result.equity) or counts[0] != len(result.trade_rows):
        raise AssertionError("the bare loop does not do the arithmetic of ours, so that its time says nothing")
    all_stats()  # compiles
    # by turns, so that all meet the machine in the same moods
    turns: dict[str, Callable[[], object]] = {"ours": ours, "loop": bare, "stats": stats, "more": more_stats}
    turns["run"] = lambda: run(candles, targets, RULES)
    turns["loop alone"] = lambda: peers.bare(candles, targets, RULES)
    times = by_turns(turns, 7)
    times["all"] = best(all_stats, 2)
    zoned = best(lambda: peers.with_vectorbt(few, some, RULES, zoned=True).stats(silence_warnings=True), 1) * 10
    slow = best(lambda: peers.with_backtesting(few, some, RULES), 4)
    what = f"backtest of 1,000,000 {kind} bars, all figures"
    note = (
        f"{len(result.trade_rows):,} trades. The comparable figures of vectorbt are stats(), returns_stats() and SQN; "
        "all its stats are those and trades.stats(), which mostly turns the index into objects. With the time zone "
        f"of the candles stats() takes {zoned:,.0f} ms. That and backtesting.py from {FEW:,} bars, times 10. "
        f"The bare loop has no checks, records, rules or quantiles; without figures {times['run']:.1f} ms against "
        f"{times['loop alone']:.1f}"
    )
    return [
        Figure(what, times["ours"], "vectorbt, stats() alone", times["stats"], note),
        Figure(what, times["ours"], "vectorbt, comparable figures", times["more"]),
        Figure(what, times["ours"], "vectorbt, all its stats", times["all"]),
        Figure(what, times["ours"], "backtesting.py", slow * MILLION / FEW),
        Figure(what, times["ours"], "a bare loop", times["loop"]),
    ]


def growth(candles: pd.DataFrame) -> Figure:
    """Nanoseconds per bar up to ten million, each the same million end to end."""
    frames = {bars: tiled(candles, bars) for bars in (FEW, MILLION, 3 * MILLION, 10 * MILLION)}
    targets = {bars: targets_of(frame) for bars, frame in frames.items()}

    def ours(bars: int) -> object:
        return summarise(run(frames[bars], targets[bars], RULES), YEAR)

    def theirs(bars: int) -> object:
        return peers.bare_figures(peers.bare(frames[bars], targets[bars], RULES)[0], RULES.cash)

    works: dict[str, Callable[[], object]] = {f"{bars:,}": partial(ours, bars) for bars in frames}
    times = by_turns(works | {"bare": partial(theirs, 10 * MILLION)}, 7)
    points = ", ".join(f"{times[f'{bars:,}'] * 1e6 / bars:.1f} at {bars:,}" for bars in frames)
    return Figure(
        "backtest of 10,000,000 bars, all figures", times["10,000,000"], "a bare loop", times["bare"],
        f"nanoseconds per bar: {points}",
    )  # fmt: skip


def sweeps() -> Figure:
    """A thousand sets on 100,000 bars with two threads, in a process of its own, against vectorbt's broadcast."""
    import vectorbt as vbt

    alone = in_a_process("sweep")
    candles, sets = market(FEW, HOUR_MS), parameter_sets()[:: SETS // AT_ONCE]
    close = candles["close"].to_numpy()

    def theirs() -> object:
        fast, slow = (
            vbt.MA.run(close, [each[name] for each in sets]).ma.to_numpy() for name in ("fast", "slow")
        )  # fmt: skip
        targets = np.sign(np.nan_to_num(fast - slow))
        return peers.with_vectorbt(candles, targets, RULES).stats(agg_func=None, silence_warnings=True)

    theirs()  # compiles
    return Figure(
        f"sweep of {SETS:,} sets on {FEW:,} bars, all figures", alone["ms"], "vectorbt, broadcast, stats()",
        best(theirs, 2) * SETS / AT_ONCE,
        f"ours with 2 threads, {alone['mb']:,.0f} MB at most, {alone['mb'] - alone['before']:,.0f} more than before; "
        f"theirs from {AT_ONCE} sets at once, because of its memory, times {SETS // AT_ONCE}",
    )  # fmt: skip


def portfolio(candles: pd.DataFrame) -> Figure:
    """Two hundred symbols out of one account, with limits."""
    import vectorbt as vbt

    bars, symbols = 20_000, 200
    step = (len(candles) - bars) // symbols
    index = pd.DatetimeIndex(candles.index[:bars])
    begins = range(0, step * symbols, step)
    frames = {f"S{begin}": candles.iloc[begin : begin + bars].set_axis(index) for begin in begins}
    targets = {symbol: targets_of(frame) for symbol, frame in frames.items()}
    sizing = Sizing(fraction=0.02, short_of_cash="cut")
    limits = Limits(max_positions=100, max_exposure=1.0, max_symbol=0.03)
    rules = Rules(RULES.costs, sizing, RULES.protection, limits, cash=RULES.cash)
    opens, highs, lows, closes = (
        np.column_stack([frame[name] for frame in frames.values()]) for name in ("open", "high", "low", "close")
    )
    levels = np.zeros((bars, symbols))
    levels[1:] = np.column_stack(list(targets.values()))[:-1]
    enters = np.diff(levels, axis=0, prepend=0) != 0

    def theirs() -> object:
        return vbt.Portfolio.from_signals(
            pd.DataFrame(closes, index=index.tz_localize(None)), entries=(levels > 0) & enters,
            short_entries=(levels < 0) & enters, exits=levels == 0, short_exits=levels == 0, price=opens, open=opens,
            high=highs, low=lows, group_by=True, cash_sharing=True, call_seq="auto", size_type="value",
            **(peers.stops(rules) | {"size": 0.02 * rules.cash}),
        ).stats(silence_warnings=True)  # fmt: skip

    def ours() -> object:
        return summarise(run_portfolio(frames, targets, rules), YEAR)

    theirs(), ours()  # compile
    times = by_turns({"ours": ours, "theirs": theirs}, 3)
    return Figure(
        f"portfolio of {symbols} symbols x {bars:,} bars, one account, all figures", times["ours"],
        "vectorbt, cash shared, stats()", times["theirs"],
        "theirs without limits of positions, exposure and symbol, and without sizes by equity: it has none",
    )  # fmt: skip


def first_calls() -> list[Figure]:
    """The first backtest of a process: with everything to compile, and with the cache on disk of the one before."""
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as cache:
        ours = [in_a_process("first", cache)["ms"] for _ in range(2)]
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as cache:
        theirs = [in_a_process("first-vectorbt", cache)["ms"] for _ in range(2)]
    return [
        Figure("first backtest of a process, nothing compiled yet", ours[0], "vectorbt", theirs[0]),
        Figure("first backtest of a process, compiled before", ours[1], "vectorbt", theirs[1]),
    ]


def targets_of(candles: pd.DataFrame) -> np.ndarray:
    """Long and short, float64 (n,)."""
    return sma_cross(candles, 20, 50, long_only=False).astype(np.float64)


def parameter_sets() -> list[dict[str, bool | int | float]]:
    """A thousand of the moving-average cross."""
    return [{"fast": fast, "slow": slow, "long_only": False} for fast in range(5, 45) for slow in range(50, 175, 5)]


def tiled(candles: pd.DataFrame, bars: int) -> pd.DataFrame:
    """The same candles end to end, hour by hour."""
    values = np.asfortranarray(np.resize(candles.to_numpy(), (bars, len(COLUMNS))))
    return frame_of(int(candles.index[0].timestamp() * 1000) + HOUR_MS * np.arange(bars), values)


def real_hours(folder: Path) -> pd.DataFrame:
    rows = pd.read_parquet(folder / "binance_BTCUSDT_1h.parquet")
    return frame_of(rows["timestamp"], rows[list(COLUMNS)])


def by_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The best time of each, in milliseconds, all measured in the same minutes."""
    turns = [{name: best(work, 1) for name, work in works.items()} for _ in range(repeats)]
    return {name: min(turn[name] for turn in turns) for name in works}


def in_a_process(what: str, cache: str | None = None) -> dict[str, float]:
    """What ``alone`` measures, in a process of its own, with an empty or given cache of compiled code."""
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    command = [sys.executable, "-W", "ignore", "-m", "deployments.bench_backtest", what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone(what: str) -> dict[str, float]:
    """Milliseconds; of a sweep also the megabytes held at most, before and after."""
    candles = market(FEW if what == "sweep" else 1_000, HOUR_MS)
    targets = targets_of(candles)
    if what == "sweep":
        from trading.backtest.sweep import sweep

        sets = parameter_sets()
        sweep(candles, rule("sma_cross"), sets[:2], RULES, YEAR, threads=2)  # compiles
        before = peak_mb()
        ms = best(lambda: sweep(candles, rule("sma_cross"), sets, RULES, YEAR, threads=2), 3)
        return {"ms": ms, "before": before, "mb": peak_mb()}
    if what == "first":
        started = time.perf_counter()
        summarise(run(candles, targets, RULES), YEAR)
    else:
        import vectorbt  # noqa: F401 - what it imports is no part of the call

        started = time.perf_counter()
        peers.with_vectorbt(candles, targets, RULES).stats(silence_warnings=True)
    return {"ms": 1000 * (time.perf_counter() - started)}


def peak_mb() -> float:
    """Memory of this process at most so far, in megabytes of 1,048,576 bytes; of Linux, as getrusage's is that of the
    process that started this one where that was more.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def main() -> None:
    """Measure this part and print it; with a name, measure that alone and print it for the caller."""
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        print(json.dumps(alone(sys.argv[1])))
        return
    from deployments.bench import printed

    printed(backtest_figures())


if __name__ == "__main__":
    main()
