"""Analyses: each symbol's last finished bar is shown to the analysts, and what they say is combined and stored.

In two steps. Symbols are heard in batches, several at a time: candles read, the model and the rules asked, and the
LLM, where there is one. Then all predictions of the run are judged together, and the analyses are combined,
stored and told. Between the steps go opinions, not candles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from prefect import task

from tasks import log, model_analyst, signals, technical_analyst
from tasks.analysis_documents import Analysed, Seen, abstention, document, row, still_good
from tasks.analysis_documents import stored_analysis as stored_before
from tasks.documents import Document
from tasks.looks import Look, look
from tasks.model_analyst import Judged
from tasks.models import Champion
from tasks.panels import AnalysisRequest, Panel
from tasks.retry import STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store, put_analysis
from trading.analysis import CHALLENGER, LLM, MODEL, Abstention, Analysis, Opinion, combine
from trading.errors import ConfigurationError, LlmError, TradeflowsError
from trading.scoring import version_of
from trading.window import Window

if TYPE_CHECKING:
    from ml.model import Prediction, Row

# calls of an LLM at the same time within a batch: its replies take their time, and limits stand elsewhere
LLM_AT_ONCE: Final = 4


# the LLM analyst: never raises for what is its own fault, but abstains
Ask = Callable[[Look], Opinion | Abstention]


@dataclass(frozen=True, eq=False)
class Heard:
    """What was said of one symbol; ``stored`` instead where an analysis with the same inputs is young enough."""

    seen: Seen
    opinions: tuple[Opinion, ...] = ()
    abstentions: tuple[Abstention, ...] = ()
    prediction: Prediction | None = None
    compared: tuple[tuple[Opinion, Prediction], ...] = ()
    stored: Document | None = None


def hear(
    store: Store, symbols: Sequence[str], request: AnalysisRequest, panel: Panel, ask: Ask | None, *, now: datetime
) -> tuple[list[Heard], list[str]]:
    """Ask every analyst about every symbol; what was said, in their order, and the errors of those without a look.

    The store is done with before an LLM is asked, so that no trouble with the one buys the other twice.

    Raises:
        TradeflowsError: of the transient kind: the store does not answer, and nobody can be heard.
    """
    reused: list[Heard] = []
    looks: list[Look] = []
    errors: list[str] = []
    for symbol in symbols:
        window = Window(symbol, request.timeframe, request.start, request.end)
        with log.about(window), collected(symbol, errors):
            shown = look(store, window, request, panel)
            before = stored_before(store, symbol, request.timeframe, shown.seen.bar_close)
            if before is not None and still_good(before, shown.seen.inputs_digest, panel.ttl, now):
                reused.append(Heard(shown.seen, stored=before))
            else:
                looks.append(shown)
    spoken = [_technical(shown, request, panel) for shown in looks]
    chosen = _ask_model(panel.models.champion, looks)
    rival = _ask_model(panel.models.challenger, looks, CHALLENGER)
    said = _ask_llm(ask, spoken)
    heard = []
    for at, shown in enumerate(spoken):
        words: list[Opinion | Abstention | None] = [
            panel.models.abstention or chosen[at][0],
            shown.technical,
            said[at],
        ]
        opinion, prediction = rival[at]
        heard.append(
            Heard(
                shown.seen,
                tuple(word for word in words if isinstance(word, Opinion)),
                tuple(word for word in words if isinstance(word, Abstention)),
                chosen[at][1],
                ((opinion, prediction),) if isinstance(opinion, Opinion) and prediction is not None else (),
            )
        )
    place = {symbol: at for at, symbol in enumerate(symbols)}
    return sorted(reused + heard, key=lambda one: place[one.seen.symbol]), errors


def _technical(shown: Look, request: AnalysisRequest, panel: Panel) -> Look:
    started = time.perf_counter()
    said = technical_analyst.opinion(
        shown.candles,
        request.timeframe,
        panel.strategies,
        panel.weights,
        until=request.end,
        threshold=panel.threshold,
    )
    if isinstance(said, Opinion):
        said = replace(said, horizon=shown.seen.horizon, latency=time.perf_counter() - started)
    elif not panel.strategies and not panel.disabled:
        return shown  # nobody was selected, so that nobody is missing
    return replace(shown, technical=said)


def _ask_model(
    chosen: Champion | None, looks: Sequence[Look], analyst: str = MODEL
) -> list[tuple[Opinion | Abstention | None, Prediction | None]]:
    """The model's word on each look, in one pass of the estimator."""
    if chosen is None:
        return [(None, None) for _ in looks]
    started = time.perf_counter()
    rows = [model_analyst.row(chosen, shown.candles, shown.calendar) for shown in looks]
    whole: list[Row] = [each for each in rows if not isinstance(each, Abstention)]
    predictions = iter(chosen.model.predictions(whole))
    each_took = (time.perf_counter() - started) / max(len(looks), 1)
    found: list[tuple[Opinion | Abstention | None, Prediction | None]] = []
    for row_ in rows:
        if isinstance(row_, Abstention):
            log.logger().warning(f"{analyst} is silent", reason=row_.reason)
            found.append((row_, None))
            continue
        prediction = next(predictions)
        found.append((replace(model_analyst.opinion(chosen, prediction, analyst), latency=each_took), prediction))
    return found


def _ask_llm(ask: Ask | None, looks: Sequence[Look]) -> list[Opinion | Abstention | None]:
    if ask is None or not looks:
        return [None] * len(looks)

    def one(shown: Look) -> Opinion | Abstention:
        with log.about(shown.window):
            try:
                return ask(shown)
            except TradeflowsError as error:
                # the others have spoken already; the analysis names who was missing
                log.logger().error("the LLM analyst failed", error=str(error))
                return abstention(error, LLM)

    with ThreadPoolExecutor(min(LLM_AT_ONCE, len(looks))) as pool:
        asked = [pool.submit(copy_context().run, one, shown) for shown in looks]
        return [future.result() for future in asked]


