"""What a backtest trades on: candles of each symbol, and the targets of models on bars that they did not learn from.

The targets of a model are made once, by whoever has the registry at hand, and stored; the batches, wherever they
run, read them from the store. All strategies of a symbol trade the same bars: those for which every model has an
out-of-sample signal, or all of them where there is no model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tasks.backtest_plans import Subject, digest_of
from tasks.backtest_proofs import prove
from tasks.backtest_requests import CHAMPION, MODELS, WALK_FORWARD, BacktestRequest
from tasks.chunks import chunk_id
from tasks.datasets import Dataset, load
from tasks.model_choice import model_for
from tasks.models import Champion, champion, unseen_targets
from tasks.periods import reach
from tasks.settings import Settings
from tasks.store import Store, get_result, put_result, read_candles, series_key, touch_result
from trading.errors import InsufficientHistory, ModelNotFound, StoreError
from trading.window import Window, split_by_period

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient

MINIMUM_BARS: Final = 100
TARGETS: Final = "backtest targets"


@dataclass(frozen=True)
class Models:
    """The models that a request asks for. ``absent``: in words, those that there are not, or why another stands in.

    ``names`` holds what decides the targets of each model that there is, by name.
    """

    names: Mapping[str, str]
    absent: tuple[str, ...]
    champion: Champion | None = None


def models_of(
    store: Store, settings: Settings, client: MlflowClient, dataset: Dataset, request: BacktestRequest, now: datetime
) -> Models:
    """The champion, verified, and the recipe of the walk-forward model, of those that the request names."""
    from ml.artifact import code_digest

    names, absent, chosen = {}, [], None
    if CHAMPION in request.strategies:
        try:
            name = model_for(client, store, dataset.symbols, dataset.timeframe)
            chosen = champion(client, settings, name, store=store, now=now)
        except ModelNotFound as error:
            # the other strategies are worth a backtest of their own; the result names who was missing
            absent.append(str(error))
        else:
            names[CHAMPION] = f"{chosen.manifest_sha256} {chosen.unseen_sha256}"
            absent += [chosen.degraded] if chosen.degraded else []
    if WALK_FORWARD in request.strategies:
        costs = request.rules.costs
        # every symbol of the dataset is learned from
        names[WALK_FORWARD] = digest_of(
            dataset.digest, asdict(request.model), costs.fee_rate, costs.slippage_rate, code_digest()
        )
    return Models(names, tuple(absent), chosen)


def subjects_of(
    store: Store, client: MlflowClient, dataset: Dataset, request: BacktestRequest, models: Models, now: datetime
) -> tuple[Subject, ...]:
    """Each symbol with its own digest, the stored targets of the models, and the first bar that all may trade.

    Raises:
        InsufficientHistory: fewer than ``MINIMUM_BARS`` bars are left to trade for a symbol.
        LookAhead: the champion's signals change with what comes after them.
    """
    from ml.training import dataset_digest

    frames = load(store, dataset)
    alone = {
        window.symbol: Dataset(
            windows=(window,),
            rows={window.symbol: dataset.rows[window.symbol]},
            digest=dataset_digest({window.symbol: frames[window.symbol]}),
            data_mode=dataset.data_mode,
            calendars={window.symbol: dataset.calendars[window.symbol]},
            revisions=_of_series(dataset.revisions, window),
        )
        for window in dataset.windows
    }
    # the champion sees the candles before the backtest's, too, as it does where it trades
    shown = {symbol: _with_earlier(store, one, frames[symbol], models.champion) for symbol, one in alone.items()}
    earlier = {symbol: dataset_digest({symbol: shown[symbol].iloc[: -len(frame)]}) for symbol, frame in frames.items()}
    keys = {
        name: {
            symbol: digest_of(
                TARGETS, name, models.names[name], one.digest, earlier[symbol] if name == CHAMPION else ""
            )
            for symbol, one in alone.items()
        }
        for name in MODELS
        if name in models.names
    }
    walked: Mapping[str, tuple[np.ndarray, int]] | None = None
    firsts = dict.fromkeys(alone, 0)
    for name, by_symbol in keys.items():
        for symbol, key in by_symbol.items():
            # the batches read it some time after this: maintenance is to leave it until then
            stored = get_result(store, key) if touch_result(store, key, now) else None
            if stored is not None:
                first = int(stored["first"])
            elif name == CHAMPION and models.champion is not None:
                if len(shown[symbol]) >= models.champion.model.rows_needed:
                    _prove_champion(store, models.champion, shown[symbol], now)
                targets, first = unseen_targets(client, models.champion, symbol, shown[symbol])
                before = len(shown[symbol]) - len(frames[symbol])
                targets, first = targets[before:], max(first - before, 0)
                put_result(store, key, TARGETS, _document(targets, first), now)
            else:
                walked = walked or walk_forward_targets(frames, dataset, request)
                targets, first = walked[symbol]
                put_result(store, key, TARGETS, _document(targets, first), now)
            firsts[symbol] = max(firsts[symbol], first)
    for symbol, frame in frames.items():
        left = len(frame) - firsts[symbol]
        if left < MINIMUM_BARS:
            raise InsufficientHistory(
                f"{symbol} has {left} bars to backtest and {MINIMUM_BARS} are needed; use a longer window"
            )
    return tuple(
        Subject(one, firsts[symbol], {name: by_symbol[symbol] for name, by_symbol in keys.items()})
        for symbol, one in alone.items()
    )


def walk_forward_targets(
    frames: Mapping[str, pd.DataFrame], dataset: Dataset, request: BacktestRequest
) -> dict[str, tuple[np.ndarray, int]]:
    """Targets of a model that is trained anew for each fold, and the first bar with one, by symbol.

    Each signal comes from a model of rows whose labels had ended, and an embargo had passed, before the fold
    began; it is held for the horizon or until the opposite one.

    Raises:
        InsufficientHistory: too few candles for a row, the folds, or the classes of a fold.
        InvalidRequest: an unknown estimator.
    """
    import numpy as np

    from ml import splits, training
    from tasks.learning import features_of, label_of
    from trading.candles import open_times_ms
    from trading.strategies import hold

    costs, model = request.rules.costs, request.model
    asked = model.training(costs.fee_rate, costs.slippage_rate)
    table = training.assemble(frames, features_of(asked), label_of(asked))
    folds = splits.walk_forward_folds(
        table.t0,
        table.t1,
        folds=model.folds,
        embargo=model.horizon * dataset.timeframe.delta,
        rolling=timedelta(days=model.rolling_days) if model.rolling_days else None,
    )
    walk = training.walk_forward(table, folds, estimators={model.estimator: {}}, seed=model.seed)
    unseen = training.out_of_sample(walk, model.estimator)
    found = {}
    for symbol, candles in frames.items():
        mine = unseen[unseen["symbol"] == symbol]
        signals = np.zeros(len(candles), dtype=np.int8)
        at = np.searchsorted(open_times_ms(candles), mine["decided_at"].to_numpy())
        signals[at] = mine["signal"].to_numpy()
        found[symbol] = hold(signals, model.horizon), int(at.min()) if len(at) else len(candles)
    return found


def stored_targets(store: Store, key: str) -> np.ndarray:
    """The targets that ``subjects_of`` stored, int8 (n,).

    Raises:
        StoreError: there are none of that key.
    """
    import numpy as np

    stored = get_result(store, key)
    if stored is None:
        raise StoreError(f"the store holds no targets {key[:12]} of a model; run the backtest again")
    return np.frombuffer(zlib.decompress(stored["targets"]), dtype=np.int8)


def _with_earlier(store: Store, one: Dataset, candles: pd.DataFrame, chosen: Champion | None) -> pd.DataFrame:
    """The candles, and before them as many stored ones as the champion needs for its first row."""
    import pandas as pd

    if chosen is None:
        return candles
    [window] = one.windows
    back = reach(chosen.model.rows_needed, window.timeframe, one.calendars[window.symbol])
    start = window.timeframe.floor(window.start - back)
    before = read_candles(store, Window(window.symbol, window.timeframe, start, window.start))
    return pd.concat([before, candles]) if len(before) else candles


def _of_series(revisions: Mapping[str, int], window: Window) -> dict[str, int]:
    """The revisions of one series: a batch carries no others."""
    key = series_key(window.symbol, window.timeframe.value)
    mine = {chunk_id(key, part) for part in split_by_period(window)}
    return {chunk: revision for chunk, revision in revisions.items() if chunk in mine}


def _document(targets: np.ndarray, first: int) -> dict[str, Any]:
    return {"targets": zlib.compress(targets.astype("int8").tobytes()), "first": int(first)}


def _prove_champion(store: Store, chosen: Champion, candles: pd.DataFrame, now: datetime) -> None:
    prove(
        store, f"{chosen.name} version {chosen.version}", chosen.model.targets, candles,
        [chosen.manifest_sha256], bars_needed=chosen.model.rows_needed, now=now, cuts=8,
    )  # fmt: skip
