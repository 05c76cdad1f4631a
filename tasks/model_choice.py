"""Which registered model speaks for a set of symbols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks import promotions, registry
from tasks.store import Store
from tasks.training import model_name
from trading.window import Timeframe

if TYPE_CHECKING:
    from mlflow import MlflowClient


def model_for(client: MlflowClient, store: Store, symbols: Sequence[str], timeframe: Timeframe) -> str:
    """The model of exactly these symbols if it ever had a champion; else that of the fewest symbols which has a
    champion and was trained on all of these; else the first again, which nobody has trained yet.

    A part of what a model was trained on is answered by that model: a symbol asked for alone, or those of an ingest
    that another symbol's candle was late for.
    """
    exact = model_name(list(symbols), timeframe)
    if promotions.history(store, exact) or registry.version_of(client, exact, registry.CHAMPION) is not None:
        return exact
    wider = []
    for champion in registry.champions(client, f"%-{timeframe.value}"):
        known = champion.tags.get("symbols", "").split(",")
        if champion.tags.get("timeframe") == timeframe.value and set(symbols) <= set(known):
            wider.append((len(known), str(champion.name)))
    return min(wider)[1] if wider else exact
