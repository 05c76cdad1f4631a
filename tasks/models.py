"""The champion in use: verified, loaded, and asked only about what it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks import registry
from tasks.settings import Settings
from tasks.training_runs import UNSEEN

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from mlflow import MlflowClient

    from ml.model import Model


@dataclass(frozen=True, eq=False)
class Champion:
    """A verified model version and where it came from."""

    model: Model
    name: str
    version: str
    run_id: str
    estimator: str
    trained_until_ms: int
    manifest_sha256: str
    link: str


def champion(client: MlflowClient, settings: Settings, name: str) -> Champion:
    """The champion of a registered model, its files checked against the digest in the registry.

    Raises:
        ModelNotFound: no champion.
        ModelRejected: a file or the manifest is not what was registered.
    """
    from ml.artifact import load

    version = registry.require_champion(client, name)
    sha256 = version.tags["manifest_sha256"]
    return Champion(
        model=load(registry.model_folder(version), sha256),
        name=name,
        version=str(version.version),
        run_id=str(version.run_id),
        estimator=version.tags["estimator"],
        trained_until_ms=int(version.tags["trained_until_ms"]),
        manifest_sha256=sha256,
        link=registry.version_link(settings, name, str(version.version)),
    )


def unseen_targets(
    client: MlflowClient, chosen: Champion, symbol: str, candles: pd.DataFrame
) -> tuple[np.ndarray, int]:
    """The champion's target positions on bars that it was not trained on.

    Bars inside its training span take the signals that the walk-forward gave them, each from a model
    fitted on earlier bars only; later bars take the champion's own. Each signal is held for the label's
    horizon or until the opposite one.

    Returns:
        int8 targets aligned with ``candles``, and the position of the first bar with a signal of either
        kind (``len(candles)`` if there is none). Bars before it are not to be traded at all.
    """
    import numpy as np
    import pandas as pd

    from trading.candles import open_times_ms
    from trading.strategies import hold

    opens = open_times_ms(candles)
    signals = np.zeros(len(candles), dtype=np.int8)
    known = np.zeros(len(candles), dtype=bool)
    table = pd.read_parquet(registry.run_file(client, chosen.run_id, UNSEEN))
    mine = table[table["symbol"] == symbol]
    at = np.searchsorted(opens, mine["decided_at"].to_numpy())
    inside = at < len(opens)
    inside[inside] &= opens[at[inside]] == mine["decided_at"].to_numpy()[inside]
    signals[at[inside]] = mine["signal"].to_numpy()[inside]
    known[at[inside]] = True
    # a bar whose fill lies after the last label the model was trained on is news to it
    fresh = np.zeros(len(candles), dtype=bool)
    fresh[:-1] = opens[1:] > chosen.trained_until_ms
    fresh[-1:] = opens[-1:] > chosen.trained_until_ms
    if fresh.any() and len(candles) >= chosen.model.rows_needed:
        signals[fresh] = chosen.model.targets(candles)[fresh]
        known |= fresh
    first = int(np.argmax(known)) if known.any() else len(candles)
    return hold(signals, chosen.model.label.horizon), first
