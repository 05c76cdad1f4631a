"""Analyse: model, rules and an LLM give each symbol a signal, stored, told and reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, TypeVar, cast

from prefect import flow
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import Field

from flows.ingest import bring_up_to_date
from flows.parameters import Bar, Days, End, Horizon, Refresh, Start, Symbols, form
from flows.rule_names import RuleNames, RuleParameters
from tasks import reports, signals
from tasks.analysing import Heard, conclude_task, hear_task
from tasks.analysis_documents import Analysed
from tasks.llm_notices import tell_of_llm_task
from tasks.panels import AnalysisRequest, Panel, panel_task
from tasks.periods import run_moment, span
from tasks.progress import report
from tasks.settings import load_settings
from tasks.technical_analyst import USUAL, Selected, selection
from trading.errors import DataError, TradeflowsError
from trading.window import Timeframe

# batches at the same time
AT_ONCE = 3
# symbols whose reasons the report spells out
SPELLED_OUT = 20
T = TypeVar("T")
DEGRADED, PARTLY, FAILED = "Degraded", "Partly", "Failed"

SettledAfter = Annotated[
    Horizon, form("Horizon", "Bars after which an analysis is settled, where no model says another number.", 12)
]
Threshold = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None,
    form(
        "Threshold",
        "A combined score nearer to zero than this is Neutral. Empty: as the engine's settings say, or 0.2.",
        0.2,
    ),
]
ReuseMinutes = Annotated[
    Annotated[int, Field(ge=0, le=10_080)] | None,
    form(
        "Reuse, minutes",
        "An analysis with the same inputs that is younger than this is not made again. Empty: as the engine's "
        "settings say, or 15.",
        15,
    ),
]
BatchSize = Annotated[
    int,
    Field(ge=1, le=1_000),
    form("Batch size", "Symbols in one task; three tasks are at work at the same time.", 25),
]


@dataclass
class Outcome:
    """What became of a run: rows, errors of symbols that were not analysed, and remarks on the whole.

    ``broke`` is what ended it before anything came of it, such as a store that was down for longer than was waited;
    ``unconfigured``: analysts that are not there to begin with, so that nobody misses them, and why.
    """

    rows: list[Analysed] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unconfigured: dict[str, str] = field(default_factory=dict)
    broke: TradeflowsError | None = None

    @property
    def absent(self) -> dict[str, str]:
        """Who should have spoken and did not, or not as it should, with the first reason."""
        found: dict[str, str] = {}
        for row in self.rows:
            for name, why in [*row.absent.items(), *([("champion", row.degraded)] if row.degraded else [])]:
                found.setdefault(name, why)
        return found

    @property
    def state(self) -> str | None:
        """None: all is well. Degraded: somebody was missing. Partly: some symbols were. Failed: all were."""
        if self.errors or self.broke is not None:
            return PARTLY if self.rows else FAILED
        return DEGRADED if self.absent or self.remarks else None

    @property
    def failures(self) -> list[str]:
        """What went wrong, but for analysts that were missing."""
        return [*([str(self.broke)] if self.broke is not None else []), *self.errors, *self.remarks]

    @property
    def message(self) -> str:
        """What a person should know of it, in the order of how bad it is."""
        count = len(self.rows) + len(self.errors)
        lacking = [f"{name}: {why}" for name, why in self.absent.items()]
        failed = [f"{len(self.errors)} of {count} symbols were not analysed"] if self.errors else []
        without = [f"without the {name}: {why}" for name, why in self.unconfigured.items()]
        return "; ".join([*failed, *self.failures, *lacking, *without])


@flow(
    name="analyse",
    flow_run_name="analyse-{timeframe}",
    retries=0,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE),  # type: ignore[arg-type]
)
def analyse(
    symbols: Symbols,
    timeframe: Bar = Timeframe.H1,
    days: Days = 730,
    start: Start = None,
    end: End = None,
    refresh: Refresh = None,
    strategies: RuleNames = None,
    strategy_parameters: RuleParameters = {},  # noqa: B006 - Prefect's form shows it; nobody changes it
    horizon: SettledAfter = 12,
    threshold: Threshold = None,
    reuse_minutes: ReuseMinutes = None,
    batch_size: BatchSize = 25,
) -> list[Analysed]:
    """Analyse the last finished bar of each symbol.

    The model is the champion trained on exactly these symbols, else that of the fewest symbols which was trained
    on all of them; where there is none, the rules speak alone and the analysis says so. Analysts count by what
    they earned so far (the settle flow).

    The run ends Completed when every symbol was analysed by everybody who should speak: a model of which no version
    was ever champion need not, and the run's message names it. It ends in the state Degraded when somebody was
    missing, such as a champion that was refused or is gone, or the candles could not be refreshed; in the state
    Partly when some symbols could not be analysed; Failed when none could. All but the first emit the event
    tradeflows.analysis.degraded; a signal that is another than before emits tradeflows.signal.changed.
    """
    moment = run_moment()
    first, last = span(timeframe, start, end, days, moment)
    outcome = Outcome()
    if refresh is not None:
        try:
            bring_up_to_date(symbols, timeframe, refresh, first, last, moment)
        except TradeflowsError as error:
            # symbols whose last bar is stored can be analysed all the same; the others say what they lack
            outcome.remarks.append(f"the candles were not all refreshed: {error}")
    request = AnalysisRequest(
        timeframe,
        first,
        last,
        _selected(strategies, strategy_parameters),
        horizon=horizon,
        threshold=threshold,
        ttl=timedelta(minutes=reuse_minutes) if reuse_minutes is not None else None,
    )
    panel = None
    try:
        panel = panel_task(symbols, request, moment)
        outcome.unconfigured = {one.analyst: one.reason for one in panel.unconfigured}
        heard = _hear(symbols, request, panel, batch_size, moment, outcome)
        if heard:
            outcome.rows = conclude_task(_whole(heard), _whole(panel), moment)
    except TradeflowsError as error:
        # the retries are used up; what was stored until then stays, and the next run makes the rest
        outcome.broke = error
    _tell_of_llm(moment, outcome)
    return _ended(timeframe, outcome, panel, moment)


def _tell_of_llm(moment: datetime, outcome: Outcome) -> None:
    if not load_settings().llm or outcome.broke is not None:
        return
    try:
        tell_of_llm_task(moment)
    except TradeflowsError as error:
        # the analyses are stored and stand
        outcome.remarks.append(f"news of the LLM could not be told: {error}")


def _selected(strategies: RuleNames, parameters: RuleParameters) -> tuple[Selected, ...] | None:
    if strategies is None and not parameters:
        return None
    return selection(USUAL if strategies is None else strategies, parameters)


def _hear(
    symbols: list[str], request: AnalysisRequest, panel: Panel, batch_size: int, moment: datetime, outcome: Outcome
) -> list[Heard]:
    """Every batch, some at the same time; what was said, in the order of the symbols."""
    batches = [symbols[at : at + batch_size] for at in range(0, len(symbols), batch_size)]
    futures = [hear_task.submit(number, batch, request, _whole(panel), moment) for number, batch in enumerate(batches)]
    heard: list[Heard] = []
    broke: TradeflowsError | None = None
    for done, (batch, future) in enumerate(zip(batches, futures, strict=True)):
        report("analyse", done, len(futures))
        try:
            good, bad = future.result()
        except TradeflowsError as error:
            # the retries are used up; other batches may have got through
            good, bad, broke = [], [f"{symbol}: {error}" for symbol in batch], error
        heard += good
        outcome.errors += bad
    report("analyse", len(futures), len(futures))
    if broke is not None and not heard:
        raise broke
    return heard


def _whole(value: T) -> T:
    """A task's argument as it is: Prefect would walk through models and opinions to look for futures in them."""
    return cast(T, quote(value))


