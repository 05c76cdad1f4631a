"""What ``tradeflows models`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Console

from deployments import show

VERIFIED: Final = ("model", "version", "data", "verdict")
# what a person looks at first, and how it is written
FIGURES: Final = (("skill", "+.2%"), ("total_return", "+.1%"), ("sharpe", ".2f"), ("max_drawdown", ".1%"))


def versions(console: Console, name: str, found: Sequence[Any], figures: Mapping[str, Any], now: datetime) -> None:
    """Versions of a model, the newest first: aliases, estimator, figures out of sample, age."""
    rows = [
        [
            str(one.version),
            _aliases(one.aliases),
            one.tags.get("estimator", "-"),
            show.mode(one.tags.get("data_mode", "unknown")),
            *(_number(figures[str(one.version)].get(figure), form) for figure, form in FIGURES),
            _age(int(one.creation_timestamp), now),
        ]
        for one in found
    ]
    numbers = ("skill", "return", "Sharpe", "drawdown", "age")
    columns = ("v", "alias", "estimator", "data", *numbers)
    console.print(show.table(f"{name}: versions", columns, rows, right=("v", *numbers)))


def changes(console: Console, found: Sequence[Any]) -> None:
    """The promotion history, oldest first."""
    rows = [
        [
            f"{one.at:%Y-%m-%d %H:%M}",
            f"{one.kind}{' by hand' if one.manual else ''}",
            f"{one.from_version or '-'} > {one.to_version}",
            f"{_short(one.who)}: {one.reasons[0] if one.reasons else ''}",
        ]
        for one in found
    ]
    if rows:
        console.print(show.table("Promotions", ("at (UTC)", "what", "version", "who and why"), rows))


def compared(console: Console, name: str, pair: Sequence[Any], figures: Sequence[Mapping[str, float]]) -> None:
    """Two versions side by side."""
    first, second = figures
    rows = [
        [each, _number(first.get(each), ".6g"), _number(second.get(each), ".6g"), _difference(first, second, each)]
        for each in sorted({*first, *second})
    ]
    heads = [f"v{one.version} {one.tags.get('estimator', '')}" for one in pair]
    columns = ("figure", *heads) if heads[0] != heads[1] else ("figure", heads[0], f"{heads[1]} ")
    modes = " and ".join(dict.fromkeys(show.mode(one.tags.get("data_mode", "unknown")) for one in pair))
    console.print(
        show.table(f"{name}, {modes} data", (*columns, "difference"), rows, right=(*columns[1:], "difference"))
    )  # fmt: skip
    for tag in ("window", "dataset_digest", "code_digest"):
        values = [one.tags.get(tag, "not known") for one in pair]
        same = f"{values[0][:38]}, both" if values[0] == values[1] else f"{values[0][:38]} and {values[1][:38]}"
        console.print(f"  {tag.replace('_', ' ')}: {same}", highlight=False, soft_wrap=True)
    if len({one.tags.get("dataset_digest") for one in pair}) > 1:
        console.print("[yellow]They were scored on different candles[/]: the gate would not compare these figures.")


def _short(who: str) -> str:
    """A flow run by the start of its id, by which the Prefect pages find it."""
    return who[: len("flow run ") + 8] if who.startswith("flow run ") else who


def _difference(first: Mapping[str, float], second: Mapping[str, float], figure: str) -> str:
    return f"{second[figure] - first[figure]:+.4g}" if figure in first and figure in second else "-"


def _aliases(named: Sequence[str]) -> str:
    """The champion is mostly the newest challenger, too, which then goes without saying."""
    shown = [alias for alias in named if alias != "challenger" or "champion" not in named]
    return ", ".join(f"[bold]{alias}[/]" if alias == "champion" else alias for alias in shown) or "-"


def _age(created_ms: int, now: datetime) -> str:
    hours = max(int((now.timestamp() - created_ms / 1000) // 3600), 0)
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
