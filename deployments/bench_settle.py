"""How long it takes to settle many analyses, and how much memory: nothing settled yet, nothing new, and a usual run.

python -m deployments.bench_settle                             # 100 symbols, an analysis of each hour of 90 days
python -m deployments.bench_settle --symbols 10 --days 30      # fewer

There is one analysis for each bar, however often a symbol is analysed: of one every ten minutes the last of the hour
stands. They are made up, in the documents of real ones: model, rules with their four strategies,
an LLM and a challenger each with an opinion. Each step is a process of its own, and its seconds are without imports:

first     everything is settled for the first time
again     the same once more: there is nothing to settle
six hours what the schedule does: analyses of seven days are looked at, those of six hours are new
record    everybody's record over all settlements
MLflow    the same, written to an MLflow database on SQLite, with its picture and tables
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from deployments import show
from trading.window import Timeframe, Window

if TYPE_CHECKING:
    import numpy as np

    from tasks.documents import Document
    from tasks.settling import SettleRequest
    from tasks.store import Store
    from trading.analysis import Opinion

SYMBOLS: Final = 100
DAYS: Final = 90
HORIZON: Final = 12
END: Final = datetime(2026, 3, 2, tzinfo=UTC)
HOUR: Final = timedelta(hours=1)
STRATEGIES: Final = ("rsi", "macd", "volume", "bollinger")
STEPS: Final = ("first", "again", "six hours", "record", "MLflow")
CHECKOUT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Took:
    """A step: seconds, those that it used a processor, how much memory its process had at most, and what it did."""

    step: str
    seconds: float
    processor: float
    megabytes: float
    what: str


def names(symbols: int) -> list[str]:
    """So many symbols."""
    return [f"S{number:03d}USDT" for number in range(symbols)]


def fill(home: Path, symbols: Sequence[str], days: int, end: datetime = END) -> int:
    """Candles of generated markets and an analysis of every hour of each; how many of these."""
    import numpy as np

    from deployments.bench_models import _stored
    from deployments.sandbox.generator import Recipe, generate
    from tasks.store import ANALYSES, open_store
    from trading.candles import frame_of

    start, bars = end - timedelta(days=days), days * 24
    opens = int(start.timestamp() * 1000) + 3_600_000 * np.arange(bars, dtype="int64")
    recipes = [Recipe(name, 100.0 + at, 0.006, 900.0, 4) for at, name in enumerate(symbols)]
    markets = generate(recipes, bars, 7)
    with open_store(home) as store:
        for at, name in enumerate(symbols):
            _stored(store, Window(name, Timeframe.H1, start, end), frame_of(opens, markets[name]), "simulated")
            closes = markets[name][:, 3]
            store.documents.insert_all(ANALYSES, _analysed(name, start, closes, np.random.default_rng(at)))
    return len(symbols) * bars


def _analysed(symbol: str, start: datetime, closes: np.ndarray, rng: np.random.Generator) -> Iterator[Document]:
    """An analysis two minutes after each bar."""
    from tasks.analysis_documents import Seen, document
    from tasks.store import keyed_analysis
    from trading.analysis import combine

    model = {"name": "BENCH-1h", "version": "3", "run_id": "f" * 32, "degraded": None, "estimator": "lightgbm"}
    for bar, price in enumerate(closes.tolist()):
        closed = start + (bar + 1) * HOUR
        opinions = list(_opinions(rng))
        analysis = combine(opinions[:3], {}, compared=opinions[3:])
        seen = Seen(symbol, Timeframe.H1, closed, price, "simulated", "c" * 64, "i" * 64, HORIZON, "built-in 1f0c2a77")
        made = document(seen, analysis, model, None, "f" * 36, closed + timedelta(minutes=2))
        yield keyed_analysis(made)


def _opinions(rng: np.random.Generator) -> Iterator[Opinion]:
    """What the model, the rules, the LLM and a challenger said."""
    from trading.analysis import CHALLENGER, LLM, MODEL, TECHNICAL, Cost, Opinion, Signal

    sides = list(Signal)
    said = [sides[at] for at in rng.integers(0, 3, 8)]
    sure = rng.uniform(0.05, 0.95, 8).round(4).tolist()
    parts = tuple(
        Opinion(rule, said[at], sure[at], (f"1h {said[at]}: RSI(14) at {sure[at]}", "4h Neutral: no cross"),
                {"version": "period=14,low=30,high=70", "1h": "1", "4h": "0"})
        for at, rule in enumerate(STRATEGIES)
    )  # fmt: skip
    trained = {"model": "BENCH-1h", "run_id": "f" * 32, "manifest": "a" * 64, "estimator": "lightgbm"}
    why = ("P(Long) is 0.41 and P(Short) 0.30", "the largest share has log_return_12")
    yield Opinion(MODEL, said[4], sure[4], why, {**trained, "version": "3"}, horizon=HORIZON, latency=0.01)
    yield Opinion(TECHNICAL, said[5], sure[5], tuple(part.reasons[0] for part in parts), {"version": "0123456789ab"},
                  horizon=HORIZON, latency=0.01, parts=parts)  # fmt: skip
    yield Opinion(LLM, said[6], sure[6], ("MACD histogram at 0.12", "RSI (14) at 55"),
                  {"model": "sandbox", "endpoint": "127.0.0.1", "prompt": "p" * 64, "calls": "1"}, horizon=HORIZON,
                  cost=Cost(0.0002, 600, 60), latency=1.0)  # fmt: skip
    yield Opinion(CHALLENGER, said[7], sure[7], why, {**trained, "version": "4"}, horizon=HORIZON, latency=0.01)


def run(step: str, home: Path, symbols: Sequence[str], days: int) -> dict[str, Any]:
    """Do a step in this process."""
    from tasks.store import open_store

    with open_store(home) as store:
        work = _prepared(step, store, home, symbols, days)
        started, used = time.perf_counter(), time.process_time()
        what = work()
        seconds, processor = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step": step, "seconds": seconds, "processor": processor, "megabytes": peak, "what": what}


def _prepared(step: str, store: Store, home: Path, symbols: Sequence[str], days: int) -> Callable[[], str]:
    from tasks.scoreboards import scoreboard
    from tasks.settling import SettleRequest, settle_all

    whole = SettleRequest(Timeframe.H1, END - timedelta(days=days), END, horizon=HORIZON, score_days=days)
    week = SettleRequest(Timeframe.H1, END - timedelta(days=min(7, days)), END, horizon=HORIZON, score_days=days)
    if step == "six hours":
        _unsettle(store, END - (HORIZON + 6) * HOUR)
    if step == "MLflow":
        return _in_mlflow(store, home, whole)
    if step == "record":
        return lambda: f"of {scoreboard(store, whole).settled:,} settlements"
    request = week if step == "six hours" else whole

    def settled() -> str:
        found = settle_all(store, symbols, request, now=END)
        if found.errors or found.waiting:
            raise RuntimeError(f"not all could be settled: {[*found.errors, *found.waiting][:3]}")
        return f"{found.fresh:,} settled, {found.known:,} were, {found.early:,} too early"

    return settled


def _unsettle(store: Store, since: datetime) -> None:
    """Forget the settlements of bars that closed after ``since``."""
    from tasks.documents import Span
    from tasks.store import SETTLEMENTS

    for one in store.documents.find(SETTLEMENTS, {"timeframe": "1h"}, Span("timestamp", since)):
        store.documents.delete(SETTLEMENTS, one["_id"])


def _in_mlflow(store: Store, home: Path, request: SettleRequest) -> Callable[[], str]:
    from tasks import registry
    from tasks.score_runs import score_analysts
    from tasks.settings import Settings

    settings = Settings(home=home)  # type: ignore[call-arg]
    client = registry.connect(settings)
    registry.experiment_id(client, settings, "made before")
    return lambda: (
        f"{len(score_analysts(store, settings, client, request, [], now=END, flow_run_id=None).rows)} analysts"
    )


def measure(home: Path, symbols: int, days: int) -> list[Took]:
    """Every step, each in a process of its own, one after the other on the same store."""
    made = fill(home, names(symbols), days)
    found = []
    for step in STEPS:
        command = [sys.executable, "-m", "deployments.bench_settle", "--run", step, "--home", str(home)]
        command += ["--symbols", str(symbols), "--days", str(days)]
        variables = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        said = subprocess.run(command, cwd=CHECKOUT, env=variables, stdout=subprocess.PIPE, text=True, check=True)
        found.append(Took(**json.loads(said.stdout.splitlines()[-1])))
    size = (home / "store.db").stat().st_size / 1e6
    print(f"{made:,} analyses; the store has {size:,.0f} MB")
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=SYMBOLS)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--run", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(run(asked.run, asked.home, names(asked.symbols), asked.days)))
        return
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        found = measure(Path(temporary), asked.symbols, asked.days)
    rows = [
        [took.step, f"{took.seconds:,.1f}", f"{took.processor:,.1f}", f"{took.megabytes:,.0f}", took.what]
        for took in found
    ]
    title = f"Settling {asked.symbols} symbols, {asked.days} days, an analysis an hour"
    columns = ("step", "seconds", "of a processor", "MB at most", "what")
    Console(width=100).print(show.table(title, columns, rows, right=columns[1:4]))


if __name__ == "__main__":
    main()
