"""Who speaks in an analysis run: models, strategies and the LLM, by which settings, and what each of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

import httpx
from prefect import task

from tasks import log, model_analyst, promotions, registry
from tasks.addresses import without_login
from tasks.disabled_strategies import disabled
from tasks.engine_settings import current, selected_strategies
from tasks.llm_tracing import require_answer
from tasks.model_analyst import Models
from tasks.model_choice import model_for
from tasks.retry import STORE, prefect_options
from tasks.scoreboards import weights_at
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store
from tasks.strategy_settings import EngineSettings
from tasks.technical_analyst import Selected, Weights
from tasks.training import model_name
from trading.analysis import MODEL, Abstention
from trading.window import Timeframe

THRESHOLD, TIME_TO_LIVE = 0.2, timedelta(minutes=15)
_SHOWN: Final = 300


@dataclass(frozen=True)
class AnalysisRequest:
    """What a run analyses and how; see the flow. None for what the engine's settings say."""

    timeframe: Timeframe
    start: datetime
    end: datetime
    strategies: tuple[Selected, ...] | None = None
    horizon: int = 12
    threshold: float | None = None
    ttl: timedelta | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """Who speaks in a run, and what each counts.

    Attributes:
        settings_version: of the engine's settings, from which strategies, threshold and time to live are.
        disabled: strategies that would have spoken and may not, each with the reason.
        unconfigured: analysts that are not there to begin with, each with the reason: nobody waits for them.
        weights: see ``tasks.scoreboards``.
        llm: names the LLM and its endpoint; empty where it is off.
        threshold: a combined score nearer to zero is Neutral.
        ttl: how long an analysis with the same inputs is good.
    """

    models: Models
    strategies: tuple[Selected, ...] = ()
    settings_version: str = ""
    disabled: tuple[str, ...] = ()
    unconfigured: tuple[Abstention, ...] = ()
    weights: Weights = field(default_factory=dict)
    llm: str = ""
    threshold: float = THRESHOLD
    ttl: timedelta = TIME_TO_LIVE


def strategies_of(store: Store, settings: Settings, request: AnalysisRequest, now: datetime) -> Panel:
    """A panel of the strategies that may speak, and nobody else: those that are asked for, or selected by the
    engine's settings, less those that are disabled.

    Raises:
        SettingsTooOld: the engine's settings are needed, and were last read too long ago.
    """
    chosen: EngineSettings | None
    if request.strategies is None:
        found = selected_strategies(store, settings, now, request.timeframe)
        chosen, told = found.settings, found.strategies
        out = {one.strategy: one for one in found.disabled}
    else:
        # what is asked for by name needs no engine, and what is disabled stays so
        chosen = None if None not in (request.threshold, request.ttl) else current(store, settings, now=now)
        out = {one.strategy: one for one in disabled(store, now)}
        out = {one.rule: out[one.rule] for one in request.strategies if one.rule in out}
        told = tuple(one for one in request.strategies if one.rule not in out)
    threshold = request.threshold if chosen is None or request.threshold is not None else chosen.confidence_threshold
    ttl = request.ttl if chosen is None or request.ttl is not None else chosen.time_to_live
    return Panel(
        Models(),
        told,
        chosen.version if chosen is not None else "",
        tuple(f"{name} is disabled: {'; '.join(one.reasons)}" for name, one in out.items()),
        threshold=threshold if threshold is not None else THRESHOLD,
        ttl=ttl if ttl is not None else TIME_TO_LIVE,
    )


def with_models(
    store: Store, settings: Settings, panel: Panel, symbols: Sequence[str], timeframe: Timeframe, now: datetime
) -> Panel:
    """The panel with the verified models of ``tasks.model_choice``.

    A model that never had a champion is *unconfigured*: the rules speak alone, and that is all there is to it. One
    whose champion was refused or is gone, or cannot be looked up because MLflow does not answer, abstains.

    Raises:
        ConfigurationError: there is no signing key to verify with.
    """
    from mlflow.exceptions import MlflowException

    name = model_name(list(symbols), timeframe)
    try:
        require_answer(settings)
        client = registry.connect(settings)
        name = model_for(client, store, symbols, timeframe)
        found = model_analyst.models(client, settings, name, store=store, now=now)
    except (MlflowException, httpx.HTTPError) as error:
        why = f"MLflow does not tell of {name} ({without_login(str(error))[:_SHOWN]}); see whether it runs and has it"
        log.logger().error("the model is silent", reason=why)
        return replace(panel, models=Models(abstention=Abstention(MODEL, why)))
    why_not = found.abstention
    if why_not is not None and not found.refused and not promotions.history(store, name):
        return replace(panel, models=replace(found, abstention=None), unconfigured=(*panel.unconfigured, why_not))
    return replace(panel, models=found)


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="gather-analysts", **prefect_options(STORE))
def panel_task(symbols: list[str], request: AnalysisRequest, now: datetime) -> Panel:
    """Who speaks in this run: the strategies, the models, verified, and what everybody's record makes them count.

    Raises:
        SettingsTooOld: as ``strategies_of``.
    """
    settings = load_settings()
    with configured_store(settings) as store:
        chosen = strategies_of(store, settings, request, now)
        return replace(
            with_models(store, settings, chosen, symbols, request.timeframe, now),
            weights=weights_at(store, request.timeframe, request.end),
            llm=f"{settings.llm_url} {settings.llm_model}" if settings.llm else "",
        )
