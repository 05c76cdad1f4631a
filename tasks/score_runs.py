"""The record of every analyst where people look at it: an MLflow run per record, with a run per analyst in it."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task

from tasks import log, mlflow_pages, registry, reports
from tasks.retry import REGISTRY, prefect_options
from tasks.scoreboards import Scoreboard, put_scoreboard, scoreboard, scoreboard_at
from tasks.settings import Settings, load_settings
from tasks.settling import COMBINED, COMPARED, PART, Settled, SettleRequest
from tasks.store import Store, configured_store
from trading.scoring import Score

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VIEW = "analysts"
_SHOWN = ("profit", "profit_error", "hit_rate", "brier", "weight", "signals", "usd_per_useful")
# MLflow refuses a tag with more
_NOTE = 5000


@dataclass(frozen=True)
class Scored:
    """A record as people see it: rows of all analysts, and of each by symbol; where it lies in MLflow."""

    until: str
    rows: list[dict[str, str]]
    by_symbol: list[dict[str, str]]
    settled: int
    hindsight: int
    data_modes: list[str]
    link: str
    picture: str | None
    reused: bool


def score_analysts(
    store: Store, settings: Settings, client: MlflowClient, request: SettleRequest, remarks: Sequence[str], *,
    now: datetime, flow_run_id: str | None,
) -> Scored:  # fmt: skip
    """Bring everybody's record up to date, store it, and write it to MLflow where it says anything new.

    Args:
        remarks: what could not be settled, for the report.
    """
    board = scoreboard(store, request)
    before = scoreboard_at(store, request.timeframe, request.end)
    experiment = registry.experiment_id(client, settings, f"settle {request.timeframe.value}")
    known = before is not None and before["digest"] == board.digest and registry.run_exists(client, before["run_id"])
    picture = None
    if not board.figures:
        return _scored(board, "", None, reused=False)
    if before is not None and known:
        run_id = str(before["run_id"])
    else:
        folder = settings.home / "reports" / "settle" / request.timeframe.value
        folder.mkdir(parents=True, exist_ok=True)
        picture = _draw(board, folder / f"analysts-{board.until:%Y%m%dT%H%M}.png")
        run_id = _log(client, experiment, board, picture, remarks, request, now, flow_run_id)
        _describe(settings, client, experiment, board, run_id)
    put_scoreboard(store, board, run_id, now)
    return _scored(board, mlflow_pages.run_link(settings, experiment, run_id), picture, reused=known)


def table(board: Scoreboard) -> list[dict[str, str]]:
    """A row for each analyst and version, those that count first."""
    order = {COMBINED: 0, "analyst": 1, COMPARED: 2, PART: 3}
    ranked = sorted(board.figures, key=lambda who: (order[who[2]], who[0], who[1]))
    return [_row(who, "", board.figures[who], board.weights[who]) for who in ranked]


def _log(
    client: MlflowClient, experiment: str, board: Scoreboard, picture: Path, remarks: Sequence[str],
    request: SettleRequest, now: datetime, flow_run_id: str | None,
) -> str:  # fmt: skip
    at_ms = int(now.timestamp() * 1000)
    until = f"{board.until:%Y-%m-%d %H:%M}"
    tags = {
        "kind": "settlements", "data_mode": ", ".join(board.modes), "digest": board.digest, "until": until,
        "prefect_flow_run": flow_run_id or "",
    }  # fmt: skip
    # of those who are heard; the parts of an analyst have runs of their own below, with all figures
    metrics = {
        f"{name}.{figure}": value
        for (name, version, role), one in board.figures.items()
        if board.newest[name] == version and role != PART
        for figure, value in one.metrics().items()
        if figure in _SHOWN
    }
    said = "\n\n".join(text(board, remarks))
    with tempfile.TemporaryDirectory(prefix="tradeflows-settle-") as temporary:
        report, sheet = Path(temporary) / "report.md", Path(temporary) / "scores.csv"
        report.write_text(said)
        _write_sheet(board, sheet)
        record = registry.Record(
            # the day first: the pages cut long names
            name=f"{until} analysts",
            params={
                "timeframe": request.timeframe.value, "score_days": request.score_days, "fee_rate": request.fee_rate,
                "slippage_rate": request.slippage_rate, "hindsight": request.hindsight,
            },
            metrics={"settled": board.settled, "made_late": board.hindsight, "typical_move": board.scale, **metrics},
            tags={**tags, "mlflow.note.content": said[:_NOTE]},
            files=[report, sheet, picture],
        )  # fmt: skip
        run_id = registry.log_run(client, experiment, record, at_ms=at_ms)
    for (name, version, role), one in board.figures.items():
        child = registry.Record(
            name=f"{name} {version}".strip(),
            params={"analyst": name, "version": version or "-", "role": role},
            metrics={**one.metrics(), "weight": board.weights[name, version, role]},
            tags={**tags, "kind": "analyst", "analyst": name},
        )
        registry.log_run(client, experiment, child, at_ms=at_ms, parent=run_id)
    return run_id


def _describe(settings: Settings, client: MlflowClient, experiment: str, board: Scoreboard, run_id: str) -> None:
    """What the experiment's page says above its runs: the newest record, and where the tables are."""
    mlflow_pages.share_view(client, experiment, _VIEW, kind="analyst", metrics=_SHOWN)
    links = (
        f"[The newest run]({mlflow_pages.run_link(settings, experiment, run_id)}), "
        f"[its report]({mlflow_pages.run_link(settings, experiment, run_id, 'report.md')}), "
        f"[all analysts of all records]({mlflow_pages.view_link(settings, experiment, _VIEW)}). A run is a record of "
        "everybody at one time; each analyst and version is a run below it."
    )
    client.set_experiment_tag(experiment, "mlflow.note.content", "\n\n".join([links, *text(board, [])])[:_NOTE])


