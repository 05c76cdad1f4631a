"""``tradeflows backtest``: run one, look at stored ones, find their pages.

``tradeflows backtest BTCUSDT`` is short for ``tradeflows backtest run BTCUSDT``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from deployments import show, show_backtest
from deployments.running import HomeFolder, Traceback, prepared, prepared_for_flows, told, utc
from flows.parameters import SourceName
from trading.errors import InvalidRequest
from trading.window import Timeframe

if TYPE_CHECKING:
    from tasks.store import Store

RESULT = "backtest"  # kind of the stored results
NEWEST = 20


class RunUnlessNamed(TyperGroup):
    """A group whose first command is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with ``run`` before them unless they name a command or ask for help."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


backtest = typer.Typer(
    cls=RunUnlessNamed, no_args_is_help=True,
    help="Strategies against buy-and-hold, with costs: run, show, open. Without a word of these: run.",
)  # fmt: skip

Key = Annotated[str | None, typer.Argument(help="Key of a backtest, or as much of its start as only it has")]
OfSymbol = Annotated[str | None, typer.Option("--symbol", help="Only this symbol")]
OfStrategy = Annotated[str | None, typer.Option("--strategy", "-s", help="Only this strategy, in detail")]
Moment = Annotated[datetime | None, typer.Option(formats=show.FORMATS, metavar="DATE", help="UTC")]


@backtest.command("run")
def backtest_run(
    symbols: Annotated[list[str], typer.Argument(help="Symbols as the source spells them, such as BTCUSDT ETHUSDT")],
    timeframe: Annotated[str, typer.Option("--timeframe", "-t", help="Length of a bar, 1m to 1d")] = "1h",
    days: Annotated[int, typer.Option(help="Days to look back where no start is given", min=1)] = 730,
    start: Moment = None,
    end: Moment = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="Such as rsi or 'sma_cross(fast=10, slow=30)'; may be repeated"),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try the grid of every rule given without parameters")] = False,
    fee_rate: Annotated[
        float, typer.Option("--fee-rate", "--fee", help="Fee per side, a share of the notional", min=0)
    ] = 0.001,
    slippage_rate: Annotated[
        float, typer.Option("--slippage-rate", "--slippage", help="Slippage per side, a share of the price", min=0)
    ] = 0.0005,
    cost_factor: Annotated[
        list[float] | None, typer.Option(help="Trade at so many times the costs as well; may be repeated", min=0)
    ] = None,
    cash: Annotated[float, typer.Option(help="Starting cash in the quote currency", min=0)] = 10_000.0,
    refresh: Annotated[SourceName | None, typer.Option(help="First bring the candles up to date from there")] = None,
    home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:
    """Strategies against buy-and-hold, with fees and slippage. An identical request returns the stored result."""
    with told(traceback):
        bar = Timeframe.parse(timeframe)
        prepared_for_flows(home)
        from flows.backtest import backtest as flow

        asked: dict[str, Any] = {"strategies": strategy} if strategy else {}
        found = show.watched(
            lambda: flow(
                symbols,
                bar,
                days,
                utc(start),
                utc(end),
                refresh,
                fee_rate,
                slippage_rate,
                cash,
                sweep=sweep,
                cost_factors=cost_factor or [],
                **asked,
            )
        )
        show_backtest.leaderboard(Console(), found)


@backtest.command("show")
def backtest_show(
    key: Key = None, symbol: OfSymbol = None, strategy: OfStrategy = None, home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:  # fmt: skip
    """The stored backtests; with a key the leaderboard of one; with a strategy its figures, months and robustness."""
    with told(traceback), _opened(home) as store:
        console = Console()
        if key is None and strategy is None:
            documents = _documents(store, NEWEST)
            if documents:
                show_backtest.stored(console, documents)
            else:
                console.print("No backtests yet: start with `tradeflows backtest BTCUSDT` or `tradeflows demo`.")
            return
        found = _chosen(store, key)
        rows = _rows(found, symbol, strategy)
        if strategy is None:
            show_backtest.leaderboard(console, _of(found, symbol))
            return
        for row in rows:
            show_backtest.detail(console, found, row)


@backtest.command("open")
def backtest_open(
    key: Key = None, symbol: OfSymbol = None, strategy: OfStrategy = None, home: HomeFolder = None,
    traceback: Traceback = False,
) -> None:  # fmt: skip
    """Where the pages of a backtest are, the newest where no key is given: one path a line, for a browser."""
    with told(traceback), _opened(home) as store:
        found = _chosen(store, key)
        _rows(found, symbol, strategy)
        paths = show_backtest.pages(found, symbol, strategy)
        gone = [path for path in paths if not Path(path).is_file()]
        if gone or not paths:
            raise InvalidRequest(
                f"{gone[0]} is not there any more; run the backtest again" if gone else "this backtest has no pages"
            )
        for path in paths:
            typer.echo(path)


@dataclass(frozen=True)
class Stored:
    """A stored result (``tasks.backtesting.Backtested``); one of an older version lacks the later fields."""

    key: str
    rows: list[dict[str, Any]]
    data_mode: str
    reused: bool = False
    absent: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    luck: list[dict[str, Any]] = field(default_factory=list)
    robustness: list[dict[str, Any]] = field(default_factory=list)
    months: list[dict[str, Any]] = field(default_factory=list)


def _chosen(store: Store, key: str | None) -> Stored:
    documents = _documents(store, 1 if key is None else None)
    matching = [one for one in documents if str(one["_id"]).startswith(key or "")]
    if not matching:
        which = f"no backtest has a key that starts with {key!r}" if key else "there are no backtests yet"
        raise InvalidRequest(f"{which}; `tradeflows backtest show` lists those there are")
    if len(matching) > 1:
        keys = ", ".join(str(one["_id"])[:12] for one in matching[:5])
        raise InvalidRequest(f"{len(matching)} backtests have a key that starts with {key!r}: {keys}; give more of it")
    result = matching[0]["result"]
    known = {name: result[name] for name in Stored.__dataclass_fields__ if name in result}
    return Stored(**(known | {"key": str(matching[0]["_id"]), "reused": False}))


def _rows(found: Stored, symbol: str | None, strategy: str | None) -> list[dict[str, Any]]:
    rows = [row for row in found.rows if symbol in (None, row["symbol"]) and strategy in (None, row["strategy"])]
    if not rows:
        those = ", ".join(dict.fromkeys(f"{row['strategy']} on {row['symbol']}" for row in found.rows))
        raise InvalidRequest(
            f"this backtest has no {strategy or 'strategy'} on {symbol or 'any symbol'}; it has {those}"
        )
    return rows


def _of(found: Stored, symbol: str | None) -> Stored:
    """What is about one symbol."""
    if symbol is None:
        return found
    kept = [one["symbol"] == symbol for one in found.rows]
    return replace(
        found,
        rows=list(compress(found.rows, kept)),
        pages=list(compress(found.pages, kept)) if len(found.pages) == len(kept) else [],
        luck=[one for one in found.luck if one["symbol"] == symbol],
        robustness=[one for one in found.robustness if one["symbol"] == symbol],
    )


def _documents(store: Store, newest: int | None) -> list[Any]:
    """Stored backtests, the newest first."""
    from tasks.documents import Span
    from tasks.store import RESULTS

    found = store.documents.find(RESULTS, {"kind": RESULT}, Span("created_at"), newest=newest)
    return found if newest is not None else found[::-1]


@contextmanager
def _opened(home: Path | None) -> Iterator[Store]:
    from tasks.store import configured_store

    with configured_store(prepared(home)) as store:
        yield store
