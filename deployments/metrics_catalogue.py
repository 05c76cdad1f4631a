"""Every metric that the endpoint has, by name: what it means, its labels, its kind. ``docs/metrics.md`` is the same.

Names end in their base unit (seconds, bytes, dollars), counters in ``_total``. Counters and histograms count from
midnight UTC on, out of what Prefect and the store hold: a new start of the endpoint loses nothing, and the fall to
zero at midnight is to Prometheus what the restart of any counter is. ``tradeflows_champion_changes_total`` and
``tradeflows_part_restarts_total`` count from the beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One family. ``help`` is one sentence; a counter's name ends in ``_total``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Kind = "gauge"


# of a market: simulated and sample data say so
OF_SERIES: Final = ("symbol", "timeframe", "data_mode")
OF_BARS: Final = ("timeframe", "data_mode")

# --- the endpoint itself -------------------------------------------------------------------------

SOURCE_UP: Final = Metric("tradeflows_source_up", "1: the source answered; 0: its metrics are missing.", ("source",))
SOURCE_READ: Final = Metric(
    "tradeflows_source_read_duration_seconds", "How long the last reading of the source took.", ("source",)
)
SOURCE_AGE: Final = Metric("tradeflows_source_age_seconds", "How old what is told of the source is.", ("source",))
LEFT_OUT: Final = Metric(
    "tradeflows_source_left_out",
    "Series, models, deployments, runs or records that are beyond what is told one by one.",
    ("source",),
)

# --- Prefect -------------------------------------------------------------------------------------

RUNS: Final = Metric(
    "tradeflows_flow_runs_total",
    "Flow runs that ended today (UTC), by deployment (none: without one) and final state.",
    ("deployment", "state"),
    "counter",
)
RUN_DURATION: Final = Metric(
    "tradeflows_flow_run_duration_seconds",
    "Time that the flow runs that ended today were running.",
    ("deployment",),
    "histogram",
)
RUN_LATENESS: Final = Metric(
    "tradeflows_flow_run_lateness_seconds",
    "From when the flow runs that ended today were due until they started.",
    ("deployment",),
    "histogram",
)
RUNS_NOW: Final = Metric(
    "tradeflows_flow_runs",
    "Flow runs that are under way now: late, pending, running or cancelling.",
    ("deployment", "state"),
)
OVERDUE: Final = Metric(
    "tradeflows_flow_run_overdue_seconds",
    "How long the flow run that has waited longest should have been running; 0 where none is late.",
    ("deployment",),
)
RUNNING: Final = Metric(
    "tradeflows_flow_run_running_seconds",
    "How long the flow run that has been running longest has been; 0 where none runs.",
    ("deployment",),
)
SUCCESS_AGE: Final = Metric(
    "tradeflows_flow_run_success_age_seconds", "Since the end of the last completed flow run.", ("deployment",)
)
HEARTBEAT: Final = Metric(
    "tradeflows_worker_heartbeat_age_seconds", "Since Prefect last heard the worker.", ("worker",)
)
CANDLE_RATE: Final = Metric(
    "tradeflows_ingest_candles_per_second",
    "Good candles received per second of run time, over today's last ten ingest runs that received any.",
    ("data_mode",),
)

# --- candles -------------------------------------------------------------------------------------

RECEIVED: Final = Metric(
    "tradeflows_candles_received_total", "Good candles that today's ingests received.", OF_BARS, "counter"
)
ADDED: Final = Metric(
    "tradeflows_candles_added_total", "Candles that today's ingests stored for the first time.", OF_BARS, "counter"
)
CHANGED: Final = Metric(
    "tradeflows_candles_changed_total", "Stored candles that today's ingests found changed.", OF_BARS, "counter"
)
QUARANTINED: Final = Metric(
    "tradeflows_candles_quarantined_total",
    "Rows that today's ingests put aside, by reason; a row with two reasons counts under both.",
    ("reason", *OF_BARS),
    "counter",
)
WINDOWS: Final = Metric(
    "tradeflows_windows_total", "Windows that today's ingests recorded: approved or refused.", ("status", *OF_BARS),
    "counter",
)  # fmt: skip
SERIES_COUNT: Final = Metric("tradeflows_series", "Series in the store.", OF_BARS)
CANDLE_AGE: Final = Metric(
    "tradeflows_candles_age_seconds", "Since the close of the series' newest approved candle.", OF_SERIES
)
BARS_BEHIND: Final = Metric(
    "tradeflows_candles_behind_bars",
    "Whole bars that ended since the newest approved candle; only of markets that never close.",
    OF_SERIES,
)
CIRCUIT: Final = Metric(
    "tradeflows_market_circuit_open", "1: the market source failed too often and is left alone.", ("market",)
)

# --- analyses, LLM, settings ---------------------------------------------------------------------

SIGNALS: Final = Metric(
    "tradeflows_signals",
    "Series by what their newest analysis says: combined, and by analyst.",
    ("analyst", "signal", *OF_BARS),
)
ABSENT: Final = Metric(
    "tradeflows_analysts_absent", "Series whose newest analysis the analyst should have spoken in, and did not.",
    ("analyst", *OF_BARS),
)  # fmt: skip
ANALYSIS_AGE: Final = Metric("tradeflows_analysis_age_seconds", "Since the newest analysis was made.", OF_SERIES)
LLM_CALLS: Final = Metric(
    "tradeflows_llm_calls_total", "Today's calls of the LLM.", ("model", "outcome", "data_mode"), "counter"
)
LLM_TOKENS: Final = Metric(
    "tradeflows_llm_tokens_total", "Tokens of today's calls: prompt or completion.", ("model", "kind", "data_mode"),
    "counter",
)  # fmt: skip
LLM_COST: Final = Metric(
    "tradeflows_llm_cost_dollars_total", "US dollars that today's calls cost.", ("model", "data_mode"), "counter"
)
LLM_SPENT: Final = Metric("tradeflows_llm_spent_dollars", "US dollars spent this UTC day or month.", ("period",))
LLM_RESERVED: Final = Metric("tradeflows_llm_reserved_dollars", "The most that calls under way can cost.")
LLM_LEFT: Final = Metric(
    "tradeflows_llm_budget_left_dollars", "What is left of the day's or month's budget.", ("period",)
)
SETTINGS_AGE: Final = Metric(
    "tradeflows_engine_settings_age_seconds", "Since the engine last told its strategy settings."
)
SETTINGS_FAILURES: Final = Metric(
    "tradeflows_engine_settings_failures", "Readings of the engine's settings that failed since the last good one."
)

# --- models --------------------------------------------------------------------------------------

CHAMPION: Final = Metric(
    "tradeflows_champion_version", "Version that the promotion history says is champion.", ("model",)
)
CHAMPION_SINCE: Final = Metric("tradeflows_champion_reign_seconds", "Since that version was made champion.", ("model",))
CHAMPION_CHANGES: Final = Metric(
    "tradeflows_champion_changes_total", "Promotions, rollbacks and fallbacks ever.", ("model", "kind"), "counter"
)
ALIAS: Final = Metric(
    "tradeflows_registry_champion_version", "Version that the registry's alias champion names.", ("model",)
)
MODEL_AGE: Final = Metric(
    "tradeflows_champion_age_seconds", "Since the champion was trained and registered.", ("model", "data_mode")
)
MODEL_DATA_AGE: Final = Metric(
    "tradeflows_champion_data_age_seconds", "Since the end of the champion's training candles.", ("model", "data_mode")
)

# --- the local stack -----------------------------------------------------------------------------

STACK: Final = Metric("tradeflows_stack_info", "1 for the stack of this home.", ("sandbox", "warm"))
PART_UP: Final = Metric(
    "tradeflows_part_up", "1: the part of the local stack is as it should be; stack is its supervisor.", ("part",)
)
PART_RESTARTS: Final = Metric(
    "tradeflows_part_restarts_total", "New starts of the part since the stack was started.", ("part",), "counter"
)
FILE_SIZE: Final = Metric("tradeflows_database_bytes", "Size of the database's file, its log included.", ("database",))
FREE: Final = Metric("tradeflows_home_free_bytes", "Free space where the home folder is.")

CATALOGUE: Final = (
    SOURCE_UP, SOURCE_READ, SOURCE_AGE, LEFT_OUT,
    RUNS, RUN_DURATION, RUN_LATENESS, RUNS_NOW, OVERDUE, RUNNING, SUCCESS_AGE, HEARTBEAT, CANDLE_RATE,
    RECEIVED, ADDED, CHANGED, QUARANTINED, WINDOWS, SERIES_COUNT, CANDLE_AGE, BARS_BEHIND, CIRCUIT,
    SIGNALS, ABSENT, ANALYSIS_AGE,
    LLM_CALLS, LLM_TOKENS, LLM_COST, LLM_SPENT, LLM_RESERVED, LLM_LEFT, SETTINGS_AGE, SETTINGS_FAILURES,
    CHAMPION, CHAMPION_SINCE, CHAMPION_CHANGES, ALIAS, MODEL_AGE, MODEL_DATA_AGE,
    STACK, PART_UP, PART_RESTARTS, FILE_SIZE, FREE,
)  # fmt: skip


def table() -> str:
    """The catalogue in markdown, as it stands in docs/metrics.md."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for one in CATALOGUE:
        labels = ", ".join(f"`{name}`" for name in one.labels)
        rows.append(f"| `{one.name}` | {one.kind} | {labels} | {one.help} |")
    return "\n".join(rows)
