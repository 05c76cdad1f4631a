"""The ``tradeflows`` command: run a flow here and now, look at what there is, start the local stack."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deployments import show
from flows.parameters import SourceName
from tasks import environment, log
from tasks.settings import Settings, load_settings
from trading.errors import TradeflowsError
from trading.window import Timeframe

app = typer.Typer(
    help="Pipelines for trading bots: ingest, train, analyse, backtest, every run a window.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
HomeFolder = Annotated[
    Path | None, typer.Option("--home", help="Data folder (default: TRADEFLOWS_HOME or .tradeflows)")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error")]


@app.command()
def demo(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """The main job on sample and simulated candles, from a local exchange over HTTP."""
    from deployments import demo as job

    with told(traceback):
        job.run(prepared(home, default=Path(".tradeflows/demo")), Console())


@app.command()
def ingest(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    source: SourceText = "exchange",
    days: DaysNumber = 730,
    start: StartTime = None,
    end: EndTime = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Fetch the candles that the ledger is missing, check them, store them."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared(home)
        from flows.ingest import ingest as flow

        result = show.watched(lambda: flow(symbols, bar, source, days, utc(start), utc(end)))
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
        prepared(home)
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
        prepared(home)
        from flows.analyse import analyse as flow

        show.analysed(Console(), show.watched(lambda: flow(symbols, bar, days, None, utc(end), refresh)))


@app.command()
def backtest(
    symbols: SymbolList,
    timeframe: TimeframeText = "1h",
    days: DaysNumber = 730,
    start: StartTime = None,
    end: EndTime = None,
    fee_rate: Annotated[float, typer.Option(help="Fee per side, a share of the notional", min=0)] = 0.001,
    slippage_rate: Annotated[float, typer.Option(help="Slippage per side, a share of the price", min=0)] = 0.0005,
    cash: Annotated[float, typer.Option(help="Starting cash in the quote currency", min=0)] = 10_000.0,
    refresh: RefreshText = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """The champion and the rules against buy-and-hold, with fees and slippage."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared(home)
        from flows.backtest import backtest as flow

        result = show.watched(
            lambda: flow(symbols, bar, days, utc(start), utc(end), refresh, fee_rate, slippage_rate, cash)
        )
        show.backtested(Console(), [result])


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
        settings = prepared(home)
        from flows.cycle import Group
        from flows.cycle import cycle as flow

        group = Group(symbols=symbols, timeframe=bar, days=days, horizon=horizon)
        done = show.watched(lambda: flow([group], source, utc(end)))
        show.cycled(Console(), done, settings)


@app.command()
def status(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """What the store, the registry and the analyses hold."""
    with told(traceback):
        show.status(Console(), prepared(home))


@app.command()
def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return once everything is ready")] = False,
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Ingest from the sandbox exchange")] = False,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Start Prefect, MLflow and a worker on loopback, and deploy the flows."""
    from deployments import stack

    with told(traceback):
        stack.up(prepared(home), Console(), detach=detach, sandbox=sandbox)


@app.command()
def down(home: HomeFolder = None, traceback: Traceback = False) -> None:
    """Stop what ``up`` started."""
    from deployments import stack

    with told(traceback):
        stack.down(prepared(home), Console())


def prepared(home: Path | None, *, default: Path | None = None) -> Settings:
    """Settings and environment of this process; ``home`` wins over the environment, that over ``default``."""
    chosen = home or (default if "TRADEFLOWS_HOME" not in os.environ else None)
    if chosen is not None:
        os.environ["TRADEFLOWS_HOME"] = str(chosen)
    settings = load_settings()
    environment.prepare(settings.home)
    # Prefect's own lines would break the progress bars; its pages have them all
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    log.configure(settings.log_format)
    return settings


def utc(moment: datetime | None) -> datetime | None:
    """A time of the command line, which is in UTC unless it says otherwise."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


@contextmanager
def told(traceback: bool) -> Iterator[None]:
    """Errors become one sentence on standard error and exit code 1, or a traceback where asked for."""
    try:
        yield
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]stopped[/]")
        raise typer.Exit(130) from None
    except (TradeflowsError, OSError, ValueError, RuntimeError) as error:
        if traceback:
            raise
        kind = type(error).__name__
        Console(stderr=True, soft_wrap=True).print(f"[bold red]{kind}[/]: ", end="")
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(str(error))
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point of the ``tradeflows`` command."""
    app(prog_name="tradeflows")


if __name__ == "__main__":
    main()
