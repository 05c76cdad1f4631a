"""What the LLM cost on a UTC day: by model, outcome and symbol, against the budgets; stored, and kept in MLflow.

Calls that nobody settled are booked first, so that the day's sum is final: an hour after its end at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect import task

from tasks import log, mlflow_pages, registry
from tasks.addresses import without_login
from tasks.documents import Document, Documents
from tasks.llm_budget import LOST, Budget, Spent, calls_of, day_of
from tasks.llm_keys import key_states
from tasks.reports import markdown_table
from tasks.retry import STORE, prefect_options
from tasks.settings import Settings, load_settings
from tasks.store import Store, configured_store, put_result
from trading.errors import BadWindow, TradeflowsError

EXPERIMENT: Final = "llm-costs"
KIND: Final = "costs"
NOTHING: Final = "nothing"
SPENT: Final = "spent"
SHOWN_SYMBOLS: Final = 30
_SIDE_BY_SIDE: Final = ("usd", "calls", "useful", "lost", "month_usd")
# MLflow refuses a tag with more
_NOTE: Final = 5000


@dataclass(frozen=True)
class Row:
    """What the calls of one kind took together; ``latency`` is their mean, in seconds."""

    name: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    latency: float | None


@dataclass(frozen=True)
class Costs:
    """A UTC day. ``state`` is nothing (no call at all) or spent.

    Attributes:
        usd: of all its calls, lost ones at their worst case.
        useful: calls that were answered as they should be.
        differs: how far the budget's sum is from that of the calls, USD; 0 unless something was written by hand.
        keys: what is known of each key, by its number; nothing of the key itself.
        data_modes: of the markets that were asked about.
    """

    day: str
    state: str
    calls: int
    useful: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    lost: int
    month_usd: float
    day_left: float
    month_left: float
    differs: float
    by_model: list[Row]
    by_outcome: list[Row]
    by_symbol: list[Row]
    keys: list[str]
    data_modes: list[str]
    link: str | None = None


def roll_up(store: Store, settings: Settings, day: str, now: datetime) -> Costs:
    """Add up a UTC day, such as 2026-11-21, and store the sums.

    Raises:
        BadWindow: a day that has not begun, or is none.
    """
    if day > day_of(now):
        raise BadWindow(f"the day {day} has not begun (it is {now:%Y-%m-%dT%H:%MZ}); give one that has")
    documents = store.documents
    budget = Budget(documents, settings.llm_daily_budget, settings.llm_monthly_budget, clock=lambda: now)
    booked = budget.reconcile()
    if booked:
        log.logger().warning("LLM calls that nobody settled were booked at their worst case", calls=booked)
    found = _costs(documents, settings, day, budget.spent(day), now)
    put_result(store, f"{KIND}|{day}", KIND, asdict(found), now)
    return found


def report(found: Costs) -> str:
    """The day for people to read, in markdown."""
    head = f"# LLM costs of {found.day} (UTC): {found.usd:.4f} USD"
    budgets = (
        f"This month so far: **{found.month_usd:.4f} USD**. Left: {found.day_left:.4f} USD of the day's budget, "
        f"{found.month_left:.4f} of the month's."
    )
    if found.state == NOTHING:
        return "\n\n".join([head, "No call was made on this day.", budgets])
    share = found.useful / found.calls
    text = [
        head,
        f"{found.calls:,} calls, {share:.0%} of them answered as they should be; {found.prompt_tokens:,} prompt and "
        f"{found.completion_tokens:,} completion tokens. Data: **{', '.join(found.data_modes) or 'unknown'}**.",
        budgets,
        *([f"[The same in MLflow]({found.link})"] if found.link else []),
    ]
    if found.lost:
        text.append(
            f"**{found.lost} calls were lost**: their worker ended before it heard the reply. They are booked at the "
            "most that they can have cost."
        )
    if found.differs:
        text.append(f"**The budget's sum differs from that of the calls by {found.differs:.9f} USD.**")
    for title, rows in (("model", found.by_model), ("outcome", found.by_outcome), ("symbol", found.by_symbol)):
        text += [f"## By {title}", markdown_table([_shown(title, row) for row in rows[:SHOWN_SYMBOLS]])]
        if len(rows) > SHOWN_SYMBOLS:
            text.append(f"{len(rows) - SHOWN_SYMBOLS} more cost less each.")
    text += ["## Keys", *(f"- {line}" for line in found.keys)] if found.keys else []
    return "\n\n".join(text)


def keep(settings: Settings, found: Costs, now: datetime) -> str:
    """Write the day as a run of the experiment ``llm-costs``, once per day; its link."""
    from mlflow.entities import Metric, RunTag

    client = registry.connect(settings)
    experiment = registry.experiment_id(client, settings, EXPERIMENT)
    metrics = {
        name: float(getattr(found, name))
        for name in ("calls", "useful", "lost", "prompt_tokens", "completion_tokens", "usd", "month_usd")
    }
    tags = {
        "kind": KIND,
        "day": found.day,
        "data_mode": ", ".join(found.data_modes) or "unknown",
        "mlflow.note.content": report(found)[:_NOTE],
    }
    mlflow_pages.share_view(client, experiment, "days", kind=KIND, metrics=_SIDE_BY_SIDE)
    days = f"[all days side by side]({mlflow_pages.view_link(settings, experiment, 'days')})"
    head = f"{found.day}: {found.usd:.4f} USD for {found.calls:,} calls. A run is a UTC day; {days}."
    client.set_experiment_tag(experiment, "mlflow.note.content", f"{head}\n\n{report(found)}"[:_NOTE])
    at_ms = int(now.timestamp() * 1000)
    [*known] = client.search_runs([experiment], f"tags.day = '{found.day}'", max_results=1)
    if known:
        run_id = str(known[0].info.run_id)
        written = [Metric(name, value, at_ms, 0) for name, value in metrics.items()]
        client.log_batch(run_id, metrics=written, tags=[RunTag(name, value) for name, value in tags.items()])
    else:
        record = registry.Record(f"LLM costs {found.day}", metrics=metrics, tags=tags)
        run_id = registry.log_run(client, experiment, record, at_ms=at_ms)
    return mlflow_pages.run_link(settings, experiment, run_id)


def default_day(moment: datetime) -> str:
    """The UTC day that was over last."""
    return day_of(moment.astimezone(UTC) - timedelta(days=1))


def _costs(documents: Documents, settings: Settings, day: str, spent: Spent, now: datetime) -> Costs:
    calls = calls_of(documents, day)
    nano = sum(call["nano"] for call in calls)
    today = day == day_of(now)
    return Costs(
        day=day,
        state=SPENT if calls else NOTHING,
        calls=len(calls),
        useful=sum(call["outcome"] == "answered" for call in calls),
        prompt_tokens=_sum(calls, "prompt_tokens"),
        completion_tokens=_sum(calls, "completion_tokens"),
        usd=nano / 1e9,
        lost=sum(call["outcome"] == LOST for call in calls),
        month_usd=spent.month,
        day_left=spent.day_left,
        month_left=spent.month_left,
        differs=0.0 if today else round(abs(spent.day - nano / 1e9), 9),
        by_model=_rows(calls, lambda call: str(call["model"])),
        by_outcome=_rows(calls, lambda call: str(call["outcome"])),
        by_symbol=_rows(calls, lambda call: str(call["symbol"] or call["purpose"])),
        keys=_keys(documents, settings, now),
        data_modes=sorted({call["data_mode"] for call in calls if call["data_mode"]}),
    )


def _rows(calls: Sequence[Document], name_of: Callable[[Document], str]) -> list[Row]:
    """One row per name, the dearest first."""
    rows = []
    for name in sorted({name_of(call) for call in calls}):
        mine = [call for call in calls if name_of(call) == name]
        waits = [call["latency"] for call in mine if call["latency"] is not None]
        latency = sum(waits) / len(waits) if waits else None
        usd = sum(call["nano"] for call in mine) / 1e9
        rows.append(Row(name, len(mine), _sum(mine, "prompt_tokens"), _sum(mine, "completion_tokens"), usd, latency))
    return sorted(rows, key=lambda row: (-row.usd, -row.calls, row.name))


def _sum(calls: Sequence[Document], name: str) -> int:
    return sum(call[name] or 0 for call in calls)


def _shown(title: str, row: Row) -> dict[str, Any]:
    return {
        title: row.name,
        "calls": f"{row.calls:,}",
        "prompt tokens": f"{row.prompt_tokens:,}",
        "completion tokens": f"{row.completion_tokens:,}",
        "USD": f"{row.usd:.6f}",
        "mean latency, s": "" if row.latency is None else f"{row.latency:.2f}",
    }


def _keys(documents: Documents, settings: Settings, now: datetime) -> list[str]:
    return [
        f"key {state.number}: "
        + (f"{state.why} until {state.until:%Y-%m-%dT%H:%MZ}" if state.resting(now) and state.until else "in order")
        for state in key_states(documents, settings.llm_keys)
    ]


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="roll-up-costs", **prefect_options(STORE))
def costs_task(day: str, now: datetime) -> Costs:
    """Add the day up, store it, and write it to MLflow where that answers."""
    from dataclasses import replace

    from mlflow.exceptions import MlflowException

    settings = load_settings()
    with configured_store(settings) as store:
        found = roll_up(store, settings, day, now)
    try:
        return replace(found, link=keep(settings, found, now))
    except (MlflowException, TradeflowsError) as error:
        # the store has the sums; the report says that MLflow has not
        log.logger().warning("the costs are not in MLflow", reason=without_login(str(error))[:300])
        return found