def _ended(timeframe: Timeframe, outcome: Outcome, panel: Panel | None, moment: datetime) -> list[Analysed]:
    """Report, tell and name what became of the run."""
    _publish(timeframe, outcome, panel)
    if outcome.state is None:
        return _named("Completed", outcome) if outcome.message else outcome.rows
    lacking = [row.symbol for row in outcome.rows if row.absent or row.degraded]
    signals.emit_degraded(timeframe.value, outcome.absent, lacking, outcome.failures, outcome.state, moment)
    if outcome.broke is not None:
        raise outcome.broke
    if outcome.state == FAILED:
        raise DataError(outcome.message)
    return _named(outcome.state, outcome)


def _named(name: str, outcome: Outcome) -> list[Analysed]:
    """The rows in a state with a name and a message: Prefect hands the data to the caller, and shows the rest."""
    named: list[Analysed] = Completed(  # type: ignore[assignment]
        name=name, message=outcome.message[:1000], data=outcome.rows
    )
    return named


def _publish(timeframe: Timeframe, outcome: Outcome, panel: Panel | None) -> None:
    rows = outcome.rows
    analysts = list(dict.fromkeys(name for row in rows for name in row.said))
    table = [
        {
            # the pages cut off what a window is too narrow for: last what matters least
            "symbol": row.symbol,
            "data": row.data_mode,
            "signal": f"{row.signal if row.signal == 'Neutral' else f'**{row.signal}**'} {row.confidence:.2f}",
            **{name: row.said.get(name, "-") for name in analysts},
            "price": f"{row.price:g}",
            "bar closed": row.timestamp[:16].replace("T", " "),
            "basis": row.basis,
            "made": "before" if row.reused else "now",
            "version": row.model_version or "none",
        }
        for row in rows
    ]
    text = [f"# Analysis {timeframe.value}: {outcome.state or 'all good'}", reports.markdown_table(table)]
    text += ["Times are UTC."] if rows else []
    text += _who_spoke(panel) if panel is not None else []
    text += reports.section("Not there yet", [f"{name}: {why}" for name, why in outcome.unconfigured.items()])
    text += reports.section("Broke off", [str(outcome.broke)] if outcome.broke is not None else [])
    text += reports.section("Not analysed", outcome.errors)
    text += reports.section("Degraded", [*outcome.remarks, *(f"{name}: {why}" for name, why in outcome.absent.items())])
    if len(rows) <= SPELLED_OUT:
        for row in rows:
            text += reports.section(f"{row.symbol}: {row.signal}", row.reasons)
    if rows:
        text.append(
            "From a signal back to its model and its candles, with every digest: "
            f"`tradeflows trace {rows[0].symbol}/{timeframe.value}/{rows[0].timestamp}`, and so for each symbol."
        )
    said = ", ".join(f"{row.symbol} {row.signal}" for row in rows) or "none"
    reports.markdown(f"analyse-{timeframe.value}", "\n\n".join(text), said[:200])
    if rows:
        # for programs: docs/triggering.md says how they read it
        reports.table(f"signals-{timeframe.value}", [*map(_told, rows)], said[:200])


def _who_spoke(panel: Panel) -> list[str]:
    links = [
        f"[{one.name} version {one.version}]({one.link})"
        for one in (panel.models.champion, panel.models.challenger)
        if one is not None
    ]
    text = []
    if links:
        text.append(f"Models: {', '.join(links)}. A challenger is written down to be scored, and counts nothing.")
    if panel.settings_version:
        text.append(
            f"Strategies: {', '.join(one.rule for one in panel.strategies)}; settings {panel.settings_version}."
        )
    return [*text, *reports.section("Disabled", panel.disabled)]


def _told(row: Analysed) -> dict[str, object]:
    """What a program is told of a signal; the rest stands in the stored analysis."""
    names = ("symbol", "timestamp", "signal", "confidence", "price", "basis", "model_version", "degraded", "data_mode")
    return {name: getattr(row, name) for name in names}
