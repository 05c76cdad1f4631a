"""What the command prints: tables at the end, a bar on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tasks import progress
from tasks.settings import Settings
from trading.errors import InvalidRequest

FORMATS: Final = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M:%SZ"]
MODE_STYLES: Final = {"live": "green", "sample": "yellow", "simulated": "magenta"}
SIGNAL_STYLES: Final = {"Long": "bold green", "Short": "bold red", "Neutral": "dim"}
T = TypeVar("T")


def watched(work: Callable[[], T]) -> T:
    """Run ``work`` under a bar per step (on standard error, so that output can be piped).

    Raises:
        InvalidRequest: a parameter that the flow does not take.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        first = bars.add_task("starting Prefect", total=None)
        known: dict[str, Any] = {}

        def watch(step: str, done: int, total: int) -> None:
            if step not in known:
                bars.update(first, visible=False)
                known[step] = bars.add_task(step, total=max(total, 1))
            bars.update(known[step], completed=done if total else 1, total=max(total, 1))

        from prefect.exceptions import ParameterTypeError

        try:
            with progress.watched(watch):
                return work()
        except ParameterTypeError as error:
            # "Flow run received invalid parameters:\n - fee_rate: Input should be less than 1"
            raise InvalidRequest("; ".join(line.strip(" -") for line in str(error).splitlines()[1:])) from error


# baselines that always say the same: a log loss of theirs says nothing
ONE_SIDED: Final = ("neutral", "hold")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A table with the named columns aligned to the right, narrow enough for 80 columns of text."""
    made = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", expand=False, box=box.SIMPLE_HEAD,
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def mode(data_mode: str) -> str:
    """The data mode in its colour."""
    return f"[{MODE_STYLES.get(data_mode, 'red')}]{data_mode}[/]"


def ingested(console: Console, results: Sequence[Any]) -> None:
    """What ingest runs added and put aside."""
    numbers = ("stored", "added", "changed", "gaps")
    rows = [
        [
            str(row["symbol"]),
            str(row["timeframe"]),
            mode(str(row["data"])),
            *(f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in numbers),
            str(row["quarantined"]),
        ]
        for result in results
        for row in result.rows
    ]
    columns = ("symbol", "bar", "data", *numbers, "quarantined")
    console.print(table("Candles", columns, rows, right=numbers))
    added, changed = sum(r.added for r in results), sum(r.changed for r in results)
    if not added and not changed:
        console.print("Nothing new: no candle was added to the store, none was changed.\n")
    else:
        console.print(f"{added:,} candles added, {changed:,} changed.\n")
    for line in [line for result in results for line in result.corrections]:
        console.print(f"  late correction: {line}", style="yellow", soft_wrap=True, highlight=False)


def trained(console: Console, results: Sequence[Any]) -> None:
    """Scores against the baseline, and what became of the version."""
    columns = ("estimator", "log loss", "skill", "hit rate", "return", "Sharpe", "drawdown", "trades")
    for result in results:
        rows = [
            [
                f"[bold]{row['estimator']}[/]" if row["estimator"] == result.winner else row["estimator"],
                "-" if row["estimator"] in ONE_SIDED else f"{row['log_loss']:.4f}",
                "-" if row["estimator"] in ONE_SIDED else f"{row['skill']:+.2%}",
                _number(row.get("hit_rate"), ".1%"),
                _number(row.get("total_return"), "+.1%"),
                _number(row.get("sharpe"), ".2f"),
                _number(row.get("max_drawdown"), ".1%"),
                _number(row.get("trades"), ",.0f"),
            ]
            for row in result.scores
        ]
        title = f"Walk-forward of {result.model}, out of sample, {mode(result.data_mode)} data"
        console.print(table(title, columns, rows, right=columns[1:]))
        console.print(_folds(result))
        console.print(
            f"Registered [bold]{result.model} version {result.version}[/] ({result.winner})"
            f"{', as an equal training made it before' if result.reused else ''}; "
            + (
                "[green]champion[/]"
                if result.champion == result.version
                else f"champion is {result.champion or 'none'}"
            )
            + "."
        )
        for reason in result.decision:
            console.print(f"  gate: {reason}", style="dim", soft_wrap=True, highlight=False)
        for reason in result.luck:
            console.print(f"  luck: {reason}", style="dim", soft_wrap=True, highlight=False)
        console.print()


def _folds(result: Any) -> Table:
    by_fold: dict[int, dict[str, float]] = {}
    for row in result.folds:
        by_fold.setdefault(row["fold"], {})[row["estimator"]] = row["log_loss"]
    names = [row["estimator"] for row in result.scores if row["estimator"] not in ONE_SIDED]
    rows = [[str(fold), *(f"{losses[name]:.4f}" for name in names)] for fold, losses in sorted(by_fold.items())]
    return table("Log loss by fold", ("fold", *names), rows, right=names)


def analysed(console: Console, rows: Sequence[Any]) -> None:
    """Today's signals."""
    body = [
        [
            row.symbol,
            f"[{SIGNAL_STYLES[row.signal]}]{row.signal}[/]",
            f"{row.confidence:.2f}",
            f"{row.price:,.2f}",
            row.timestamp[5:16].replace("T", " "),
            mode(row.data_mode),
            row.model_version or "no champion",
        ]
        for row in rows
    ]
    columns = ("symbol", "signal", "sure", "close", "bar closed", "data", "model")
    day = f"{rows[0].timestamp[:10]} (UTC)" if rows else "none"
    console.print(table(f"Signals, {day}", columns, body, right=("sure", "close")))
    console.print()


