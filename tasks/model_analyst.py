"""The model analyst: the champion, verified, on the last bar; a challenger beside it, for comparison only.

A champion that does not verify has no say: the previous version takes its place (``tasks.models``), or the
analyst abstains, by name and reason. A challenger that cannot be used is left out: nobody waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tasks import log, registry
from tasks.models import Champion, alert, champion, load
from tasks.settings import Settings
from tasks.signing import signing_key
from trading.analysis import CHALLENGER, MODEL, Abstention, Opinion, Signal
from trading.errors import CandleGap, InsufficientHistory, ModelNotFound, ModelRejected

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from ml.model import Prediction, Row
    from tasks.store import Store


@dataclass(frozen=True, eq=False)
class Models:
    """Who speaks for the models. ``abstention`` says why there is no champion; ``refused``: it did not verify."""

    champion: Champion | None = None
    challenger: Champion | None = None
    abstention: Abstention | None = None
    refused: bool = False

    def versions(self) -> list[list[str]]:
        """What the models' answers depend on besides candles, as JSON values."""
        used = {MODEL: self.champion, CHALLENGER: self.challenger}
        return [
            [role, one.name, one.version, one.manifest_sha256, one.degraded or ""]
            for role, one in used.items()
            if one is not None
        ]


def models(client: MlflowClient, settings: Settings, name: str, *, store: Store, now: datetime) -> Models:
    """The verified champion and challenger of a registered model.

    Raises:
        ConfigurationError: there is no signing key to verify with.
    """
    try:
        chosen = champion(client, settings, name, store=store, now=now)
    except ModelNotFound as error:
        log.logger().warning("no champion", reason=str(error))
        return Models(None, None, Abstention(MODEL, str(error)))
    except ModelRejected as error:
        # each version was alerted of already
        return Models(None, None, Abstention(MODEL, str(error)), refused=True)
    return Models(chosen, _challenger(client, settings, chosen))


def _challenger(client: MlflowClient, settings: Settings, chosen: Champion) -> Champion | None:
    version = registry.version_of(client, chosen.name, registry.CHALLENGER)
    if version is None or str(version.version) == chosen.version:
        return None
    try:
        return load(client, settings, version, signing_key(settings))
    except ModelRejected as error:
        alert(chosen.name, str(version.version), [f"the challenger was refused: {error}"])
        return None


def row(chosen: Champion, candles: pd.DataFrame, calendar: str) -> Row | Abstention:
    """The features of the last candle, or why the model is silent on it."""
    try:
        return chosen.model.row(candles, calendar)
    except (CandleGap, InsufficientHistory) as error:
        return Abstention(MODEL, f"{chosen.name} version {chosen.version} is silent: {error}")


def opinion(chosen: Champion, prediction: Prediction, analyst: str = MODEL) -> Opinion:
    """A prediction as an opinion, with the version behind it."""
    return Opinion(
        analyst,
        prediction.signal,
        prediction.confidence,
        prediction.reasons,
        {
            "model": chosen.name,
            "version": chosen.version,
            "run_id": chosen.run_id,
            "manifest": chosen.manifest_sha256,
            "estimator": chosen.estimator,
        },
        horizon=chosen.model.label.horizon,
    )


@dataclass(frozen=True)
class Judged:
    """What the suite said: ``refused`` has the reason by symbol, ``warnings`` concern the whole run."""

    refused: dict[str, str]
    warnings: tuple[str, ...]


def judge_predictions(predictions: Mapping[str, Prediction]) -> Judged:
    """Judge the predictions of a run, by symbol, in one pass.

    Great Expectations takes seconds to import, so it is asked only where plain arithmetic finds fault.
    """
    if sound(list(predictions.values())):
        return Judged({}, ())
    from expectations.predictions import judge

    verdicts, of_run = judge(list(predictions.values()))
    refused = {
        symbol: "; ".join(map(str, verdict.critical))
        for symbol, verdict in zip(predictions, verdicts, strict=True)
        if verdict.critical
    }
    return Judged(refused, tuple(map(str, of_run.findings)))


def sound(predictions: Sequence[Prediction]) -> bool:
    """Whether the suite of ``expectations.predictions`` has nothing to say of these: stricter than it, never laxer."""
    triples = [(one.p_short, one.p_neutral, one.p_long) for one in predictions]
    for one, triple in zip(predictions, triples, strict=True):
        if one.signal not in tuple(Signal) or not all(0 <= value <= 1 for value in (*triple, one.confidence)):
            return False
        if abs(math.fsum(triple) - 1) > 1e-7:
            return False
    sides = [one.signal for one in predictions]
    alike = len(set(triples)) < 2 or max(map(sides.count, set(sides))) > 0.95 * len(sides)
    # a handful may well be of one side, though not of one mind
    return len(sides) < 3 or not (alike if len(sides) >= 100 else len(set(triples)) < 2)


def named(chosen: Champion) -> dict[str, Any]:
    """What a stored analysis says of its model."""
    return {"name": chosen.name, "version": chosen.version, "run_id": chosen.run_id, "degraded": chosen.degraded}
