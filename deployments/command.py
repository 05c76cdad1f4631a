"""The ``tradeflows`` command: run a flow here and now, look at what there is, start the local stack."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from deployments import (
    backtest_command,
    backup_command,
    data_command,
    metrics_command,
    models_command,
    notify_command,
    review_command,
    run_command,
    serve_command,
    show,
    stack_command,
    trace_command,
)
from deployments.running import HomeFolder, Traceback, prepared, prepared_for_flows, told, utc
from flows.parameters import SourceName
from trading.window import Timeframe

app = typer.Typer(
    help="Pipelines for trading bots: ingest, train, analyse, backtest, every run a window.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(data_command.data, name="data")
app.add_typer(data_command.quarantine, name="quarantine")
app.add_typer(models_command.models, name="models")
app.add_typer(backtest_command.backtest, name="backtest")
app.add_typer(notify_command.notify, name="notify")
app.add_typer(review_command.reviews, name="review")
app.command()(notify_command.settings)
app.command()(backup_command.backup)
app.command()(backup_command.restore)
app.command()(metrics_command.metrics)
app.command()(trace_command.trace)
app.command()(run_command.run)
app.command()(run_command.rerun)
app.command()(serve_command.serve_model)

SymbolList = Annotated[list[str], typer.Argument(help="Symbols as the source spells them, such as BTCUSDT ETHUSDT")]
TimeframeText = Annotated[str, typer.Option("--timeframe", "-t", help="Length of a bar, 1m to 1d")]
SourceText = Annotated[SourceName, typer.Option(help="Where candles come from")]
RefreshText = Annotated[SourceName | None, typer.Option(help="First bring the candles up to date from there")]
DaysNumber = Annotated[int, typer.Option(help="Days to look back where no start is given", min=1)]
StartTime = Annotated[
    datetime | None, typer.Option(help="Open of the first bar (UTC)", formats=show.FORMATS, metavar="DATE")
]
EndTime = Annotated[
    datetime | None, typer.Option(help="End of the last bar (UTC)", formats=show.FORMATS, metavar="DATE")
]


@app.command()
def demo(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """The main job on sample and simulated candles, from a local exchange over HTTP."""
    from deployments import demo as job

    with told(traceback):
        job.run(prepared_for_flows(home, default=Path(".tradeflows/demo")), Console())


@app.command()
def ingest(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    source: SourceText = "exchange",
    days: DaysNumber = 730,
    start: StartTime = None,
    end: EndTime = None,
    fallback: Annotated[list[str] | None, typer.Option(help="Ask this one where the source is down")] = None,
    compare: Annotated[SourceName | None, typer.Option(help="A source whose prices must agree")] = None,
    recheck: Annotated[int, typer.Option(help="Newest bars to ask for again: late corrections", min=0)] = 0,
    repair: Annotated[bool, typer.Option("--repair", help="Ask again for the bars of confirmed gaps")] = False,
    derive: Annotated[list[str] | None, typer.Option(help="Coarser timeframe to make of these candles")] = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Fetch the candles that the ledger is missing, check them, store them."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared_for_flows(home)
        from flows.ingest import ingest as flow

        coarser = [Timeframe.parse(one) for one in derive or ()]
        result = show.watched(
            lambda: flow(
                symbols,
                bar,
                source,
                days,
                utc(start),
                utc(end),
                cast("list[SourceName]", fallback or []),  # typer knows no list of choices; the flow checks them
                compare,
                recheck,
                repair,
                coarser,
            )
        )
        show.ingested(Console(), [result])


@app.command()
def train(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    days: DaysNumber = 730,
    start: StartTime = None,
    end: EndTime = None,
    horizon: Annotated[int, typer.Option(help="Bars from fill to the label's end", min=1)] = 12,
    folds: Annotated[int, typer.Option(help="Folds of the walk-forward", min=2)] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 7,
    refresh: RefreshText = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Train a model for these symbols, register the winner, let the gate decide about it."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared_for_flows(home)
        from flows.train import train as flow

        result = show.watched(
            lambda: flow(symbols, bar, days, utc(start), utc(end), refresh, horizon=horizon, folds=folds, seed=seed)
        )
        show.trained(Console(), [result])


@app.command()
def analyse(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    days: DaysNumber = 730,
    end: EndTime = None,
    refresh: RefreshText = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """A signal for each symbol from the champion and the technical rules."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared_for_flows(home)
        from flows.analyse import analyse as flow

        show.analysed(Console(), show.watched(lambda: flow(symbols, bar, days, None, utc(end), refresh)))


@app.command()
def cycle(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    source: SourceText = "exchange",
    days: DaysNumber = 730,
    end: EndTime = None,
    horizon: Annotated[int, typer.Option(help="Bars from fill to the label's end", min=1)] = 12,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Ingest, train, analyse and backtest in order."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        settings = prepared_for_flows(home)
        from flows.cycle import Group
        from flows.cycle import cycle as flow

        group = Group(symbols=symbols, timeframe=bar, days=days, horizon=horizon)
        done = show.watched(lambda: flow([group], source, utc(end)))
        show.cycled(Console(), done, settings)


@app.command()
def monitor(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    days: DaysNumber = 30,
    start: StartTime = None,
    end: EndTime = None,
    refresh: RefreshText = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Whether the market and the champion are still as they were in training."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared_for_flows(home)
        from flows.monitor import monitor as flow

        found = show.watched(lambda: flow(symbols, bar, days, utc(start), utc(end), refresh))
        console = Console(soft_wrap=True, highlight=False)
        console.print(f"{found.model} version {found.version or 'none'}: [bold]{found.state}[/]")
        for reason in found.reasons:
            console.print(f"  {reason}", markup=False)
        if found.retrain:
            console.print("  It must be trained again: `tradeflows train`; deployed, the event has started it.")


@app.command()
def status(
    stack: Annotated[
        bool, typer.Option("--stack", help="Of the local stack alone; exit code 3 where none runs")
    ] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """The local stack and its last runs, and what the store, the registry and the analyses hold.

    Exit code 1 where a part of the stack is not as it should be.
    """
    with told(traceback):
        settings = prepared(home)
        well = stack_command.status(settings, Console(highlight=False))
        if not stack:
            show.status(Console(), settings, datetime.now(UTC))
        elif well is None:
            raise typer.Exit(3)
        if well is False:
            raise typer.Exit(1)


for command in (
    stack_command.up,
    stack_command.down,
    stack_command.logs,
    stack_command.doctor,
    stack_command.deploy,
    stack_command.serve,
):
    app.command()(command)


def main() -> None:
    """Entry point of the ``tradeflows`` command."""
    app(prog_name="tradeflows")


if __name__ == "__main__":
    main()