def cycled(console: Console, done: Sequence[Any], settings: Settings) -> None:
    """All of the main job, in its order."""
    from deployments import show_backtest

    ingested(console, [group.ingested for group in done])
    trained(console, [group.trained for group in done])
    analysed(console, [row for group in done for row in group.analysed])
    for group in done:
        show_backtest.leaderboard(console, group.backtested)
    where(console, [path for group in done for path in group.backtested.pictures], settings)


def where(console: Console, pictures: Sequence[str], settings: Settings) -> None:
    """Where to look next: the pictures, and both pages."""
    home = settings.home
    console.print("[bold]Where to look next[/]")
    for path in pictures:
        console.print(f"  picture   {path}", highlight=False, soft_wrap=True)
    uri = settings.mlflow_tracking_uri or f"sqlite:///{home}/mlflow/mlflow.db"
    console.print(
        f"  Prefect   PREFECT_HOME={home}/prefect .venv/bin/prefect server start"
        "    (runs and reports: http://127.0.0.1:4200)",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"  MLflow    .venv/bin/mlflow ui --backend-store-uri {uri}    (models: http://127.0.0.1:5000)",
        highlight=False,
        soft_wrap=True,
    )


def series(console: Console, found: Sequence[Any], settings: Settings, now: datetime) -> None:
    """Each stored series: how far it reaches, what it lacks, how fresh it is."""
    rows = [
        [
            one.symbol,
            one.timeframe,
            mode(one.data_mode),
            f"{one.first:%Y-%m-%d}" if one.first else "-",
            _lately(one.last, now) if one.last else "-",
            f"{one.rows:,}",
            f"{one.gaps:,}",
            _freshness(one.bars_behind(now)),
            f"{one.quarantined:,}" + (f" + {one.refused} refused" if one.refused else ""),
        ]
        for one in found
    ]
    columns = ("symbol", "bar", "data", "first", "last (UTC)", "rows", "gaps", "behind", "held")
    where_stored = "MongoDB" if settings.mongodb_url else str(settings.home)
    console.print(table(f"Candles in {where_stored}", columns, rows, right=columns[5:]))


def _lately(moment: datetime, now: datetime) -> str:
    """A time of this year, or the date of an older one: what fits beside eight other columns."""
    return f"{moment:%m-%d %H:%M}" if now - moment < timedelta(days=300) else f"{moment:%Y-%m-%d}"


def _freshness(bars: int | None) -> str:
    if bars is None:
        return "[red]never[/]"
    return "[green]0[/]" if bars == 0 else f"{bars:,}"


def circuits(console: Console, found: Sequence[Any]) -> None:
    """The sources that failed, and whether they are asked."""
    styles = {"closed": "green", "half_open": "yellow", "open": "red"}
    rows = [
        [
            one.source,
            f"[{styles[one.state]}]{one.state.replace('_', '-')}[/]",
            str(one.failures),
            f"{one.until:%H:%M:%S}" if one.until else "-",
            one.reason[:60],
        ]
        for one in found
    ]
    if rows:
        console.print(table("Sources", ("source", "circuit", "failures", "until", "last failure"), rows))


def aside(console: Console, title: str, rows: Sequence[Any]) -> None:
    """Rows in quarantine."""
    numbers = ("open", "high", "low", "close", "volume")
    body = [
        [
            row["_id"][:12],
            f"{row['open_time']:%Y-%m-%d %H:%M}",
            ", ".join(row["reasons"]),
            *(_plain(row[name]) for name in numbers),
        ]
        for row in rows
    ]
    console.print(table(title, ("id", "bar (UTC)", "reasons", *numbers), body, right=numbers))


def aside_row(console: Console, row: Any, candles: Any) -> None:
    """One row in quarantine, and its neighbours in the store."""
    for name, value in row.items():
        if name != "rev":
            shown = ", ".join(value) if isinstance(value, list) else value
            console.print(f"[dim]{name.lstrip('_'):>12}[/]  {shown}", highlight=False, soft_wrap=True)
    numbers = ("open", "high", "low", "close", "volume")
    body = [
        [f"{opened:%Y-%m-%d %H:%M}", *(_plain(value) for value in values)]
        for opened, values in zip(candles.index, candles[list(numbers)].to_numpy(), strict=True)
    ]
    console.print(table("Stored around it", ("bar (UTC)", *numbers), body, right=numbers))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def status(console: Console, settings: Settings, now: datetime) -> None:
    """Series, champions and latest signals under a home folder."""
    from tasks import ledger, registry
    from tasks.store import configured_store, latest_analyses

    with configured_store(settings) as store:
        rows = ledger.summary(store)
        latest = latest_analyses(store)
    series(console, rows, settings, now)
    if not rows:
        console.print("No candles yet: start with `tradeflows ingest BTCUSDT` or `tradeflows demo`.")
        return
    signals = [
        [
            document["symbol"],
            document["timeframe"],
            document["analysis"]["signal"],
            f"{document['analysis']['confidence']:.2f}",
            f"{document['timestamp']:%Y-%m-%d %H:%M}",
        ]
        for document in latest
    ]
    console.print(table("Latest signals", ("symbol", "bar", "signal", "confidence", "bar closed (UTC)"), signals))
    if settings.mlflow_tracking_uri or (settings.home / "mlflow" / "mlflow.db").exists():
        client = registry.connect(settings)
        models = [
            [model.name, ", ".join(f"{alias} v{version}" for alias, version in sorted(model.aliases.items())) or "-"]
            for model in client.search_registered_models()
        ]
        console.print(table("Models", ("name", "aliases"), models))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