def text(board: Scoreboard, remarks: Sequence[str]) -> list[str]:
    """The report: what the figures say, who is behind them, and what is still open."""
    late = f" {board.hindsight} of them were made late: they are shown, and count for no weight." * bool(
        board.hindsight
    )
    return [
        f"# Analysts, {board.timeframe.value}, until {board.until:%Y-%m-%d %H:%M} UTC",
        f"Data: **{', '.join(board.modes) or 'none'}**. {board.settled} settled analyses.{late}",
        reports.markdown_table(_narrow(board)),
        "Profit is the mean of a signal after costs, a share of what was staked, filled at the next open; ± is one "
        "standard error, over spans of two horizons. Brier and calibration compare confidence with what came true. "
        "A weight of 1 is what nobody's record has moved; 0 is that of who surely loses. Challengers and the parts of "
        "an analyst are scored by the same rule as everybody, the LLM included. All figures are in scores.csv.",
        *reports.section("Not settled yet", remarks),
    ]


def _narrow(board: Scoreboard) -> list[dict[str, str]]:
    """``table`` for pages that leave it half of their width."""
    return [
        {
            "analyst": " ".join([row["analyst"], *([row["version"]] if row["version"] != "-" else [])])
            + {COMPARED: " (compared)", PART: " (part)"}.get(row["role"], ""),
            "signals": f"{row['signals']} of {row['settled']}",
            **{name: row[name] for name in ("hit rate", "profit", "Brier", "weight")},
        }
        for row in table(board)
    ]


def _row(who: tuple[str, str, str], symbol: str, one: Score, weight: float) -> dict[str, str]:
    name, version, role = who
    return {
        "analyst": name,
        "version": version or "-",
        "role": role,
        **({"symbol": symbol} if symbol else {}),
        "settled": str(one.count),
        "signals": str(one.signals),
        "hit rate": _with_error(one.hit_rate, one.hit_error, ".1%"),
        "profit": _with_error(one.profit, one.profit_error, "+.3%"),
        "Brier": _shown(one.brier, ".3f"),
        "calibration": _shown(one.calibration_error, ".3f"),
        "Neutral right": _shown(one.neutral_right, ".0%"),
        "USD per useful": _shown(one.usd_per_useful if one.usd else None, ".4f"),
        "weight": f"{weight:.2f}",
    }


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _with_error(value: float | None, error: float | None, form: str) -> str:
    return _shown(value, form) + ("" if value is None or error is None else f" ± {format(error, form.lstrip('+'))}")


def _write_sheet(board: Scoreboard, path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {name: value for name, value in row.items() if name != "buckets"} for row in board.document()["scores"]
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _draw(board: Scoreboard, path: Path) -> Path:
    from ml.analyst_chart import analyst_chart

    newest = {
        name: one
        for (name, version, _), one in board.figures.items()
        if board.newest[name] == version and one.profit is not None
    }
    return analyst_chart(newest, f"Analysts until {board.until:%Y-%m-%d}", path, ", ".join(board.modes))


def _scored(board: Scoreboard, link: str, picture: Path | None, *, reused: bool) -> Scored:
    return Scored(
        until=board.until.isoformat(),
        rows=table(board),
        by_symbol=[_row(who, symbol, one, one.weight) for (who, symbol), one in board.by_symbol.items()],
        settled=board.settled,
        hindsight=board.hindsight,
        data_modes=list(board.modes),
        link=link,
        picture=str(picture) if picture is not None else None,
        reused=reused,
    )


# --- Prefect tasks -------------------------------------------------------------------------------


@task(name="score-analysts", **prefect_options(REGISTRY))
def score_task(request: SettleRequest, settled: Settled, now: datetime) -> Scored:
    """``score_analysts`` on the configured store and MLflow."""
    settings = load_settings()
    with configured_store(settings) as store:
        client = registry.connect(settings)
        remarks = [*settled.errors, *settled.waiting]
        return score_analysts(store, settings, client, request, remarks, now=now, flow_run_id=log.flow_run_id())