def conclude(
    store: Store,
    heard: Sequence[Heard],
    panel: Panel,
    *,
    now: datetime,
    flow_run_id: str | None,
    tell: Callable[[signals.Changed], None],
) -> list[Analysed]:
    """Judge the predictions, combine what was said, store it, and tell whose signal changed.

    A prediction that was refused has no say: the analysis calls the model absent and says why.
    """
    judged = model_analyst.judge_predictions({one.seen.symbol: one.prediction for one in heard if one.prediction})
    for warning in judged.warnings:
        log.logger().warning("odd predictions", finding=warning)
    rivals = {one.seen.symbol: prediction for one in heard for _, prediction in one.compared}
    unfit = set(model_analyst.judge_predictions(rivals).refused)
    rows = []
    for one in heard:
        if one.stored is not None:
            rows.append(row(one.stored, reused=True))
            continue
        stored = _combined(store, one, panel, judged, unfit, now, flow_run_id)
        signals.follow(store, stored, tell)
        rows.append(row(stored, reused=False))
    return rows


def _combined(
    store: Store,
    one: Heard,
    panel: Panel,
    judged: Judged,
    unfit: set[str],
    now: datetime,
    flow_run_id: str | None,
) -> Document:
    chosen, symbol = panel.models.champion, one.seen.symbol
    opinions, abstentions = list(one.opinions), list(one.abstentions)
    refused = judged.refused.get(symbol)
    if chosen is not None and refused is not None:
        why = f"the prediction of {chosen.name} version {chosen.version} was refused: {refused}"
        log.logger().error("prediction refused", symbol=symbol, findings=refused)
        opinions = [opinion for opinion in opinions if opinion.analyst != MODEL]
        abstentions.insert(0, Abstention(MODEL, why))
    spoke = next((opinion for opinion in opinions if opinion.analyst == MODEL), None)
    weights = {
        opinion.analyst: panel.weights.get((opinion.analyst, version_of(opinion.provenance)), 1.0)
        for opinion in opinions
    }
    analysis = combine(
        opinions,
        weights,
        threshold=panel.threshold,
        abstentions=[*abstentions, *panel.unconfigured],
        compared=[] if symbol in unfit else [opinion for opinion, _ in one.compared],
    )
    analysis = _expected(analysis, panel.unconfigured)
    if spoke is not None and chosen is not None:
        remarks = (*judged.warnings, *([chosen.degraded] if chosen.degraded else []))
        analysis = replace(analysis, reasons=(*analysis.reasons, *remarks))
    named = {**model_analyst.named(chosen), "estimator": chosen.estimator} if spoke and chosen else None
    before = stored_before(store, symbol, one.seen.timeframe, one.seen.bar_close)
    stored = document(one.seen, analysis, named, before, flow_run_id, now)
    # beside ``absent``, which names those who should have spoken; the reasons of both are among the abstentions
    stored["analysis"]["unconfigured"] = [one.analyst for one in panel.unconfigured]
    put_analysis(store, stored)
    return stored


def _expected(analysis: Analysis, unconfigured: Sequence[Abstention]) -> Analysis:
    """The analysis that misses nobody who was never there. Its basis names who spoke, and is never ``all`` of fewer."""
    names = {one.analyst for one in unconfigured}
    absent = tuple(name for name in analysis.absent if name not in names)
    gone = {f"{name} was not available" for name in names}
    return replace(analysis, absent=absent, reasons=tuple(said for said in analysis.reasons if said not in gone))


@contextmanager
def collected(symbol: str, errors: list[str]) -> Iterator[None]:
    """One symbol's failure does not stop the others; a store that does not answer is nobody's own failure."""
    try:
        yield
    except TradeflowsError as error:
        if error.transient:
            raise
        log.logger().error("not analysed", error=str(error))
        errors.append(f"{symbol}: {error}")


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="hear-analysts", task_run_name="hear-{number}", **prefect_options(STORE))
def hear_task(
    number: int, symbols: list[str], request: AnalysisRequest, panel: Panel, now: datetime
) -> tuple[list[Heard], list[str]]:
    """``hear`` for a batch of symbols. Several run at the same time, in threads of one process."""
    settings = load_settings()
    with configured_store(settings) as store, _llm(settings, store) as ask:
        return hear(store, symbols, request, panel, ask, now=now)


@contextmanager
def _llm(settings: Settings, store: Store) -> Iterator[Ask | None]:
    """How the LLM is asked; None where it is off. One that cannot be asked abstains, and says why."""
    if not settings.llm:
        yield None
        return
    from tasks import llm_analyst, llm_setup

    with ExitStack() as closing:
        try:
            metered = log.flow_run_id() is not None
            llm = closing.enter_context(llm_setup.opened_llm(settings, store.documents, metered=metered))
        except (ConfigurationError, LlmError) as error:
            why = str(error)
            yield lambda _: Abstention(LLM, why)
            return
        yield lambda shown: llm_analyst.opinion(
            llm, shown.candles, shown.window, horizon=shown.seen.horizon, data_mode=shown.seen.data_mode
        )


@task(name="conclude-analyses", **prefect_options(STORE))
def conclude_task(heard: list[Heard], panel: Panel, now: datetime) -> list[Analysed]:
    """``conclude`` on the configured store; changed signals become events."""
    with configured_store(load_settings()) as store:
        return conclude(store, heard, panel, now=now, flow_run_id=log.flow_run_id(), tell=signals.emit_changed)
