"""What ``tradeflows backtest`` prints: stored results, a leaderboard, one strategy in detail. 80 columns suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from deployments import show
from trading.backtest.labels import COSTS, FIGURES, Form, said
from trading.backtest.words import HOLD, known, verdict

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
Row = Mapping[str, Any]


def stored(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """Stored backtests, in the order given: documents of the store with ``_id``, ``created_at`` and ``result``.

    The best is that of the highest Sharpe ratio.
    """
    rows = []
    for one in found:
        result = one["result"]
        best = max(_tried(result["rows"]), key=_ratio, default=None)
        rows.append(
            [
                str(one["_id"])[:8],
                f"{one['created_at']:%m-%d %H:%M}",
                _few(list(dict.fromkeys(row["symbol"] for row in result["rows"]))),
                show.mode(str(result["data_mode"])),
                said(result.get("trials") or len(_tried(result["rows"])), "count"),
                escape(f"{best['strategy']} {best['symbol']}") if best else "-",
                said(best["total_return"], "signed") if best else "-",
            ]
        )
    columns = ("key", "at (UTC)", "symbols", "data", "tried", "best", "return")
    console.print(show.table("Backtests", columns, rows, right=("tried", "return")))


def leaderboard(console: Console, found: Any) -> None:
    """Each strategy beside buy-and-hold, how much of the best may be luck, and where the pages are.

    Args:
        found: ``tasks.backtesting.Backtested``, or an object with the fields of a stored one.
    """
    holds = {row["symbol"]: row for row in found.rows if row["strategy"] == HOLD}
    numbers = ("return", "vs hold", "Sharpe", "drawdown", "trades", "held", "costs")
    rows = [_line(row, holds.get(row["symbol"])) for row in found.rows]
    first, last = (str(found.rows[0][name])[:10] for name in ("start", "end"))
    title = f"Backtest {first} to {last}, {show.mode(found.data_mode)} data"
    table = show.table(title, ("symbol", "strategy", *numbers), rows, right=numbers)
    for column in table.columns[2:]:
        column.no_wrap = True  # a long name of a strategy is folded instead
    console.print(table)
    console.print(
        "vs hold: points of return above buying and holding. Sharpe: with one standard\n"
        "error. held: share of the bars. costs: of the starting cash.",
        style="dim", highlight=False,
    )  # fmt: skip
    for one in found.luck:
        console.print(_luck(one), highlight=False, soft_wrap=True)
    for one in found.robustness:
        name = escape(f"{one['strategy']} on {one['symbol']}")
        console.print(f"  {name}: {escape(str(one['verdict']))}", style="dim", highlight=False, soft_wrap=True)
    for reason in found.absent:
        console.print("[yellow]without the model[/]: ", end="")
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    reused = "reused: an identical request was answered before" if found.reused else ""
    for line in (
        f"key       {found.key[:12]}" if found.key else "",
        *(f"page      {path}" for path in pages(found)),
        reused,
    ):
        if line:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def detail(console: Console, found: Any, row: Row) -> None:
    """One strategy on one symbol: verdict, figures beside buy-and-hold, months, robustness."""
    hold = next((one for one in found.rows if one["symbol"] == row["symbol"] and one["strategy"] == HOLD), None)
    name = escape(str(row.get("parameters") or row["strategy"]))
    console.print(f"[bold]{name} on {escape(row['symbol'])}[/], {show.mode(found.data_mode)} data", highlight=False)
    if hold is not None and row is not hold:
        # how likely luck is, is in the row; of the rest of the overfitting figures the leaderboard speaks
        judged = verdict(row, hold, {"deflated_sharpe": row.get("deflated_sharpe")})
        console.print(f"[bold]{judged.headline}[/]", highlight=False, soft_wrap=True)
        for text in judged.sentences:
            console.print(f"  {text}", highlight=False, soft_wrap=True, markup=False)
    for title, labels in FIGURES:
        chosen = [label for label in labels if label.name in row]
        columns = {
            title.lower(): [label.text for label in chosen],
            "strategy": [label.of(row) for label in chosen],
            "95% interval": [_interval(row, label.name) for label in chosen],
            "hold": [label.of(hold) if hold and label.compared else "" for label in chosen],
        }
        shown = {name: cells for name, cells in columns.items() if any(cells)}
        body = [list(cells) for cells in zip(*shown.values(), strict=True)]
        console.print(show.table("", list(shown), body, right=list(shown)[1:]))
    paid = ", ".join(f"{kind} {said(known(row, kind), 'money')}" for kind in COSTS if known(row, kind))
    share = said(known(row, "cost_of_start"), "share")
    console.print(f"Costs: {paid or 'none'}; {share} of the starting cash.", highlight=False)
    months(console, [one for one in found.months if _same(one, row)])
    robustness(console, [one for one in found.robustness if _same(one, row)])


def months(console: Console, rows: Sequence[Row]) -> None:
    """The return of each month and year in percent."""
    body = [
        [str(one["year"]), *(_month(one.get(str(month))) for month in range(1, 13)), _month(one.get("total"))]
        for one in rows
    ]
    if body:
        columns = ("year", *MONTHS, "total")
        console.print(show.table("Return by month, %", columns, body, right=columns[1:]))


def robustness(console: Console, rows: Sequence[Row]) -> None:
    """What becomes of the return where something is not as assumed."""
    for one in rows:
        factors = {name.removeprefix("costs_x"): one[name] for name in one if name.startswith("costs_x")}
        body = [[f"costs x{factor}", said(value, "signed")] for factor, value in factors.items()]
        body.append(["decided one bar later", said(known(one, "one_bar_late"), "signed")])
        body.append(["neighbours with Sharpe > 0", said(known(one, "neighbours_above_0"), "share")])
        body.append(["five best trades, of profit", said(known(one, "best_five_share"), "share")])
        console.print(show.table("Robustness", ("where", "return or share"), body, right=("return or share",)))
        console.print(f"  {one['verdict']}", markup=False, highlight=False, soft_wrap=True)


def pages(found: Any, symbol: str | None = None, strategy: str | None = None) -> list[str]:
    """The paths of the HTML pages of these rows, buy-and-hold apart; nothing where the result has none."""
    if len(found.pages) != len(found.rows):
        return []
    return [
        path
        for row, path in zip(found.rows, found.pages, strict=True)
        if symbol in (None, row["symbol"]) and strategy in (None, row["strategy"]) and row["strategy"] != HOLD
    ]


def _line(row: Row, hold: Row | None) -> list[str]:
    error, ratio = known(row, "sharpe_error"), known(row, "sharpe")
    apart = 100 * (row["total_return"] - hold["total_return"]) if hold is not None and row is not hold else None
    made = said(row["total_return"], "signed")
    colour = "green" if row["total_return"] > 0 else "red" if row["total_return"] < 0 else "dim"
    return [
        escape(row["symbol"]),
        escape(str(row["strategy"]).replace(HOLD, "buy & hold")),
        f"[{colour}]{made}[/]",
        "" if apart is None else f"{apart:+,.1f}",
        said(ratio, "ratio") + (f"±{error:.1f}" if error is not None else ""),
        said(row["max_drawdown"], "share"),
        f"{row['trades']:,}",
        f"{row['exposure']:.0%}",
        said(known(row, "cost_of_start"), "share"),
    ]


def _luck(one: Row) -> str:
    parts: list[tuple[str, float | None, Form]] = [
        ("deflated Sharpe", known(one, "deflated_sharpe"), "share"),
        ("PBO", known(one, "pbo"), "share"),
        ("SPA p-value", known(one, "spa"), "ratio"),
    ]
    told = ", ".join(f"{name} {said(value, form)}" for name, value, form in parts if value is not None)
    return f"  luck, {escape(str(one['symbol']))}: {one['trials']:,} tried; {told or 'nothing can be said'}"


def _tried(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["strategy"] != HOLD]


def _ratio(row: Row) -> float:
    ratio = known(row, "sharpe")
    return ratio if ratio is not None else float("-inf")


def _interval(row: Row, name: str) -> str:
    low, high = known(row, f"{name}_low"), known(row, f"{name}_high")
    if low is None or high is None:
        return ""
    forms: dict[str, Form] = {"total_return": "signed", "max_drawdown": "share"}
    form = forms.get(name, "ratio")
    return f"{said(low, form)} to {said(high, form)}"


def _month(value: float | None) -> str:
    """In percent, in five characters."""
    if value is None:
        return ""
    return f"{100 * value:+.1f}" if abs(value) < 0.0995 else f"{100 * value:+.0f}"


def _same(one: Row, row: Row) -> bool:
    return (one["symbol"], one["strategy"]) == (row["symbol"], row["strategy"])


def _few(names: Sequence[str]) -> str:
    return escape(", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else ""))
