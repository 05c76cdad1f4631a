"""The models' part of ``make bench``: a whole training with its logging, and predictions from raw candles.

python -m deployments.bench_models --bars 60000      # a training of another size, to see how time grows
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from deployments.bench_figures import Figure, best
from deployments.sandbox.generator import RECIPES, generate
from deployments.sandbox.markets import GENERATED_START
from trading.candles import COLUMNS, between, frame_of
from trading.window import Timeframe, Window, split_by_period

if TYPE_CHECKING:
    from ml.model import Model
    from tasks.store import Store

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "DOGEUSDT", "LTCUSDT")
BARS = 6_000
FOLDS = 5
MANY = 500


def models_figures() -> list[Figure]:
    """A training of 6 symbols beside the fits of its trees alone; a prediction, and 500 of them."""
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        seconds, fits, model = training(Path(temporary), BARS)
    one, through_ta, together, apart = _predictions(model)
    note = "a process that has imported nothing yet; logistic, LightGBM and the baselines; MLflow on SQLite"
    return [
        Figure(
            f"train {len(SYMBOLS)} x {BARS:,} candles, {FOLDS} folds, all logged",
            1000 * seconds, "its LightGBM fits alone", 1000 * fits, note,
        ),
        Figure("prediction for one symbol from raw candles", one, "some of its features by ta", through_ta),
        Figure(f"predictions for {MANY} symbols together", together, "one by one", apart),
    ]  # fmt: skip


def training(home: Path, bars: int) -> tuple[float, float, Model]:
    """Seconds of a training with all its logging and of its LightGBM fits alone, and the model."""
    from tasks import model_files, registry
    from tasks.datasets import load, select
    from tasks.learning import TrainingRequest, label_of
    from tasks.settings import Settings
    from tasks.store import open_store

    settings = Settings(home=home)  # type: ignore[call-arg]
    client = registry.connect(settings)
    registry.experiment_id(client, settings, "makes the database")
    request = TrainingRequest(12, FOLDS, 7, 0.001, 0.0005, 0.005, -0.005, estimators=("logistic", "lightgbm"))
    with open_store(home) as store:
        mode, frames = markets(bars)
        for symbol, candles in frames.items():
            start = candles.index[0].to_pydatetime()
            end = candles.index[-1].to_pydatetime() + timedelta(hours=1)
            _stored(store, Window(symbol, Timeframe.H1, start, end), candles, mode)
        dataset = select(store, SYMBOLS, Timeframe.H1, start, end, now=end)
        started = time.perf_counter()
        from tasks.training import train

        done = train(store, settings, client, dataset, request, now=end, flow_run_id=None)
        seconds = time.perf_counter() - started
        frames = load(store, dataset)
    from ml.artifact import load as read
    from ml.estimators import estimator
    from ml.features import FeatureSet
    from ml.splits import walk_forward_folds
    from ml.training import assemble

    table = assemble(frames, FeatureSet(), label_of(request))
    folds = walk_forward_folds(table.t0, table.t1, folds=FOLDS, embargo=timedelta(hours=request.horizon))
    started = time.perf_counter()
    for fold in folds:
        estimator("lightgbm").fit(table.sample(fold.train), request.seed)
    fits = time.perf_counter() - started
    version = registry.version_at(client, done.model, done.version)
    with model_files.model_folder(client, version) as folder:
        model = read(model_files.artifact_folder(folder), version.tags[model_files.MANIFEST_SHA256])
    return seconds, fits, model


def markets(bars: int) -> tuple[str, dict[str, pd.DataFrame]]:
    """Data mode and candles: real hourly ones beside the checkout, 5,980 bars, else as many generated ones as asked."""
    folder = Path(os.environ.get("TRADEFLOWS_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
    if bars != BARS or not folder.is_dir():
        return "simulated", {symbol: _recent(bars, seed) for seed, symbol in enumerate(SYMBOLS)}
    found = {}
    for symbol in SYMBOLS:
        rows = pd.read_parquet(folder / f"binance_{symbol}_1h.parquet").iloc[:5_980]  # as many as the shortest has
        found[symbol] = frame_of(rows["timestamp"].to_numpy(), rows[list(COLUMNS)].to_numpy())
    return "sample", found


def _stored(store: Store, window: Window, candles: pd.DataFrame, mode: str) -> None:
    """The candles of a window, written and approved."""
    from tasks import ledger
    from tasks.store import write_candles

    for part in split_by_period(window):
        rows = between(candles, part)
        written = write_candles(store, part, rows, mode)
        ledger.record(
            store,
            ledger.LedgerEntry(
                window=part, status=ledger.APPROVED, rows=len(rows), quarantined={}, gaps=0, suite="bench",
                flow_run_id=None, data_mode=mode, source="generator", calendar="24/7", recorded_at=window.end,
                findings=(), added=len(rows), digest=written.digest,
            ),
        )  # fmt: skip


def _predictions(model: Model) -> tuple[float, float, float, float]:
    """Milliseconds: one prediction, ``ta``'s part of its features, many together, many one by one."""
    from deployments.bench_features import with_ta

    many = [_recent(model.rows_needed, seed) for seed in range(MANY)]
    one = best(lambda: model.predict(many[0]), 20)
    through_ta = best(lambda: with_ta(many[0]), 3)
    together = best(lambda: model.predictions([model.row(candles) for candles in many]), 3)
    return one, through_ta, together, best(lambda: [model.predict(candles) for candles in many], 1)


def _recent(rows: int, seed: int) -> pd.DataFrame:
    opens = int(GENERATED_START.timestamp() * 1000) + 3_600_000 * np.arange(rows, dtype="int64")
    return frame_of(opens, generate(RECIPES[:1], rows, seed)["BTCSIM"])


def main() -> None:
    """One training; prints its seconds and those of its LightGBM fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", type=int, default=BARS)
    bars = parser.parse_args().bars
    with tempfile.TemporaryDirectory(prefix="tradeflows-bench-") as temporary:
        seconds, fits, _ = training(Path(temporary), bars)
    print(f"{len(SYMBOLS)} x {bars:,} candles: {seconds:.1f} s, of which its LightGBM fits alone {fits:.1f} s")


if __name__ == "__main__":
    main()
